"""Timing kernels: repeated, on the device, and with cold caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch


@dataclass
class Series:
    """Repeated timings of one piece of work."""

    work: float
    """FLOP or bytes in one run."""
    seconds: list[float]
    repeats: int = 1
    """Runs in one timing, so that it lasts long enough to be read."""

    @property
    def quiet_s(self) -> float:
        """The lower quartile: what the work takes while nothing disturbs it. Disturbance only ever adds."""
        if len(self.seconds) < 4:
            return min(self.seconds)
        return statistics.quantiles(self.seconds, n=4, method="inclusive")[0]

    @property
    def rate(self) -> float:
        """Work per second, undisturbed."""
        return self.work / self.quiet_s

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)
        low, middle, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / middle


@dataclass
class Round:
    """Timings of many kernels, taken in turn, so that a slow spell of the machine touches all of them."""

    timer: Timer
    series: dict[str, dict[tuple[float, float], Series]] = field(default_factory=dict)
    """By kernel, then by (first size, second size)."""

    @property
    def repeatability(self) -> float:
        """How far two measurements would differ: the first half against the second of each kernel, in the median."""
        halves = []
        for one in (one for sizes in self.series.values() for one in sizes.values() if len(one.seconds) > 1):
            cut = len(one.seconds) // 2
            halves.append([Series(one.work, part).quiet_s for part in (one.seconds[:cut], one.seconds[cut:])])
        return statistics.median(abs(a / b - 1) for a, b in halves) if halves else 0.0

    def time(self, name: str, size: float, second: float, work: float, call: Callable[[], object]) -> None:
        """One more timing of a kernel at a size; `work` in FLOP or bytes."""
        sizes = self.series.setdefault(name, {})
        if (size, second) not in sizes:
            sizes[size, second] = Series(work, [], self.timer.repeats(call))
        found = sizes[size, second]
        found.seconds.append(self.timer.seconds(call, found.repeats))


class Timer:
    """Times calls on the device. The first call of a kernel only warms up what is not data: code, handles, memory."""

    LEAST_S = 0.002

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def repeats(self, call: Callable[[], object]) -> int:
        """How many calls fill `LEAST_S`."""
        self.seconds(call)
        return max(1, min(1000, int(self.LEAST_S / max(self.seconds(call), 1e-7))))

    def seconds(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of one call, mean of `repeats`."""
        self._synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self._synchronize()
        return (time.perf_counter() - start) / repeats

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Operands:
    """Random operands from ever new memory, so that every kernel is timed with cold caches, as in a run:
    weights and cache of a model that does not fit are never in a cache when they are needed."""

    BYTES = 2**28

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._source = torch.randn(self.BYTES // dtype.itemsize, device=device, dtype=torch.float32).to(dtype)
        self._target = torch.empty_like(self._source)
        self._at = 0

    def take(self, *shape: int) -> torch.Tensor:
        """A random tensor that was not used lately."""
        size = prod(shape)
        start = self._at if self._at + size <= self._source.numel() else 0
        self._at = start + -(-size // 64) * 64
        return self._source[start : start + size].view(shape)

    def result(self, *shape: int) -> torch.Tensor:
        """Room for a result: always the same, as a run keeps writing into the same buffers."""
        return self._target[: prod(shape)].view(shape)
