"""A device that runs each operation where it is launched and counts what its work asks of torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.operation import Operation
from runtime.cpu_device import CpuDevice, CpuTicket
from runtime.device import Ticket, Work

SYNCHRONISING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
"""Operators that wait for the device, because their result or its shape is needed on the host."""


@dataclass
class Count:
    """What one operation of the schedule did."""

    calls: Counter[str] = field(default_factory=Counter)
    allocations: Counter[str] = field(default_factory=Counter)
    """Results in memory of their own, by operator."""
    allocated_bytes: int = 0
    synchronising: Counter[str] = field(default_factory=Counter)


class _Mode(TorchDispatchMode):
    def __init__(self, count: Count, slabs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.count, self.ranges = count, [(s.data_ptr(), s.data_ptr() + s.numel()) for s in slabs]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.count.calls[name] += 1
        if name in SYNCHRONISING:
            self.count.synchronising[name] += 1
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            at = tensor.untyped_storage().data_ptr()
            inside = any(begin <= at < end for begin, end in self.ranges)
            if tensor.numel() and at not in given and not inside:
                self.count.allocations[name] += 1
                self.count.allocated_bytes += tensor.untyped_storage().nbytes()
        return out


def _tensors(node: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(node) if isinstance(leaf, torch.Tensor)]


class CountingDevice(CpuDevice):
    """Operations end before `launch` returns: the order of issue is one that the waits allow."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.slabs: list[torch.Tensor] = []
        self.counts: list[Count] = []
        """Of every operation, in issue order."""

    def slab(self, place: str, nbytes: int) -> torch.Tensor:
        self.slabs.append(super().slab(place, nbytes))
        return self.slabs[-1]

    def launch(self, stream: str, work: Work, waits: Sequence[Ticket], nbytes: int = 0) -> Ticket:
        ticket, count = CpuTicket(), Count()
        self.counts.append(count)
        with torch.inference_mode(), _Mode(count, self.slabs):
            work()
        ticket.end_s = 0.0
        return ticket


def by_kind(operations: Sequence[Operation], counts: Sequence[Count]) -> dict[tuple[str, int], list[Count]]:
    """Of decode: (kind, step) to what each operation did."""
    found: dict[tuple[str, int], list[Count]] = defaultdict(list)
    for op, count in zip(operations, counts, strict=True):
        if op.step:
            found[op.kind, op.step].append(count)
    return dict(found)
