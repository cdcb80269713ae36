"""The cheaper ways through Qwen3-VL's modules against the modules as they come: scores, gradients, names."""

import pytest
import torch

from zr_ray.models import judge as judges
from zr_ray.models.judge_text import judge_folder
from zr_ray.models.shortcuts import ATTENTION, Norm, Patches, VisionSizes
from zr_ray.models.student import Student

PROMPTS = ("small red circle", "large green star above blue square", "yellow square")


def made(monkeypatch, plain: bool, dtype: torch.dtype = torch.float32) -> Student:
    with monkeypatch.context() as patched:
        if plain:
            patched.setattr(judges, "take_shortcuts", lambda model: None)
        return Student(judge_folder("builtin"), dtype)


@pytest.fixture()
def both(monkeypatch) -> tuple[Student, Student]:
    return made(monkeypatch, plain=True), made(monkeypatch, plain=False)


def images(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def test_they_are_taken_and_change_no_name(both):
    plain, short = both
    tower = short.judge.model.model.visual
    assert isinstance(tower.patch_embed.proj, Patches) and tower.config._attn_implementation == ATTENTION
    norms = sum(isinstance(module, Norm) for module in short.modules())
    assert norms == sum(type(module).__name__ == "Qwen3VLTextRMSNorm" for module in plain.modules()) > 10
    assert not any(isinstance(module, (Norm, Patches)) for module in plain.modules())
    assert list(plain.state_dict()) == list(short.state_dict())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("side", [64, 80])
def test_scores_and_pixel_gradients_are_those_of_the_modules_as_they_come(both, count, side):
    found = []
    for student in both:
        pixels = images(count, side).requires_grad_()
        scores = student(pixels, PROMPTS[:count])
        scores.mu.sum().backward()
        found.append((scores.log_q.detach(), pixels.grad))
    torch.testing.assert_close(found[1][0], found[0][0], atol=2e-5, rtol=0)
    largest = found[0][1].abs().max()
    assert (found[1][1] - found[0][1]).abs().max() < 1e-4 * largest and largest > 0


def test_parameter_gradients_too(both):
    found = []
    for student in both:
        student.requires_grad_(True)
        student(images(2), PROMPTS[:2]).mu.sum().backward()
        found.append({name: p.grad for name, p in student.judge.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-7, name


def test_images_of_several_sizes_in_one_forward(both):
    """Their attention is image after image, as it comes; what depends on sizes is in their order."""
    grids = torch.tensor([[1, 8, 8], [1, 4, 12], [1, 8, 8]])
    short = both[1].judge
    sizes = VisionSizes(short.model)(grids)
    assert "equal_images" not in sizes and len(sizes["position_ids"]) == int(grids.prod(-1).sum())
    width = short.model.model.visual.patch_embed.proj.weight[0].numel()
    patches = torch.rand(int(grids.prod(-1).sum()), width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain = both[0].judge.model.model.get_image_features(patches, grids, return_dict=True)
        ours = short.model.model.get_image_features(patches, grids, return_dict=True, **sizes)
    for one, other in zip(plain.pooler_output, ours.pooler_output, strict=True):
        assert (other - one).abs().max() < 1e-5 * one.abs().max()


def test_an_image_does_not_see_its_neighbors(both):
    """Attention over images of one size is one call, and still inside each image."""
    student, pixels = both[1], images(3).requires_grad_()
    student(pixels, PROMPTS).mu[1].sum().backward()
    assert pixels.grad[1].abs().max() > 0
    assert pixels.grad[0].abs().max() == pixels.grad[2].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_round_as_the_modules_do(monkeypatch, dtype):
    norm = next(m for m in made(monkeypatch, plain=False, dtype=dtype).modules() if isinstance(m, Norm))
    x = torch.randn(2, 5, norm.weight.numel(), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(norm(x), super(Norm, norm).forward(x))


def test_norms_are_the_same_to_the_last_bit(both):
    norm = next(m for m in both[1].modules() if isinstance(m, Norm))
    x = torch.randn(4, 9, norm.weight.numel(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(x), super(Norm, norm).forward(x))
