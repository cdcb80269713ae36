"""Z-Image's adapter against diffusers' own pipeline: same noise, same image; and the rollout against its own steps."""

import pytest
import torch

from zr_ray.errors import CheckpointError, DataError
from zr_ray.models.generators.adapter import Noise, Picture, rollout
from zr_ray.models.generators.load import generator_folder, load_adapter

PROMPTS = ["small red circle", "big blue square left of small white cross"]


@pytest.fixture(scope="module")
def adapter():
    return load_adapter(generator_folder("builtin"), Picture(64, 64, 9))


def images(adapter, noise, steps, guidance):
    conditions, empty = adapter.encode(PROMPTS), adapter.encode(["", ""])

    def velocity(x, sigma):
        v = adapter.velocity(x, sigma, conditions)
        return adapter.guide(v, adapter.velocity(x, sigma, empty), guidance) if adapter.guided(guidance) else v

    with torch.no_grad():
        return adapter.decode(rollout(velocity, noise, adapter.sigmas(steps)).clean)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("packed", [False, True])
def test_same_noise_same_image_as_the_pipeline(adapter, guidance, packed):
    noise = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(0))
    wanted = adapter.pipeline(  # a copy of the list: the pipeline writes its template into it
        list(PROMPTS),
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise,
        max_sequence_length=16,
        output_type="pt",
    ).images
    if packed:
        from copy import deepcopy

        adapter = type(adapter)(deepcopy(adapter.pipeline), adapter.picture)  # packing replaces attention processors
        adapter.pack(compiled=False)
    assert (images(adapter, noise, 4, guidance) - wanted).abs().max() < (1e-4 if packed else 1e-5)


def test_schedule_is_the_pipelines(adapter):
    adapter.pipeline(PROMPTS[:1], height=64, width=64, num_inference_steps=8, guidance_scale=0.0, output_type="latent")
    assert torch.equal(adapter.sigmas(8), adapter.pipeline.scheduler.sigmas)


def test_decoder_passes_gradients(adapter):
    latents = torch.zeros(1, *adapter.latent_shape, requires_grad=True)
    adapter.decode(latents).sum().backward()
    assert latents.grad.abs().max() > 0


def test_rollout_of_a_constant_velocity_and_its_noise():
    sigmas = torch.tensor([1.0, 0.6, 0.6, 0.0])
    start, calls = torch.zeros(2, 3), []

    def velocity(x, sigma):
        calls.append(float(sigma[0]))
        return torch.ones_like(x)

    made = rollout(velocity, start, sigmas)
    assert calls == pytest.approx([1.0, 0.6])  # a step of no length costs no call
    assert len(made.states) == 4 and torch.allclose(made.clean, torch.full((2, 3), -1.0))
    noisy = rollout(velocity, start, sigmas, Noise("flow", 0.7, (0,)), lambda step: torch.full((2, 3), float(step + 1)))
    assert not torch.allclose(noisy.states[1], made.states[1])
    assert torch.allclose(noisy.clean - noisy.states[2], made.clean - made.states[2])


def test_refusals(adapter, tmp_path):
    with pytest.raises(DataError, match="may have 9 tokens"):
        adapter.encode(["small red circle left of big blue square on top"])
    with pytest.raises(CheckpointError, match="without model_index.json"):
        generator_folder(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "SanaPipeline"}')
    with pytest.raises(CheckpointError, match="SanaPipeline; generators with an adapter"):
        generator_folder(str(tmp_path))
