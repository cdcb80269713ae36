"""TFRecords written by TensorBoard's writer and protobuf's serializer, read by ours; RichHF-18K converted with
Pick-a-Pic's prompts."""

import struct
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from zr_ray.data.adapters import richhf
from zr_ray.data.adapters.tfrecord import crc32c, examples
from zr_ray.data.annotations import read_annotations
from zr_ray.errors import ConfigError, DataError


def message_classes(packed):
    """tf.train.Feature and Example, built from the field numbers of feature.proto and example.proto; numbers packed or
    one by one."""
    made = descriptor_pb2.FileDescriptorProto(name=f"example_{packed}.proto", package=f"test{packed}", syntax="proto3")
    number = descriptor_pb2.FieldDescriptorProto
    for name, kind in (
        ("BytesList", number.TYPE_BYTES),
        ("FloatList", number.TYPE_FLOAT),
        ("Int64List", number.TYPE_INT64),
    ):
        value = made.message_type.add(name=name).field.add(
            name="value", number=1, label=number.LABEL_REPEATED, type=kind
        )
        if kind != number.TYPE_BYTES:
            value.options.packed = packed
    feature = made.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for n, name in enumerate(("bytes", "float", "int64"), 1):
        kind = f".test{packed}.{name.capitalize()}List"
        feature.field.add(
            name=f"{name}_list", number=n, label=1, type=number.TYPE_MESSAGE, type_name=kind, oneof_index=0
        )
    features = made.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=number.TYPE_STRING)
    entry.field.add(name="value", number=2, label=1, type=number.TYPE_MESSAGE, type_name=f".test{packed}.Feature")
    where = f".test{packed}.Features.FeatureEntry"
    features.field.add(name="feature", number=1, label=number.LABEL_REPEATED, type=number.TYPE_MESSAGE, type_name=where)
    example = made.message_type.add(name="Example")
    example.field.add(name="features", number=1, label=1, type=number.TYPE_MESSAGE, type_name=f".test{packed}.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(made)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test{packed}.Example"))


EXAMPLE = {packed: message_classes(packed) for packed in (True, False)}


def serialized(packed=True, **values):
    example = EXAMPLE[packed]()
    for name, value in values.items():
        held = example.features.feature[name]
        value = value if isinstance(value, list) else [value]
        kind = {bytes: held.bytes_list, float: held.float_list, int: held.int64_list}[type(value[0])]
        kind.value.extend(value)
    return example.SerializeToString(deterministic=True)


def tfrecord(path, *messages):
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for message in messages:
            writer.write(message)
    return path


def record(uid, alignment, aesthetics, artifact, **changes):
    """One RichHF-18K example; the maps are stand-ins for encoded images."""
    values = {
        "filename": f"train/{uid}.png".encode(),
        "misalignment_score": alignment,
        "aesthetics_score": aesthetics,
        "artifact_score": artifact,
        "overall_score": 0.5,
        "artifact_map": b"\x89PNG\xff\x00",
        "misalignment_map": b"\x89PNG",
        "prompt_misalignment_label": b"1 1 0",
    } | changes
    return serialized(**{name: value for name, value in values.items() if value is not None})


def png(value):
    Image.fromarray(np.full((2, 2, 3), value, np.uint8)).save(made := BytesIO(), "png")
    return made.getvalue()


def pick_a_pic(folder, rows, name="train-00000-of-00001-x.parquet", images=True):
    """rows: (uid 0, uid 1, caption)."""
    folder.mkdir(exist_ok=True)
    table = [{"image_0_uid": a, "image_1_uid": b, "caption": caption} for a, b, caption in rows]
    if images:
        table = [row | {"jpg_0": png(n), "jpg_1": png(100 + n)} for n, row in enumerate(table)]
    pq.write_table(pa.Table.from_pylist(table), folder / name, row_group_size=1)
    return folder


def test_crc32c_check_value():
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(b"") == 0


@pytest.mark.parametrize("packed", [True, False])
def test_examples_come_back_as_written(tmp_path, packed):
    values = {"name": [b"a", b"\x00\xff" * 300], "score": [0.25, -1e30, 0.0], "count": [3, -1, 2**62, 0]}
    file = tfrecord(tmp_path / "two.tfrecord", serialized(packed, **values), serialized(packed, name=b"x"))
    (where, first), (_, second) = examples(file)
    assert where == f"{file}: record 1"
    assert first["name"] == values["name"] and first["count"] == values["count"]
    assert first["score"] == [0.25, float(np.float32(-1e30)), 0.0] and second == {"name": [b"x"]}


def test_a_damaged_file_is_named_with_its_record(tmp_path):
    file = tfrecord(tmp_path / "two.tfrecord", serialized(a=b"first" * 9), serialized(a=b"second" * 9))
    whole = file.read_bytes()
    second = 16 + len(serialized(a=b"first" * 9))

    def refused(data):
        file.write_bytes(data)
        with pytest.raises(DataError) as error:
            list(examples(file))
        return str(error.value).removeprefix(f"{file}: ")

    assert refused(whole[:-3]).startswith("record 2: wanted ") and "cut off" in refused(whole[:-3])
    assert "record 2: wanted data that fits its checksum" in refused(whole[:-20] + b"?" + whole[-19:])
    assert "record 2: wanted a TFRecord header" in refused(whole[:second] + b"?" + whole[second + 1 :])
    assert "record 2: wanted a TFRecord header" in refused(whole[: second + 5])
    assert "Git LFS pointer" in refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:6db1\nsize 9163974\n")
    file.write_bytes(b"")
    assert list(examples(file)) == []
    for body in (b"\x0f", b"\x0a\xff\xff\xff\xff\x0f", b"no protobuf at all", b""):
        tfrecord(file, body)
        with pytest.raises(DataError, match=r"record 1: wanted a tf.train.Example"):
            list(examples(file))


def test_richhf_with_pick_a_pic(tmp_path):
    source = tmp_path / "richhf"
    tfrecord(
        source / "train.tfrecord",
        record("u1", 7 / 12, 1.0, 0.0),
        record("u2", 0.25, 0.5, 11 / 12),
        record("lost", 0.5, 0.5, 0.5),
    )
    tfrecord(source / "dev.tfrecord", record("u3", 7 / 12, 0.0, 1.0))
    pick = pick_a_pic(
        tmp_path / "pick", [("u0", "u9", "a dog"), ("u1", "u2", "a fox"), ("u2", "u7", "a fox"), ("u8", "u3", "a bear")]
    )
    summary = richhf.convert(source, None, tmp_path / "out", pickapic=pick)
    items = {item.id: item for item in read_annotations(tmp_path / "out", decode_images=True)}
    # s = 1 + 4 x: 7/12 -> 3.333 (3.5), 1 -> 5, 0 -> 1, 11/12 -> 4.667 (4.5)
    assert items["u1"].scores == {"alignment": 3.5, "aesthetics": 5.0, "plausibility": 1.0}
    assert items["u2"].scores == {"alignment": 2.0, "aesthetics": 3.0, "plausibility": 4.5}
    assert items["u3"].scores == {"alignment": pytest.approx(10 / 3, abs=1e-6), "aesthetics": 1.0, "plausibility": 5.0}
    assert [items[u].split for u in ("u1", "u2", "u3")] == ["train", "train", "dev"]
    assert (
        items["u1"].prompt == items["u2"].prompt == "a fox"
        and items["u1"].group == items["u2"].group
        and items["u3"].prompt == "a bear"
    )
    assert [items[u].image.read_bytes() for u in ("u1", "u2", "u3")] == [png(1), png(101), png(103)]
    assert {p.name for p in (tmp_path / "out/images").iterdir()} == {"u1.jpg", "u2.jpg", "u3.jpg"}, (
        "no image that nobody rated"
    )
    assert (
        summary.skipped == {"image not in Pick-a-Pic, so no prompt": 1}
        and summary.pairs == 3
        and "overall_score" in summary.notes[0]
    )


@pytest.mark.parametrize(
    ("artifact_to", "dimensions"), [("realism", {"realism"}), ("both", {"realism", "plausibility"})]
)
def test_where_the_artifact_score_goes(tmp_path, artifact_to, dimensions):
    source = tfrecord(tmp_path / "test.tfrecord", record("u1", 0.5, 0.5, 1.0))
    pick = pick_a_pic(tmp_path / "pick", [("u1", "u2", "a fox")], images=False)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/u1.png").write_bytes(png(0))
    richhf.convert(source, tmp_path / "images", tmp_path / "out", pickapic=pick, artifact_to=artifact_to)
    (item,) = read_annotations(tmp_path / "out")
    assert set(item.scores) - {"alignment", "aesthetics"} == dimensions and all(
        item.scores[d] == 5.0 for d in dimensions
    )
    with pytest.raises(ConfigError, match="wanted artifact_to plausibility, realism, both, got 'all'"):
        richhf.convert(source, None, tmp_path / "more", pickapic=pick, artifact_to="all")


def test_richhf_from_the_mirror_with_captions_and_images(tmp_path):
    scores = {"misalignment_score": 0.5, "aesthetics_score": 0.25, "artifact_score": 1.0}
    row = {"filename": "train/u1.png", "caption": "a fox", "image": png(3)} | scores
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train-00000-of-00001.parquet")
    richhf.convert(tmp_path / "train-00000-of-00001.parquet", None, tmp_path / "out")
    (item,) = read_annotations(tmp_path / "out")
    assert item.scores == {"alignment": 3.0, "aesthetics": 2.0, "plausibility": 5.0} and item.prompt == "a fox"
    assert item.image.read_bytes() == png(3)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (record("u2", 1.5, 0.5, 0.5), ["record 2", "[0, 1] in 'misalignment_score'", "1.5"]),
        (record("u2", 0.5, 0.5, 0.5, aesthetics_score=None), ["record 2", "wanted a value in 'aesthetics_score'"]),
        (record("u2", 0.5, 0.5, 0.5, filename=b"train/u 2;.png"), ["record 2", "identifier in 'filename'", "u 2;"]),
        (record("u2", 0.5, 0.5, 0.5, filename=None), ["record 2", "wanted a value in 'filename'"]),
    ],
)
def test_a_broken_richhf_record_is_named(tmp_path, broken, words):
    source = tfrecord(tmp_path / "train.tfrecord", record("u1", 0.5, 0.5, 0.5), broken)
    pick = pick_a_pic(tmp_path / "pick", [("u1", "u2", "a fox")])
    with pytest.raises(DataError) as error:
        richhf.convert(source, None, tmp_path / "out", pickapic=pick)
    assert str(error.value).startswith(f"{source}: record 2: ") and all(word in str(error.value) for word in words), (
        error.value
    )
    assert richhf.convert(source, None, tmp_path / "out", pickapic=pick, skip_broken=True).skipped == {
        "broken record": 1
    }


def test_richhf_needs_prompts_from_somewhere(tmp_path):
    source = tfrecord(tmp_path / "train.tfrecord", record("u1", 0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="TFRecords hold no prompts; name the Parquet files of Pick-a-Pic v1"):
        richhf.convert(source, None, tmp_path / "out")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"train-0.parquet: wanted the columns of Pick-a-Pic, missing caption"):
        richhf.convert(source, None, tmp_path / "out", pickapic=tmp_path / "train-0.parquet")


def test_truncated_length_is_not_taken_for_data(tmp_path):
    """A length beyond any record, with a correct checksum, must not be read into memory."""
    from zr_ray.data.adapters.tfrecord import _masked

    length = struct.pack("<Q", 1 << 40)
    (tmp_path / "bomb.tfrecord").write_bytes(length + struct.pack("<I", _masked(crc32c(length))))
    with pytest.raises(DataError, match="wanted a TFRecord header"):
        list(examples(tmp_path / "bomb.tfrecord"))
