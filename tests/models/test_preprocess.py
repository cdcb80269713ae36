"""Differentiable preprocessing equals both Hugging Face backends on bytes, and its gradient is right."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from zr_ray.errors import DataError, JudgeError
from zr_ray.models.preprocess import TOLERANCE, PixelPreprocessor

BACKENDS = {"torchvision": Qwen2VLImageProcessor, "pil": Qwen2VLImageProcessorPil}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, judge_path):
    """The built-in processor, and one with Qwen-VL's real patch size, CLIP's mean and std and a range of areas."""
    real = tmp_path_factory.mktemp("real")
    Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 160 * 160}, **CLIP
    ).save_pretrained(real)
    return {"builtin": judge_path, "real": real}


def pictures(height, width, count=3):
    """uint8 images: noise (the worst case for a resize), and smooth color."""
    rng = np.random.default_rng(height * 1000 + width)
    noise = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
    smooth = [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), 3)
        for _ in range(count)
    ]
    return noise + [np.asarray(image) for image in smooth]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["builtin", "real"])
@pytest.mark.parametrize("size", [(64, 64), (100, 80), (37, 52), (256, 256), (50, 200), (63, 65)])
def test_equals_the_hugging_face_processor_on_bytes(folders, backend, kind, size):
    ours = PixelPreprocessor.load(folders[kind])
    reference = BACKENDS[backend].from_pretrained(folders[kind])(images=pictures(*size), return_tensors="pt")
    patches, grid = ours.patches_of(pictures(*size))
    assert grid.tolist() == np.asarray(reference["image_grid_thw"]).tolist()
    difference = (torch.as_tensor(np.asarray(reference["pixel_values"])) - patches).abs().view(len(patches), 3, -1)
    if ours.resized(*size) == size:
        assert difference.max() < TOLERANCE["untouched"]
    else:
        levels = difference * torch.tensor(ours.std)[:, None] * 255
        assert 0 < levels.max() < TOLERANCE["resized"] and levels.mean() < 0.4


def test_images_of_several_sizes_keep_their_order(folders):
    ours = PixelPreprocessor.load(folders["real"])
    images = [pictures(64, 64)[0], pictures(100, 80)[0], pictures(64, 64)[1], pictures(50, 200)[0]]
    patches, grid = ours.patches_of(images)
    parts = patches.split(grid.prod(-1).tolist())
    for image, part, own in zip(images, parts, grid, strict=True):
        alone, alone_grid = ours.patches_of([image])
        assert torch.equal(part, alone) and torch.equal(own, alone_grid[0])


@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_gradient_is_right_with_and_without_a_resize(folders, size):
    ours = PixelPreprocessor.load(folders["builtin"])
    images = 0.3 + 0.4 * torch.rand(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(ours(images)[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((ours(pixels)[0] * weights).sum(), pixels)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-6
    numeric = sum(sign * (ours(images + sign * step * direction)[0] * weights).sum() for sign in (1, -1)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-6)


def test_a_pixel_lands_in_its_patch(folders):
    """One bright pixel, no resize: patch, channel, frame and place follow by hand from the merge-block order."""
    ours = PixelPreprocessor.load(folders["builtin"])
    assert (ours.patch_size, ours.merge_size, ours.temporal_patch_size) == (8, 2, 2)
    images = torch.zeros(1, 3, 64, 64)
    images[0, 1, 19, 45] = (
        1.0  # patch row 2, column 5: block (1, 2) of 4 x 4, inside it (0, 1); pixel (3, 5) of the patch
    )
    patches, _ = ours(images)
    bright = (patches > 0).nonzero().tolist()
    patch = (1 * 4 + 2) * 4 + 0 * 2 + 1
    assert bright == [[patch, (1 * 2 + frame) * 64 + 3 * 8 + 5] for frame in (0, 1)]


def test_other_pixels_and_processors_are_refused(folders, tmp_path):
    ours = PixelPreprocessor.load(folders["builtin"])
    with pytest.raises(DataError, match="divide bytes by 255"):
        ours(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(DataError, match="float tensor"):
        ours(torch.zeros(3, 8, 8))
    with pytest.raises(DataError, match="ratio below 200"):
        ours(torch.zeros(1, 3, 1, 400))
    Qwen2VLImageProcessor(do_normalize=False).save_pretrained(tmp_path)
    with pytest.raises(JudgeError, match="must resize, rescale by 1/255 and normalize"):
        PixelPreprocessor.load(tmp_path)
    assert ours.fingerprint != PixelPreprocessor.load(folders["real"]).fingerprint
