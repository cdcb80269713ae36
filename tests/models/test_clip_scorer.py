"""The CLIP-family scorer against transformers' own processor and model: pixels, scores, the gradient, long prompts."""

import pytest
import torch

from tests.clip import write_tiny_clip
from zr_ray.errors import JudgeError
from zr_ray.models.clip_scorer import ClipPixels, ClipScorer

PROMPTS = ["small red circle", "blue", "a b c", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def scorer(folder):
    return ClipScorer(folder)


def pictures(height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8, generator=generator)


def by_transformers(folder, images, prompts):
    """(pixels, logits of each image with its own prompt) by the classes that the folder names."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    pixels = AutoImageProcessor.from_pretrained(folder)(images=list(images.movedim(1, -1).numpy()), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        made = CLIPModel.from_pretrained(folder).eval()(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels.pixel_values
        )
    return pixels.pixel_values, made.logits_per_image.diagonal()


@pytest.mark.parametrize(
    ("size", "pixel", "logit"),
    # std units and logits; a resized pixel differs by the processor's rounding to 8 bits, here at most 3 levels
    [((32, 32), 1e-6, 1e-5), ((64, 64), 0.05, 0.05), ((64, 96), 0.05, 0.05), ((97, 70), 0.05, 0.05)],
)
def test_pixels_and_scores_are_those_of_transformers(folder, scorer, size, pixel, logit):
    images = pictures(*size)
    pixels, logits = by_transformers(folder, images, PROMPTS[:3] + ["x"])
    floats = images.float() / 255
    torch.testing.assert_close(scorer.pixels(floats), pixels, atol=pixel, rtol=0)
    made = scorer(floats, PROMPTS[:3] + ["x"])
    torch.testing.assert_close(made[:, 0], logits, atol=logit, rtol=0)
    torch.testing.assert_close(made[:, 1] * scorer.model.logit_scale.exp(), made[:, 0])
    assert made[:, 1].abs().max() <= 1 and made[:, 0].std() > 1e-3


def test_each_image_is_scored_with_its_own_prompt(scorer):
    images = pictures(32, 32).float() / 255
    together = scorer(images, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[i], scorer(images[i : i + 1], [prompt])[0])
    assert not torch.allclose(together[0], scorer(images[:1], ["blue"])[0])


def test_the_gradient_is_the_slope_of_the_score(scorer):
    """A central difference along a random direction, through resize and crop, in float64."""
    exact = ClipScorer(scorer.folder, torch.float64)
    images = (pictures(40, 56)[:1].double() / 255 * 0.8 + 0.1).requires_grad_()
    score = lambda x: exact(x, ["small red circle"])[0, 0]
    (gradient,) = torch.autograd.grad(score(images), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        slope = (score(images + step * direction) - score(images - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5) and abs(float(slope)) > 1e-3
    assert all(value.grad is None for value in exact.parameters())


def test_a_long_prompt_is_cut_only_on_request(folder, scorer):
    long = "abcdefgh ijklmn opqrst"
    assert scorer.tokens(long) == 22 and scorer.longest == 16
    cut = ClipScorer(folder, cut_prompts=True)
    image = pictures(32, 32)[:1].float() / 255
    torch.testing.assert_close(cut(image, [long]), cut(image, ["abcdefgh ijklmn"]))  # 14 letters, start and end
    assert not torch.allclose(cut(image, [long]), cut(image, ["abcdefgh"]))


def test_a_processor_of_another_kind_is_refused(folder, tmp_path):
    import json
    import shutil

    for key, value, said in (("do_normalize", False, "and normalize"), ("rescale_factor", 1 / 127.5, "1/255")):
        other = tmp_path / key
        shutil.copytree(folder, other)
        told = json.loads((other / "preprocessor_config.json").read_text())
        (other / "preprocessor_config.json").write_text(json.dumps(told | {key: value}))
        with pytest.raises(JudgeError, match=said):
            ClipPixels.load(other)
    with pytest.raises(JudgeError, match="must hold an image processor"):
        ClipPixels.load(tmp_path)
