"""States in 8 bits in plain torch: blocks of codes with a scale each (Dettmers et al. 2021, arXiv 2110.02861)."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK_SIZE = 256
"""Elements that share a scale, in the order of the indices."""
SCALE_ITSELF = 255
"""The code of what is the scale."""


class Codes(NamedTuple):
    """Numbers as codes.

    Example:
        >>> Codes(*encode(torch.tensor([0.5, -2.0, 0.0]), signed=True), signed=True).decode()
        tensor([ 0.4953, -2.0000,  0.0000])
    """

    codes: Tensor
    """uint8, of the shape of what they stand for."""
    scale: Tensor
    """float32, one for each block."""
    signed: bool
    """Whether they stand for negative numbers, too."""

    def decode(self) -> Tensor:
        """The numbers, in float32.

        Raises:
            RuntimeError: other scales than one for each block.
        """
        return decode(self.codes, self.scale, book(signed=self.signed))


def blocks_of(numel: int, size: int = BLOCK_SIZE) -> int:
    """The number of blocks, of which the last may be shorter."""
    return -(-numel // size)


@cache
def book(*, signed: bool) -> Tensor:
    """What the 256 codes stand for, as fractions of a block's scale: ascending, the closer the smaller they are.

    Args:
        signed: negative numbers, too.

    Raises:
        TypeError: an argument without its name.

    Example:
        >>> book(signed=False)[:3]
        tensor([0.0000e+00, 3.2500e-07, 7.7500e-07])
    """
    decades = []
    for i in range(7):
        # The middles of equal parts of the decade up to 10^(i - 6), in units that make them whole numbers.
        parts = 2**i if signed else 2 ** (i + 1)
        middles = 2 * parts + 9 * (2 * torch.arange(parts) + 1)
        decades.append(middles.float() * torch.tensor(10.0 ** (i - 7) / (2 * parts), dtype=torch.float32))
    positive = torch.cat([*decades, torch.ones(1, dtype=torch.float32)])
    negative = -positive[:-1].flip(0) if signed else positive[:0]
    return torch.cat([negative, torch.zeros(1, dtype=torch.float32), positive])


def encode(x: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The codes of numbers, and the scale of each block: its number of greatest magnitude, whose code stands for 1.

    Others become the nearest number that has a code; but where none is negative, no positive
    number becomes zero. A block with a NaN or an infinity is all NaN; one without a normal float32 is all zero.

    Args:
        x: of any shape and real dtype; taken as float32.
        signed: whether negative numbers are kept or become zero.

    Returns:
        The codes, uint8 and contiguous, of the shape of ``x``; the scales, float32.

    Raises:
        TypeError: an argument without its name.

    Example:
        >>> encode(torch.tensor([0.5, -2.0, 0.0]), signed=True)
        (tensor([ 53, 255, 127], dtype=torch.uint8), tensor([-2.]))
    """
    flat = x.detach().float().reshape(-1)
    blocks = pad(flat, (0, -flat.numel() % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    blocks = blocks if signed else blocks.clamp_min(0)
    greatest, least = blocks.amax(-1), blocks.amin(-1)
    scale = torch.where(greatest >= -least, greatest, least)
    is_normal = scale.isfinite() & (scale.abs() >= torch.finfo(torch.float32).tiny)
    fractions = (blocks / scale.unsqueeze(-1)).double()
    values = book(signed=signed).to(x.device, torch.float64)
    limits = (values[:-1] + values[1:]) / 2
    if not signed:
        limits[0] = torch.finfo(torch.float64).tiny
    codes = torch.bucketize(fractions, limits, right=True)
    codes = torch.where(is_normal.unsqueeze(-1), codes, 127 if signed else 0)
    scale = torch.where(is_normal, scale, torch.where(scale.isfinite(), 0.0, torch.nan))
    return codes.to(torch.uint8).view(-1)[: flat.numel()].view(x.shape), scale


def decode(codes: Tensor, scale: Tensor, values: Tensor, block_size: int = BLOCK_SIZE) -> Tensor:
    """The numbers that codes stand for, in float32.

    Args:
        codes: uint8, of any shape.
        scale: float32, one for each block of ``block_size`` codes, the last of which may be shorter.
        values: what the 256 codes stand for, as fractions of a scale: float32.
        block_size: codes that share a scale. Default 256.

    Raises:
        RuntimeError: other scales than one for each block.

    Example:
        >>> codes, scale = encode(torch.tensor([0.5, -2.0, 0.0]), signed=True)
        >>> decode(codes, scale, book(signed=True))
        tensor([ 0.4953, -2.0000,  0.0000])
    """
    flat = values.to(codes.device)[codes.reshape(-1).int()]
    blocks = pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)
    # Adding zero makes a zero of a negative one, which a negative scale gives.
    return (blocks * scale.view(len(blocks), 1) + 0.0).view(-1)[: flat.numel()].view(codes.shape)
