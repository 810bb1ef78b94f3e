"""An arena: one slab, carved in order, with an enforced budget and a measured peak."""

from __future__ import annotations

from math import prod

import torch

from planner.errors import RunError
from planner.memory import aligned


class Arena:
    """Tensors are views into one slab. `rewind` gives back everything carved since a mark."""

    def __init__(self, name: str, slab: torch.Tensor) -> None:
        self.name, self.slab = name, slab
        self.used_bytes = 0
        self.peak_bytes = 0

    def carve(self, what: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor; RunError when the budget does not hold it."""
        nbytes = prod(shape) * dtype.itemsize
        end = self.used_bytes + aligned(nbytes)
        if end > self.slab.numel():
            raise RunError(
                f"{self.name} memory: '{what}' takes {nbytes:,} bytes, "
                f"{end - self.slab.numel():,} more than the budget of {self.slab.numel():,} has left"
            )
        view = self.slab[self.used_bytes : self.used_bytes + nbytes].view(dtype).view(shape)
        self.used_bytes = end
        self.peak_bytes = max(self.peak_bytes, end)
        return view

    def mark(self) -> int:
        return self.used_bytes

    def rewind(self, mark: int) -> None:
        self.used_bytes = mark
