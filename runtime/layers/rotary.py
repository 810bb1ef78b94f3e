"""Rotary positions: a table of cosines and sines, and the turning of queries and keys in place."""

from __future__ import annotations

import math

import torch

from planner.model import ModelSpec, Rope
from runtime.layers.base import Workspace


def frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] radians per position, fp32. Su et al. 2021; scaled as Llama 3 does, or linearly."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32)
    plain = 1.0 / (rope.theta ** (pairs / head_dim))
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        wavelength = 2 * math.pi / plain
        turns, low, high = rope.original_positions / wavelength, rope.low_freq_factor, rope.high_freq_factor
        smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return (1 - smooth) * plain / rope.factor + smooth * plain
    return plain


class Rotary:
    """Cosines and sines of every position of a wave, [positions, head_dim / 2] each, in the model's dtype."""

    def __init__(self, model: ModelSpec, table: torch.Tensor) -> None:
        """`table`: [2, positions, head_dim / 2], where they are kept; `fill` makes them."""
        assert model.rope is not None
        self.model, self.rope = model, model.rope
        self.cos, self.sin = table[0], table[1]

    def fill(self) -> None:
        """Computed in fp32, as transformers does, and rounded once."""
        positions = torch.arange(len(self.cos), dtype=torch.float32)
        angles = torch.outer(positions, frequencies(self.rope, self.model.head_dim))
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def turn(self, heads: torch.Tensor, positions: torch.Tensor, space: Workspace) -> None:
        """Turn `heads` [n, heads, head_dim] at `positions` [n] in place, in pieces that the scratch holds."""
        half = self.model.head_dim // 2
        each = heads.shape[1] * half + 2 * half
        tile = max(1, space.left // each)
        for at in range(0, len(heads), tile):
            part, where = heads[at : at + tile], positions[at : at + tile]
            mark, n = space.used, len(part)
            cos = torch.index_select(self.cos, 0, where, out=space.take(n, half)).unsqueeze(1)
            sin = torch.index_select(self.sin, 0, where, out=space.take(n, half)).unsqueeze(1)
            first, second = part[..., :half], part[..., half:]
            kept = space.take(n, heads.shape[1], half).copy_(first)
            first.mul_(cos).addcmul_(second, sin, value=-1)
            second.mul_(cos).addcmul_(kept, sin)
            space.used = mark
