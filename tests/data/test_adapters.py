"""Every adapter on a small file of the published layout: our readers accept the result, values worked out by hand,
broken lines named."""

import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zr_ray.data.adapters import ADAPTERS, agiqa3k, evalmuse, genai_bench, hpdv2, hpdv3, imagereward, pickapic
from zr_ray.data.adapters.conversion import split_by_prompt
from zr_ray.data.adapters.fields import to_rubric, train_label
from zr_ray.data.annotations import check_images, read_annotations
from zr_ray.data.pairs import preference_pairs
from zr_ray.data.preferences import read_preferences
from zr_ray.errors import ConfigError, DataError

SAMPLES = Path(__file__).parent / "samples"
MODULES = {
    "agiqa3k": agiqa3k,
    "evalmuse": evalmuse,
    "genai_bench": genai_bench,
    "hpdv2": hpdv2,
    "hpdv3": hpdv3,
    "imagereward": imagereward,
}


def pictures(folder, *names):
    """PNG files of different content under the published names (a decoder goes by content, not by the ending)."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            Image.fromarray(np.full((3, 4, 3), 10 * value, np.uint8)).save(file, "png")
    return folder


IMAGES = {
    "agiqa3k": (
        "AttnGAN_normal_000.jpg",
        "midjourney_normal_000.jpg",
        "AttnGAN_normal_060.jpg",
        "glide_normal_060.jpg",
    ),
    "evalmuse": ("SDXL/00110.png", "SD_v1.5/00110.png", "SDXL/00111.png", "SDXL/00112.png"),
    "genai_bench": ("DALLE_3/00001.jpeg", "SDXL_Turbo/00001.jpeg", "DALLE_3/00002.jpeg"),
    "hpdv2": (
        tuple(f"train/0000000{k}.jpg" for k in (1, 2, 3, 4, 5)) + tuple(f"test/0000000{k}.jpg" for k in (1, 2, 3, 4))
    ),
    "hpdv3": tuple(
        f"images/{name}"
        for name in "uuid1/a.jpg uuid1/b.jpg uuid1/c.jpg mj/d.png mj/e.png test/f.jpg test/g.jpg".split()
    ),
    "imagereward": (
        tuple(f"train_1/0a000000-0000-4000-8000-00000000000{k}.webp" for k in (1, 2, 3))
        + ("images/test/test_1/0b000000-0000-4000-8000-000000000001.webp",)
    ),
}


@pytest.fixture()
def convert(tmp_path):
    """convert(name, **options): sample files and fresh images through an adapter -> (summary, items by id,
    preferences)."""

    def run(name, source=None, images=None, **options):
        images = pictures(tmp_path / "images", *IMAGES[name]) if images is None else images
        summary = MODULES[name].convert(source or SAMPLES / name, images, tmp_path / "out", **options)
        return summary, *read_back(tmp_path / "out")

    return run


def read_back(root):
    items = (
        {item.id: item for item in read_annotations(root, decode_images=True)}
        if (root / "annotations.jsonl").exists()
        else {}
    )
    return items, list(read_preferences(root)) if (root / "preferences.jsonl").exists() else []


def by_name(preferences):
    return [(one.winner.name, one.loser.name, one.votes) for one in preferences]


def test_rubric_mapping():
    assert [to_rubric(v, 1, 7) for v in (1, 4, 7)] == [1.0, 3.0, 5.0]
    assert to_rubric(0.583333, 0, 1) == pytest.approx(3 + 1 / 3, abs=1e-5)
    assert [train_label(s) for s in (1.0, 1.24, 1.25, 1.74, 1.75, 4.74, 4.75, 5.0)] == [
        1.0,
        1.0,
        1.5,
        1.5,
        2.0,
        4.5,
        5.0,
        5.0,
    ]


def test_splits_by_prompt_are_fixed_and_follow_the_fractions():
    prompts = [f"prompt {n}" for n in range(4000)]
    got = Counter(split_by_prompt(prompt, 0.5, 0.25) for prompt in prompts)
    assert abs(got["train"] - 2000) < 130 and abs(got["dev"] - 1000) < 110  # 4 standard deviations
    assert all(
        split_by_prompt(prompt, 0.6, 0) == "train" for prompt in prompts if split_by_prompt(prompt, 0.5, 0.1) == "train"
    )
    with pytest.raises(ConfigError, match=r"sum of at most 1, got 0.8, 0.3"):
        split_by_prompt("x", 0.8, 0.3)


def test_imagereward(convert):
    summary, items, preferences = convert("imagereward")
    test, first, second, third = items.values()  # files in name order
    # 1 + 4 (r - 1) / 6: 7 -> 5, 4 -> 3, 2 -> 1.667 (half-point 1.5); 1 -> 1, 4 -> 3, 6 -> 4.333 (4.5)
    assert [item.scores for item in (first, second, third)] == [
        {"alignment": 5.0, "realism": 1.0},
        {"alignment": 3.0, "realism": 3.0},
        {"alignment": 1.5, "realism": 4.5},
    ]
    assert test.scores == {"alignment": pytest.approx(1 + 8 / 6), "realism": pytest.approx(1 + 20 / 6)}
    assert first.group == second.group == third.group == "train-000001-0001" and test.group == "test-000002-0007"
    assert (first.split, test.split, first.origin) == ("train", "test", "imagereward")
    assert first.prompt == "a lighthouse made of paper, studio light"
    names = [item.image.name[-6:-5] for item in (first, second, third)]
    assert names == ["1", "2", "3"]
    # Ranks 1, 2, 2: the first image beats both others, the tie is counted; the fourth image was not downloaded
    assert [(w[-6:-5], x[-6:-5], votes) for w, x, votes in by_name(preferences)] == [("1", "2", None), ("1", "3", None)]
    assert {one.dimension for one in preferences} == {"overall"}
    assert summary.skipped == {"pair with equal ranks": 1, "image not in the image folder": 1}
    assert (summary.items, summary.groups, summary.preferences, summary.images) == (4, 2, 2, 4)
    assert summary.pairs == len(preference_pairs(items.values())) == 6  # three images, two dimensions, no ties
    assert summary.shared_prompts == 1
    text = "\n".join(summary.lines())
    assert "skipped 1: pair with equal ranks (first: " in text and "train_1.json: line 24 (record 3))" in text
    assert "warning: 1 prompts occur in more than one split" in text and "overall_rating" in text


def test_imagereward_from_its_parquet_metadata(convert, tmp_path):
    import json

    rows = json.loads((SAMPLES / "imagereward/train_1.json").read_text())
    (tmp_path / "meta").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "meta/metadata-train.parquet")
    summary, items, preferences = convert("imagereward", tmp_path / "meta")
    assert [item.scores["alignment"] for item in items.values()] == [5.0, 3.0, 1.5] and len(preferences) == 2
    pq.write_table(pa.table({"image_path": ["x"]}), tmp_path / "meta/metadata-train.parquet")
    with pytest.raises(DataError, match=r"metadata-train.parquet: wanted columns .*missing prompt_id"):
        imagereward.convert(tmp_path / "meta", tmp_path / "images", tmp_path / "other")


def test_hpdv2(convert):
    summary, items, preferences = convert("hpdv2")
    train = [one for one in preferences if one.split == "train"]
    assert by_name(train) == [
        ("00000001.jpg", "00000002.jpg", None),
        ("00000003.jpg", "00000001.jpg", None),
        ("00000004.jpg", "00000005.jpg", None),
    ]
    assert train[0].group == train[1].group != train[2].group and train[0].winner == train[1].loser
    # Ranks 2, 1, 3, 3 (1 is best) with three rankings: image 2 over 1 in two of them; 3 and 4 are tied
    test = [one for one in preferences if one.split == "test"]
    assert by_name(test) == [
        ("00000002.jpg", "00000001.jpg", (2, 1)),
        ("00000001.jpg", "00000003.jpg", (2, 1)),
        ("00000001.jpg", "00000004.jpg", (3, 0)),
        ("00000002.jpg", "00000003.jpg", (3, 0)),
        ("00000002.jpg", "00000004.jpg", (3, 0)),
    ]
    assert "train/0000000" in str(train[0].winner) and "test/0000000" in str(test[0].winner)
    assert summary.skipped == {"tied pair": 1} and (summary.preferences, summary.groups, summary.images) == (8, 3, 9)
    assert summary.shared_prompts == 1 and not items


def test_hpdv3(convert):
    summary, _, preferences = convert("hpdv3")
    # path1 is always the winner; of the counts the larger is its own; null has no votes; 6 : 6 is no preference
    assert by_name(preferences) == [
        ("f.jpg", "g.jpg", (10, 0)),
        ("a.jpg", "b.jpg", (12, 7)),
        ("c.jpg", "b.jpg", (9, 2)),
        ("d.png", "e.png", None),
    ]
    assert [one.split for one in preferences] == ["test", "train", "train", "train"]
    assert summary.skipped == {"tied votes": 1}


def test_hpdv3_confidence_filter(convert):
    summary, _, preferences = convert("hpdv3", min_confidence=0.6)
    assert by_name(preferences)[1:] == [("a.jpg", "b.jpg", (12, 7)), ("d.png", "e.png", None)]
    assert summary.skipped == {"confidence below 0.6": 2}


def test_evalmuse(convert):
    summary, items, _ = convert("evalmuse")
    # Means 13/3 = 4.33 and 5/3 = 1.67, to half-points
    assert {name: item.scores["alignment"] for name, item in items.items()} == {
        "SDXL/00110.png": 4.5,
        "SD_v1.5/00110.png": 1.5,
    }
    assert len({item.group for item in items.values()}) == 1 and summary.pairs == 1
    assert summary.skipped == {
        "prompt called meaningless by most annotators": 1,
        "no scores (unreleased test annotations)": 1,
    }


def test_evalmuse_held_out_prompts_keep_every_annotator(convert):
    _, items, _ = convert("evalmuse", train_frac=0.0)
    assert {item.split for item in items.values()} == {"test"}
    assert items["SDXL/00110.png"].scores == {"alignment": (4.0, 5.0, 4.0)}


def test_agiqa3k_on_real_rows(convert):
    summary, items, _ = convert("agiqa3k")
    # 1 + 4 m / 5 of mos_quality 4.324875409 and mos_align 4.04858855
    good = items["midjourney_normal_000"]
    assert good.scores == {"realism": pytest.approx(4.4599003272), "alignment": pytest.approx(4.23887084)}
    poor = items["AttnGAN_normal_000"]
    assert poor.scores == {"realism": pytest.approx(1.7724820424), "alignment": pytest.approx(1.327114592)}
    assert good.prompt == "statue of a man" and good.group == poor.group and good.split == "test"
    assert items["glide_normal_060"].prompt == "artwork with only triangles, anime style"
    assert summary.skipped == {"image not in the image folder": 1}  # DALLE2_normal_060.jpg
    assert summary.items == 4 and summary.pairs == 4


def test_agiqa3k_as_training_data_is_rounded(convert):
    _, items, _ = convert("agiqa3k", train_frac=1.0)
    assert items["midjourney_normal_000"].scores == {"realism": 4.5, "alignment": 4.0}


def test_genai_bench(convert):
    summary, items, _ = convert("genai_bench")
    assert {name: item.scores["alignment"] for name, item in items.items()} == {
        "DALLE_3/00001": (5.0, 4.0, 4.0),
        "SDXL_Turbo/00001": (1.0, 2.0, 2.0),
        "DALLE_3/00002": (3.0, 3.0, 3.0),
    }
    assert summary.groups == 2 and summary.pairs == 1 and items["DALLE_3/00002"].prompt == "No birds in the sky."


LAYOUT = [
    ("are_different", pa.bool_()),
    ("best_image_uid", pa.string()),
    ("caption", pa.string()),
    ("has_label", pa.bool_()),
    ("image_0_uid", pa.string()),
    ("image_1_uid", pa.string()),
    ("jpg_0", pa.binary()),
    ("jpg_1", pa.binary()),
    ("label_0", pa.float64()),
    ("label_1", pa.float64()),
    ("model_0", pa.string()),
    ("model_1", pa.string()),
    ("ranking_id", pa.int64()),
    ("user_id", pa.int64()),
    ("num_example_per_prompt", pa.int64()),
]
"""Columns and types of the Pick-a-Pic v1 dataset card."""


def choice(first, second, label, caption="a fox", **changes):
    same = {"model_0": "sd", "model_1": "sd", "ranking_id": 1, "user_id": 7, "num_example_per_prompt": 3}
    uids = {
        "image_0_uid": first,
        "image_1_uid": second,
        "best_image_uid": first if label == 1 else second if label == 0 else "tie",
    }
    row = {"are_different": True, "caption": caption, "has_label": True, "label_0": label, "label_1": 1 - label}
    return row | uids | same | {"jpg_0": png(first), "jpg_1": png(second)} | changes


def png(name):
    from io import BytesIO

    Image.fromarray(np.full((2, 2, 3), sum(name.encode()) % 256, np.uint8)).save(made := BytesIO(), "png")
    return made.getvalue()


def pick_file(folder, name, *rows, without=()):
    folder.mkdir(exist_ok=True)
    schema = pa.schema([column for column in LAYOUT if column[0] not in without])
    pq.write_table(pa.Table.from_pylist(list(rows), schema), folder / name)
    return folder


def test_pickapic(tmp_path):
    rows = [
        choice("u1", "u2", 1.0),
        choice("u3", "u1", 0.0),
        choice("u1", "u3", 0.5),
        choice("u1", "u3", 1.0, has_label=False),
        choice("u1", "u1", 1.0, are_different=False),
        choice("u8", "u9", 1.0, caption="  "),
    ]
    source = pick_file(tmp_path / "data", "train-00000-of-00002-ab.parquet", *rows)
    pick_file(source, "validation-00000-of-00001-cd.parquet", choice("u4", "u5", 0.0, caption="a bear"))
    pick_file(source, "validation_unique-00000-of-00001-cd.parquet", choice("u4", "u5", 0.0, caption="a bear"))
    pick_file(source, "test_unique-00000-of-00001-ef.parquet", choice("u6", "u7", 1.0, caption="a bear"))
    summary = pickapic.convert(source, None, tmp_path / "out")
    _, preferences = read_back(tmp_path / "out")
    assert by_name(preferences) == [
        ("u6.jpg", "u7.jpg", None),
        ("u1.jpg", "u2.jpg", None),
        ("u1.jpg", "u3.jpg", None),
        ("u5.jpg", "u4.jpg", None),
    ]
    assert [one.split for one in preferences] == [
        "test",
        "train",
        "train",
        "dev",
    ]  # the unique file counts where the full one is absent
    assert preferences[1].winner.read_bytes() == png("u1") and preferences[1].group == preferences[2].group
    assert summary.skipped == {"tie": 1, "no label": 1, "both images are the same": 1, "blank prompt": 1}
    assert summary.shared_prompts == 1 and summary.images == 7


def test_pickapic_without_image_bytes(tmp_path):
    source = pick_file(
        tmp_path / "data", "train-0.parquet", choice("u1", "u2", 1.0), choice("u1", "u3", 1.0), without=pickapic.BYTES
    )
    with pytest.raises(DataError, match=r"row 1: wanted image bytes, or an image folder, for 'u1', got neither"):
        pickapic.convert(source, None, tmp_path / "out")
    summary = pickapic.convert(source, pictures(tmp_path / "images", "u1.png", "u2.jpg"), tmp_path / "out")
    assert by_name(read_preferences(tmp_path / "out")) == [("u1.png", "u2.jpg", None)]
    assert summary.skipped == {"image not in the image folder": 1, "pair without one of its images": 1}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([choice("u1", "u2", 1.0, label_1=1.0)], ["row 2", "labels that sum to 1", "(1.0, 1.0)"]),
        ([choice("u1", "u2", 1.0, caption=None)], ["row 2", "wanted a value in 'caption'"]),
        ([choice("../../u1", "u2", 1.0)], ["row 2", "identifier in 'image_0_uid'", "../../u1"]),
    ],
)
def test_pickapic_broken_rows(tmp_path, rows, words):
    source = pick_file(tmp_path / "data", "train-0.parquet", choice("u1", "u3", 1.0), *rows)
    with pytest.raises(DataError) as error:
        pickapic.convert(source, None, tmp_path / "out")
    assert all(word in str(error.value) for word in ["train-0.parquet", *words]), error.value
    assert not (tmp_path / "out/preferences.jsonl").exists()
    assert pickapic.convert(source, None, tmp_path / "out", skip_broken=True).skipped == {"broken record": 1}


def test_pickapic_names_a_file_of_no_split_and_a_damaged_one(tmp_path):
    source = pick_file(tmp_path / "data", "part-0.parquet", choice("u1", "u2", 1.0))
    with pytest.raises(DataError, match=r"part-0.parquet: wanted a name that starts with train, validation"):
        pickapic.convert(source, None, tmp_path / "out")
    (source / "part-0.parquet").write_text("no parquet")
    (source / "part-0.parquet").rename(source / "train-0.parquet")
    with pytest.raises(DataError, match=r"train-0.parquet: wanted a Parquet file"):
        pickapic.convert(source, None, tmp_path / "out")


BROKEN = [
    (
        "imagereward",
        "train_1.json",
        '"fidelity_rating": 4',
        '"fidelity_rating": 9',
        ["line 13 (record 2)", "[1, 7] in 'fidelity_rating'", "9"],
    ),
    (
        "imagereward",
        "train_1.json",
        '"fidelity_rating": 4',
        '"fidelity": 4',
        ["line 13 (record 2)", "wanted a value in 'fidelity_rating'"],
    ),
    (
        "imagereward",
        "train_1.json",
        "images/train/train_1/0a",
        "pictures/0a",
        ["line 2 (record 1)", "images/train|validation|test/", "pictures/"],
    ),
    (
        "imagereward",
        "train_1.json",
        "images/train/train_1/0a",
        "images/train/../../0a",
        ["line 2 (record 1)", "inside the image folder"],
    ),
    (
        "imagereward",
        "train_1.json",
        '"rank": 4,',
        '"rank": 4',
        ["line 35 (record 4)", "wanted a whole JSON dict", "delimiter"],
    ),
    (
        "hpdv2",
        "train.json",
        "[1, 0]",
        "[1, 0, 0]",
        ["line 1 (record 1)", "a list of 2 numbers in 'human_preference'", "[1, 0, 0]"],
    ),
    (
        "hpdv2",
        "train.json",
        '["00000001.jpg", "00000003.jpg"]',
        '"00000001.jpg"',
        ["record 2", "at least two image names in 'file_path'"],
    ),
    (
        "hpdv2",
        "train.json",
        '"00000001.jpg", "00000003',
        '"../secret.jpg", "00000003',
        ["record 2", "inside the image folder", "../secret.jpg"],
    ),
    (
        "hpdv2",
        "test.json",
        '{"rank": [3, 1, 2, 4]',
        '{"rank": [3, 1, 2]',
        ["line 2 (record 1): raw_annotations", "a list of 4 numbers in 'rank'"],
    ),
    ("hpdv3", "train.json", "[12, 7]", "[12]", ["line 2 (record 1)", "a list of 2 numbers in 'choice_dist'"]),
    (
        "hpdv3",
        "train.json",
        '"path2": "images/uuid1/b.jpg", "model1": "kolors"',
        '"model1": "kolors"',
        ["line 3 (record 2)", "'path2'"],
    ),
    (
        "hpdv3",
        "train.json",
        '"confidence": 0.42',
        '"confidence": "high"',
        ["line 3 (record 2)", "a finite number in 'confidence'", "'high'"],
    ),
    ("hpdv3", "train.json", "0.5},", "0.5}", ["line 5", "wanted a comma or ']' after record 3", "'{'"]),
    ("evalmuse", "train_list.json", "[1, 2, 2]", "[1, 2, 6]", ["line 14 (record 2)", "[1, 5] in 'total_score'", "6"]),
    (
        "evalmuse",
        "train_list.json",
        "[1, 2, 2]",
        '"2"',
        ["line 14 (record 2)", "wanted a list of numbers in 'total_score'"],
    ),
    ("agiqa3k", "data.csv", "4.324875409", "n/a", ["line 6", "[0, 5] in 'mos_quality'", "'n/a'"]),
    ("agiqa3k", "data.csv", "4.324875409,", "", ["line 6", "wanted 9 cells, got 8"]),
    ("agiqa3k", "data.csv", "mos_align", "alignment", ["line 1", "missing mos_align"]),
    (
        "genai_bench",
        "genai_image.json",
        "1,\n                2,",
        "1,\n                41,",
        ["line 2 (record 1)", "in 'SDXL_Turbo'", "41"],
    ),
    (
        "genai_bench",
        "genai_image.json",
        '"models": {',
        '"ratings": {',
        ["line 2 (record 1)", "{model: [ratings]} in 'models'", "None"],
    ),
    ("genai_bench", "genai_image.json", '"00002": {', '"00002": [{', ["line 19 (record 2)", "JSON dict"]),
]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "words"), BROKEN, ids=[f"{b[0]}-{n}" for n, b in enumerate(BROKEN)]
)
def test_a_broken_line_is_named(convert, tmp_path, name, file, old, new, words):
    source = tmp_path / "source"
    shutil.copytree(SAMPLES / name, source)
    whole = (source / file).read_text()
    assert old in whole
    (source / file).write_text(whole.replace(old, new, 1))
    with pytest.raises(DataError) as error:
        convert(name, source)
    message = str(error.value)
    assert message.startswith(f"{source / file}: "), message
    assert all(word in message for word in words) and "\n" not in message, message
    assert not list((tmp_path / "out").glob("*.jsonl")) and not list((tmp_path / "out").glob(".*")), (
        "nothing half written"
    )


def test_broken_records_can_be_counted_instead(convert, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(SAMPLES / "genai_bench", source)
    text = (source / "genai_image.json").read_text()
    (source / "genai_image.json").write_text(text.replace("1,\n                2,", "1,\n                41,", 1))
    summary, items, _ = convert("genai_bench", source, skip_broken=True)
    assert list(items) == ["DALLE_3/00001", "DALLE_3/00002"] and summary.skipped == {"broken record": 1}
    assert "got 41" in summary.first["broken record"]


def test_one_prompt_number_with_two_prompts_is_refused(convert, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(SAMPLES / "imagereward", source)
    first, _, last = (source / "train_1.json").read_text().rpartition("paper")
    (source / "train_1.json").write_text(f"{first}wood{last}")
    with pytest.raises(
        DataError, match=r"line 35 \(record 4\): wanted train prompt '.* made of paper.* got .* made of wood"
    ):
        convert("imagereward", source)


def test_a_long_array_is_read_in_pieces(tmp_path, monkeypatch):
    """Records that straddle buffer borders, at every offset; line numbers count on."""
    from zr_ray.data.adapters import sources

    file = tmp_path / "many.json"
    file.write_text('[\n {"a": "é\\n1"},\n\n {"b": [2, {"c": 3}]}\n, {"d": 4}]\n', encoding="utf-8")
    for chunk in range(1, 60):
        monkeypatch.setattr(sources, "_CHUNK", chunk)
        got = list(sources.json_records(file))
        assert [record for _, record in got] == [{"a": "é\n1"}, {"b": [2, {"c": 3}]}, {"d": 4}], chunk
        assert [where.split(": ")[-1] for where, _ in got] == [
            "line 2 (record 1)",
            "line 4 (record 2)",
            "line 5 (record 3)",
        ], chunk
    file.write_text('[{"a": 1}] trailing')
    with pytest.raises(DataError, match="wanted the end of the file, got 'trailing'"):
        list(sources.json_records(file))
    file.write_text('{"a": 1}\n{"a": 2}\n')
    assert [record["a"] for _, record in sources.json_records(file)] == [1, 2]  # JSON Lines under the same name


def test_images_are_linked_and_originals_stay(convert, tmp_path):
    summary, items, _ = convert("evalmuse")
    original = tmp_path / "images/SDXL/00110.png"
    placed = items["SDXL/00110.png"].image
    assert placed == tmp_path / "out/images/SDXL/00110.png" and placed.samefile(original)
    assert check_images(items.values()) == 2
    with pytest.raises(DataError, match=r"annotations.jsonl is already there; choose an empty folder"):
        convert("evalmuse")


def test_images_are_copied_on_request_over_what_an_interrupted_run_left(convert, tmp_path):
    (tmp_path / "out/images/SDXL").mkdir(parents=True)
    (tmp_path / "out/images/SDXL/00110.png").write_bytes(b"half")
    _, items, _ = convert("evalmuse", copy_images=True)
    original, placed = tmp_path / "images/SDXL/00110.png", items["SDXL/00110.png"].image
    assert not placed.samefile(original) and placed.read_bytes() == original.read_bytes()


def test_images_inside_the_output_folder_are_used_where_they_are(convert, tmp_path):
    _, items, _ = convert("evalmuse", images=pictures(tmp_path / "out/pictures", *IMAGES["evalmuse"]))
    assert items["SDXL/00110.png"].image == tmp_path / "out/pictures/SDXL/00110.png"
    assert not (tmp_path / "out/images").exists()


def test_an_image_listed_twice_is_counted(convert, tmp_path):
    rows = (SAMPLES / "agiqa3k/data.csv").read_text().splitlines()
    (tmp_path / "data.csv").write_text("\n".join([*rows, rows[1]]) + "\n")
    summary, items, _ = convert("agiqa3k", tmp_path / "data.csv")
    assert len(items) == 4 and summary.skipped["image listed again, first record kept"] == 1


def test_nothing_converted_is_an_error_that_says_where_it_looked(convert, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"got none: 5 x image not in the image folder .* looked for .*/empty/AttnGAN_normal_000.jpg"
    ):
        convert("agiqa3k", images=tmp_path / "empty")
    assert not (tmp_path / "out/annotations.jsonl").exists()
    with pytest.raises(DataError, match="wanted the folder of the published images, there is none"):
        convert("agiqa3k", images=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"wanted data.csv, got no such file in it"):
        convert("agiqa3k", tmp_path / "empty")


@pytest.fixture()
def job(monkeypatch, capsys):
    """job(*arguments) of jobs/data/convert.py -> (exit code, stdout, stderr)."""
    path = Path(__file__).parents[2] / "jobs/data/convert.py"
    spec = importlib.util.spec_from_file_location("convert_job", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        try:
            code = module.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_the_job_converts_checks_and_reports(job, tmp_path):
    images = pictures(tmp_path / "images", *IMAGES["hpdv3"])
    arguments = ("--from", "hpdv3", "--source", SAMPLES / "hpdv3", "--images", images, "--out", tmp_path / "out")
    code, out, _ = job(*arguments, "--min-confidence", 0.6, "--decode-images")
    assert code == 0 and "hpdv3 -> " in out and "3 pairs without gaps, 6 images (train 2, test 1)" in out
    assert "skipped 2: confidence below 0.6 (first: " in out and "train.json: line 3 (record 2)" in out
    assert "usable losses: win_nll, bradley_terry_nll, thurstone_nll\n" in out
    code, _, err = job(*arguments)
    assert code == 1 and "already there" in err


def test_the_job_refuses_what_an_adapter_does_not_take(job, tmp_path):
    code, _, err = job(
        "--from", "agiqa3k", "--source", "x", "--images", tmp_path, "--out", tmp_path, "--min-confidence", 1
    )
    flags = "--train-frac, --dev-frac, --mos-to, --mos-range"
    assert code == 1 and err == f"convert: wanted options of agiqa3k ({flags}), got --min-confidence; remove it\n"
    code, _, err = job("--from", "agiqa3k", "--source", "x", "--out", tmp_path)
    assert code == 1 and "wanted --images" in err
    code, _, err = job("--from", "laion", "--source", "x", "--out", tmp_path)
    assert code == 2 and "invalid choice: 'laion'" in err
    code, out, _ = job("--help")
    assert code == 0 and all(f"  {name} " in out for name in ADAPTERS)
