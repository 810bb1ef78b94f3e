"""The link: measured on CUDA, set on the CPU device; what it costs compute is measured on both."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from runtime.kernels import Kernels
from runtime.profile_contention import Contention
from runtime.timing import Series

Copy = Callable[[], None]
COPY_BYTES = 2**28
FIT_BYTES = (2**12, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
"""Sizes of the transfers that latency and rate are fitted to."""
PACED_LATENCY_S = 2e-5
"""What the paced thread adds to each transfer; set, like the pace itself."""


class LinkProbe(ABC):
    """Measures a link in rounds."""

    name: str

    def __init__(self, kernels: Kernels) -> None:
        self.kernels, self.contention = kernels, Contention(kernels)

    def run(self) -> None:
        """One more timing of everything."""
        self.contention.run()

    @abstractmethod
    def rates(self) -> dict[str, dict[str, Any]]:
        """Every number of the `link` block but the one that is measured the same way everywhere."""

    def numbers(self) -> dict[str, dict[str, Any]]:
        """The `link` block."""
        from runtime.profile_document import number, short  # noqa: PLC0415  (it documents this module's classes)

        lost = number(self.contention.lost_s_per_byte(), "rebuild and attention beside copies")
        return self.rates() | {
            "compute_s_lost_per_byte": {**lost, "value": short(self.contention.undisturbed_s_per_byte)}
        }


def link_probe(device: torch.device, paced_bytes_per_s: float | None, kernels: Kernels) -> LinkProbe:
    """The probe for a device; `paced_bytes_per_s` is the wanted pace of the CPU device's link."""
    return CudaLink(device, kernels) if device.type == "cuda" else PacedLink(paced_bytes_per_s, kernels)


class PacedLink(LinkProbe):
    """A thread copies at a set pace: at most half the speed of a copy, since it shares memory with compute."""

    name = "paced copy thread"

    def __init__(self, wanted_bytes_per_s: float | None, kernels: Kernels) -> None:
        super().__init__(kernels)
        self.wanted = wanted_bytes_per_s
        self._copy_s: list[float] = []
        self._source, self._target = (torch.ones(COPY_BYTES // 4, dtype=torch.uint8) for _ in range(2))

    def run(self) -> None:
        super().run()
        start = time.perf_counter()
        self._target.copy_(self._source)
        self._copy_s.append(time.perf_counter() - start)

    def rates(self) -> dict[str, dict[str, Any]]:
        fastest = len(self._source) / Series(1.0, self._copy_s).quiet_s / 2
        rate = min(self.wanted or fastest, fastest)
        met = self.wanted is not None and self.wanted <= fastest
        said = "set by --link-gbps" if met else "half the speed of a copy on this machine"

        def assumed(value: float, source: str) -> dict[str, Any]:
            return {"value": value, "kind": "assumed", "source": source}

        keys = ("h2d", "d2h", "h2d_during_d2h", "d2h_during_h2d", "pageable_h2d", "pageable_d2h")
        return {
            **{f"{key}_bytes_per_s": assumed(float(rate), f"{said}: a thread copies at this pace") for key in keys},
            "during_compute": assumed(1.0, "set: a paced copy keeps its pace"),
            "latency_s": assumed(PACED_LATENCY_S, "set: added to every transfer"),
        }


class CudaLink(LinkProbe):
    """Every rate by events on page-locked memory: alone, beside the other direction, beside compute, pageable."""

    def __init__(self, device: torch.device, kernels: Kernels) -> None:
        super().__init__(kernels)
        self.name = f"link of {torch.cuda.get_device_name(device)}"
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._gpu, self._gpu2 = (torch.empty(COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
        self._pinned, self._pinned2 = (torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(2))
        self._pageable = torch.ones(COPY_BYTES, dtype=torch.uint8)
        self._seconds: dict[str, list[float]] = {}
        self._by_size: dict[tuple[str, int], list[float]] = {}

    def run(self) -> None:
        super().run()
        for nbytes in FIT_BYTES:
            self._by_size.setdefault(("h2d", nbytes), []).append(self._event_s(self._h2d, self._up, nbytes))
            self._by_size.setdefault(("d2h", nbytes), []).append(self._event_s(self._d2h, self._down, nbytes))
        for name, found in (
            ("h2d_during_d2h", self._event_s(self._h2d, self._up, COPY_BYTES, self._many(self._d2h))),
            ("d2h_during_h2d", self._event_s(self._d2h, self._down, COPY_BYTES, self._many(self._h2d))),
            ("beside_compute", self._event_s(self._h2d, self._up, COPY_BYTES, self._products)),
            ("pageable_h2d", self._wall_s(lambda: self._gpu.copy_(self._pageable))),
            ("pageable_d2h", self._wall_s(lambda: self._pageable.copy_(self._gpu))),
        ):
            self._seconds.setdefault(name, []).append(found)

    def rates(self) -> dict[str, dict[str, Any]]:
        from runtime.profile_document import number  # noqa: PLC0415

        numbers: dict[str, dict[str, Any]] = {}
        latencies = []
        for way in ("h2d", "d2h"):
            quiet = {size: Series(1.0, self._by_size[way, size]).quiet_s for size in FIT_BYTES}
            latency, rate, worst = fitted(list(quiet.items()))
            latencies.append(latency)
            said = f"seconds = latency + bytes / rate over {len(quiet)} sizes, off by {worst:.0%} at most"
            numbers[f"{way}_bytes_per_s"] = {**number(self._by_size[way, FIT_BYTES[-1]], said), "value": rate}
        for name in ("h2d_during_d2h", "d2h_during_h2d", "pageable_h2d", "pageable_d2h"):
            found = self._seconds[name]
            shared = COPY_BYTES / Series(1.0, found).quiet_s
            if "during" in name:  # two noisy measures of one rate may come out in the wrong order
                shared = min(shared, numbers[f"{name[:3]}_bytes_per_s"]["value"])
            numbers[f"{name}_bytes_per_s"] = {**number(found, name.replace("_", " ")), "value": shared}
        beside = self._seconds["beside_compute"]
        kept = COPY_BYTES / Series(1.0, beside).quiet_s / numbers["h2d_bytes_per_s"]["value"]
        numbers["during_compute"] = {**number(beside, "h2d beside products, over alone"), "value": min(kept, 1.0)}
        small = self._by_size["h2d", FIT_BYTES[0]]
        numbers["latency_s"] = {**number(small, "of the fit of both directions"), "value": max(latencies)}
        return numbers

    def _h2d(self, nbytes: int = COPY_BYTES) -> None:
        with torch.cuda.stream(self._up):
            self._gpu[:nbytes].copy_(self._pinned[:nbytes], non_blocking=True)

    def _d2h(self, nbytes: int = COPY_BYTES) -> None:
        with torch.cuda.stream(self._down):
            self._pinned2[:nbytes].copy_(self._gpu2[:nbytes], non_blocking=True)

    @staticmethod
    def _many(copy: Copy) -> Copy:
        """Enough of them to last as long as one of the other direction."""

        def copies() -> None:
            for _ in range(3):
                copy()

        return copies

    def _products(self) -> None:
        k = self.kernels
        for _ in range(200):
            k.product(2048, k.hidden, 4 * k.hidden)

    def _event_s(
        self,
        copy: Callable[[int], None],
        lane: torch.cuda.Stream,
        nbytes: int,
        beside: Callable[[], None] | None = None,
    ) -> float:
        """Seconds of one copy on the device, small ones from many in a row."""
        repeats = max(1, min(50, 2**22 // nbytes))
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if beside:
            beside()
        start.record(lane)
        for _ in range(repeats):
            copy(nbytes)
        end.record(lane)
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats

    @staticmethod
    def _wall_s(call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start


def fitted(timings: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """(latency, bytes per second, worst relative residual) of seconds = latency + bytes / rate, both never negative.

    Relative errors are minimised: a transfer of 4 KiB counts as much as one of 64 MiB.
    """
    sizes, seconds = (np.array(column, dtype=float) for column in zip(*timings, strict=True))
    (latency, per_byte), _ = nnls(np.column_stack([1 / seconds, sizes / seconds]), np.ones(len(seconds)))
    worst = float(np.abs((latency + per_byte * sizes) / seconds - 1).max())
    return float(latency), 1 / float(per_byte), worst
