"""Augmentation of whole batches, in torch."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def random_affine(
    images: Tensor, out_px: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Rotate by any angle, flip and scale about the centre, and take the central ``out_px`` square.

    Parameters
    ----------
    images
        uint8 (N, S, S, 3). Where the rotated square leaves it, white comes in.
    out_px
        Side of the output.
    scale
        Least and greatest magnification.
    rng
        Source of chance.

    Returns
    -------
    images
        float (N, 3, out_px, out_px), 0 to 255.
    matrices
        float (N, 2, 2): multiply an offset from the *input's* centre (x, y; px) to get the offset from
        the output's centre.
    """
    n, side = images.shape[:2]
    angle = rng.uniform(0, 2 * math.pi, n)
    factor = np.exp(rng.uniform(math.log(scale[0]), math.log(scale[1]), n))
    flip = rng.choice([-1.0, 1.0], n)
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    forward = torch.tensor(np.stack([cos * flip, -sin, sin * flip, cos], -1).reshape(n, 2, 2)).float()
    # affine_grid wants output → input, both in units of half a side.
    theta = torch.cat([torch.linalg.inv(forward) * (out_px / side), torch.zeros(n, 2, 1)], dim=2)
    grid = F.affine_grid(theta, [n, 3, out_px, out_px], align_corners=False)
    ink = 255 - images.permute(0, 3, 1, 2).float()  # zero padding of the ink is white
    return 255 - F.grid_sample(ink, grid, align_corners=False), forward


def stain_jitter(
    images: Tensor, gain: float, shift: float, strength: float, rng: np.random.Generator
) -> Tensor:
    """Vary stain and scanner: scale and shift the optical density (Beer–Lambert).

    float (N, 3, H, W), 0 to 255, in and out. ``gain`` and ``shift`` are standard deviations of each channel's
    (logarithmic) factor and offset, ``strength`` of a factor common to all channels.
    """
    n = len(images)
    density = -torch.log((images.clamp(0, 255) + 1) / 256)
    factors = rng.normal(0, gain, (n, 3, 1, 1)) + rng.normal(0, strength, (n, 1, 1, 1))
    gains = torch.tensor(np.exp(factors)).float()
    shifts = torch.tensor(rng.normal(0, shift, (n, 3, 1, 1))).float()
    return (256 * torch.exp(-(density * gains + shifts)) - 1).clamp(0, 255)


def colour_mixing(images: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """Vary the hue as scanners and stains do: mix the channels' optical densities.

    float (N, 3, H, W), 0 to 255, in and out. Each image gets a matrix near the identity, whose entries vary
    with standard deviation ``amount``; its rows sum to 1, so that grey stays grey.
    """
    if amount == 0:
        return images
    density = -torch.log((images.clamp(0, 255) + 1) / 256)
    matrices = torch.eye(3) + torch.tensor(rng.normal(0, amount, (len(images), 3, 3))).float()
    matrices = matrices / matrices.sum(dim=2, keepdim=True).clamp(min=0.3)
    mixed = torch.einsum("nij,njhw->nihw", matrices, density).clamp(min=0)
    return (256 * torch.exp(-mixed) - 1).clamp(0, 255)


def random_jpeg(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Compress a share of the images, uint8 (N, H, W, 3), as JPEG of quality 30 to 90."""
    pictures = images.numpy().copy()
    for i in np.flatnonzero(rng.random(len(pictures)) < share):
        file = BytesIO()
        Image.fromarray(pictures[i]).save(file, "JPEG", quality=int(rng.integers(30, 91)))
        pictures[i] = np.asarray(Image.open(file))
    return torch.from_numpy(pictures)


def random_focus(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Blur or sharpen a share of the images (unsharp masking with a 5 px Gaussian), as scanners do.

    float (N, 3, H, W), 0 to 255, in and out.
    """
    if share == 0:
        return images
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(3, 1, 5, 5)
    soft = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    # amount -1 is the blurred image, 0 the image itself, 1 clearly sharpened
    amount = rng.uniform(-1.0, 1.0, len(images)) * (rng.random(len(images)) < share)
    weights = torch.tensor(amount).float().view(-1, 1, 1, 1)
    return (images + weights * (images - soft)).clamp(0, 255)


def mix_up(images: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blend each image and its target with another of the batch (Zhang et al. 2018).

    float (N, …), in and out. The share of each image itself is at least a half, so
    that what belongs to it alone (a subtype, a domain) may keep its label. ``alpha`` 0: unchanged.
    """
    if alpha == 0:
        return images, targets
    drawn = rng.beta(alpha, alpha, len(images))
    own = torch.tensor(np.maximum(drawn, 1 - drawn)).float()
    other = torch.from_numpy(rng.permutation(len(images)))

    def blend(values: Tensor) -> Tensor:
        share = own.view(-1, *[1] * (values.ndim - 1))
        return share * values + (1 - share) * values[other]

    return blend(images), blend(targets)


def gaussian_noise(images: Tensor, sd: float, rng: np.random.Generator) -> Tensor:
    """Add noise of standard deviation ``sd`` to float images of any layout, 0 to 255."""
    if sd == 0:
        return images
    noise = rng.normal(0, sd, images.shape).astype(np.float32)
    return (images + torch.from_numpy(noise)).clamp(0, 255)


def to_uint8(images: Tensor) -> Tensor:
    """Float (N, 3, H, W), 0 to 255, to uint8 (N, H, W, 3): what the networks take."""
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
