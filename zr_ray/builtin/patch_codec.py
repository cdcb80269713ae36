"""The generator's codec: a linear lapped transform of 4x4 patches, written exactly into diffusers' `AutoencoderDC`.

Latents are 16x16 vectors of C numbers for a 64x64 image. The encoder is one linear map from the 12x12 pixels around a
4x4 patch, the decoder one from 3x3 latents to a patch: a small grown-up sibling of the PCA of patches, whose seams it
removes. It is fitted in seconds where a convolutional autoencoder needs an hour (`fit_codec`), it has no opinion of its
own about what a scene looks like, and the gradient of a reward passes through it as through a matrix.

How a linear map fits in `AutoencoderDC`: pixel-unshuffle short cuts carry the pixels, residual blocks and their
convolutions are zero, and the two parts that are not linear are put where they are: a thirteenth channel of height
`CARRIER` makes the RMS norm a division by a constant (relative error below 12 / (2 CARRIER^2)), and the norm's bias
keeps the ReLU open.
Left out on purpose: a KL term, an adversarial loss; there is nothing stochastic and nothing to hallucinate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 4
"""Pixels; one latent position stands for a patch of this side."""
PATCH_NUMBERS = 3 * PATCH * PATCH
CARRIER = 1000.0
"""Value of the constant channel in front of the decoder's RMS norm, against pixel values in [-1, 1]."""
OPEN = 8.0
"""Added before the decoder's ReLU and taken away after it: pixel values lie far above -8, so the ReLU passes all."""


def to_patches(pixels: Tensor) -> Tensor:
    """[N, 3, H, W] -> [N, 48, H/4, W/4], in the channel order of two pixel-unshuffles, which is that of
    `AutoencoderDC`."""
    return F.pixel_unshuffle(F.pixel_unshuffle(pixels, 2), 2)


def to_pixels(patches: Tensor) -> Tensor:
    """Inverse of `to_patches`."""
    return F.pixel_shuffle(F.pixel_shuffle(patches, 2), 2)


def fit_codec(pixels: Tensor, channels: int, *, steps: int, whitening: float, seed: int) -> dict[str, Tensor]:
    """Least-squares lapped transform: encoder and decoder jointly by Adam from the PCA of patches, then the decoder in
    closed form.

    Args: pixels: [N, 3, H, W] in [-1, 1]. channels: C, numbers a latent position. steps: of Adam. whitening: 0 keeps
        the channels' natural spread, 1 gives all of them the same; the mean square over channels is 1 in any case.
        seed: of the batches.
    Returns: encoder weight [C, 48, 3, 3], encoder bias [C], decoder weight [48, C, 3, 3], decoder bias [48]. Latents
        have mean 0 per channel and uncorrelated channels, ordered by falling spread.   Raises: ValueError if C is not
        in 1..48."""
    if not 1 <= channels <= PATCH_NUMBERS:
        raise ValueError(f"channels must be between 1 and {PATCH_NUMBERS}, got {channels}")
    patches = to_patches(pixels)
    encoder, decoder, bias = _joint_fit(patches, channels, steps, seed)
    latents = F.conv2d(patches, encoder, padding=1)
    flat = latents.movedim(1, -1).reshape(-1, channels).double()
    variances, axes = torch.linalg.eigh(torch.cov(flat.T))
    variances, axes = variances.flip(0).clamp_min(1e-12), axes.flip(1)
    scale = variances.sqrt() ** -whitening
    scale /= (scale**2 * variances).mean().sqrt()
    mix = (axes * scale).T.float()  # [C, C] old channels -> new ones
    encoder = torch.einsum("cd,dkxy->ckxy", mix, encoder)
    encoder_bias = -mix @ flat.mean(0).float()
    latents = F.conv2d(patches, encoder, encoder_bias, padding=1)
    decoder, bias = _decoder_in_closed_form(latents, patches)
    return {"encoder_weight": encoder, "encoder_bias": encoder_bias, "decoder_weight": decoder, "decoder_bias": bias}


def _joint_fit(patches: Tensor, channels: int, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Adam on the reconstruction error; starts at the first `channels` principal components of single patches."""
    random = torch.Generator().manual_seed(seed)
    sample = patches.movedim(1, -1).reshape(-1, PATCH_NUMBERS)
    mean = sample.mean(0)
    axes = torch.linalg.eigh(torch.cov(sample.T))[1].flip(1)[:, :channels]  # [48, C]
    encoder = torch.zeros(channels, PATCH_NUMBERS, 3, 3)
    encoder[:, :, 1, 1] = axes.T
    decoder = torch.zeros(PATCH_NUMBERS, channels, 3, 3)
    decoder[:, :, 1, 1] = axes
    values = [v.requires_grad_() for v in (encoder, decoder, mean - axes @ (axes.T @ mean))]
    optimizer = torch.optim.Adam(values, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        batch = patches[torch.randint(len(patches), (64,), generator=random)]
        rebuilt = F.conv2d(F.conv2d(batch, values[0], padding=1), values[1], values[2], padding=1)
        optimizer.zero_grad()
        (rebuilt - batch).square().mean().backward()
        optimizer.step()
        schedule.step()
    return tuple(v.detach() for v in values)


def _decoder_in_closed_form(latents: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge-free least squares from 3x3 latents to a patch. Returns: weight [48, C, 3, 3], bias [48]."""
    channels = latents.shape[1]
    inputs = F.unfold(latents, 3, padding=1).movedim(1, -1).reshape(-1, channels * 9).double()
    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    targets = patches.flatten(2).movedim(1, -1).reshape(-1, PATCH_NUMBERS).double()
    gram = inputs.T @ inputs
    gram.diagonal().add_(1e-7 * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, inputs.T @ targets).float()  # [9C + 1, 48]
    return solution[:-1].T.reshape(PATCH_NUMBERS, channels, 3, 3).contiguous(), solution[-1].contiguous()


def build_autoencoder(codec: dict[str, Tensor]):
    """The `AutoencoderDC` that computes exactly the linear maps of `fit_codec` (see the file's header); pixel values in
    [-1, 1]."""
    from diffusers import AutoencoderDC

    channels = len(codec["encoder_weight"])
    low, wide = 3 * 4 + 1, 4 * (3 * 4 + 1)  # with the carrier channel
    model = AutoencoderDC(
        latent_channels=channels,
        encoder_block_out_channels=(12, 12, PATCH_NUMBERS),
        encoder_layers_per_block=(0, 1, 0),
        encoder_qkv_multiscales=((), (), ()),
        decoder_block_out_channels=(low, low, wide),
        decoder_layers_per_block=(0, 1, 0),
        decoder_qkv_multiscales=((), (), ()),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        scaling_factor=1.0,
    )
    # ZImagePipeline reads these two, AutoencoderDC's own config has neither: two halvings, latents without an offset
    model.register_to_config(block_out_channels=(low, low, wide), shift_factor=0.0)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
        for rgb in range(3):
            model.encoder.conv_in.conv.weight[rgb, rgb, 1, 1] = 1.0
        model.encoder.conv_out.weight.copy_(codec["encoder_weight"])
        model.encoder.conv_out.bias.copy_(codec["encoder_bias"])
        model.decoder.conv_in.weight[:PATCH_NUMBERS] = codec["decoder_weight"]
        model.decoder.conv_in.bias[:PATCH_NUMBERS] = codec["decoder_bias"]
        model.decoder.conv_in.bias[PATCH_NUMBERS:] = CARRIER
        model.decoder.norm_out.weight.fill_(CARRIER / low**0.5)
        model.decoder.norm_out.weight[-1] = 0.0
        model.decoder.norm_out.bias.fill_(OPEN)
        for number in range(3 * 4):
            model.decoder.conv_out.conv.weight[number, number, 1, 1] = 1.0
        model.decoder.conv_out.conv.bias.fill_(-OPEN)
    return model.eval()
