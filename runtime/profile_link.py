"""The link: measured on CUDA, set on the CPU device."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from runtime.kernels import Kernels
from runtime.profile_contention import lost_per_byte

COPY_BYTES = 2**28
ROUNDS = 5
PACED_LATENCY_S = 2e-5
"""What the paced thread adds to each transfer; set, like the pace itself."""


@dataclass(frozen=True)
class LinkRates:
    """The `link` block of a profile."""

    name: str
    numbers: dict[str, dict[str, Any]]


def measure_link(device: torch.device, paced_bytes_per_s: float | None, kernels: Kernels) -> LinkRates:
    """On CUDA every rate is measured. On the CPU device the pace is set, at most the speed of a copy.

    What compute loses to transfers is measured on both, with `kernels`.
    """
    rates = _measured(device, kernels) if device.type == "cuda" else _paced(paced_bytes_per_s)
    lost = lost_per_byte(kernels)
    rates.numbers["compute_s_lost_per_byte"] = {
        **_number(lost), "source": "hybridserve profile: rebuild and attention beside copies",
    }  # fmt: skip
    return rates


def _paced(wanted: float | None) -> LinkRates:
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    copy = statistics.median(_wall(lambda: target.copy_(source)) for _ in range(ROUNDS))
    # The link thread shares memory with the one that computes: half a copy's speed is what it can be sure of.
    fastest = COPY_BYTES / copy / 2
    rate = min(wanted or fastest, fastest)
    said = "set by --link-gbps" if wanted and wanted <= fastest else "half the speed of a copy on this machine"
    number = {"value": float(rate), "kind": "assumed", "source": f"{said}: a thread copies at this pace"}
    keys = ("h2d", "d2h", "h2d_during_d2h", "d2h_during_h2d", "pageable_h2d", "pageable_d2h")
    numbers: dict[str, dict[str, Any]] = {f"{key}_bytes_per_s": dict(number) for key in keys}
    numbers["during_compute"] = {"value": 1.0, "kind": "assumed", "source": "set: a paced copy keeps its pace"}
    numbers["latency_s"] = {"value": PACED_LATENCY_S, "kind": "assumed", "source": "set: added to every transfer"}
    return LinkRates("paced copy thread", numbers)


def _measured(device: torch.device, kernels: Kernels) -> LinkRates:
    gpu = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    gpu2 = torch.empty_like(gpu)
    pinned, pinned2 = (torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(2))
    pageable = torch.ones(COPY_BYTES, dtype=torch.uint8)
    up, down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def h2d() -> None:
        with torch.cuda.stream(up):
            gpu.copy_(pinned, non_blocking=True)

    def d2h() -> None:
        with torch.cuda.stream(down):
            pinned2.copy_(gpu2, non_blocking=True)

    numbers = {
        "h2d_bytes_per_s": _rate(h2d, up),
        "d2h_bytes_per_s": _rate(d2h, down),
        "h2d_during_d2h_bytes_per_s": _rate(h2d, up, beside=d2h),
        "d2h_during_h2d_bytes_per_s": _rate(d2h, down, beside=h2d),
        "pageable_h2d_bytes_per_s": _number([COPY_BYTES / _wall(lambda: gpu.copy_(pageable)) for _ in range(ROUNDS)]),
        "pageable_d2h_bytes_per_s": _number([COPY_BYTES / _wall(lambda: pageable.copy_(gpu)) for _ in range(ROUNDS)]),
        "latency_s": _number([_small_copy_s(gpu, pinned, up) for _ in range(ROUNDS)]),
    }
    alone = numbers["h2d_bytes_per_s"]["value"]
    beside = [_beside_compute(h2d, up, kernels) / alone for _ in range(ROUNDS)]
    numbers["during_compute"] = _number([min(share, 1.0) for share in beside])
    for way, shared in (("h2d", "h2d_during_d2h"), ("d2h", "d2h_during_h2d")):
        # Two noisy medians of the same rate may come out in the wrong order.
        best = numbers[f"{way}_bytes_per_s"]["value"]
        numbers[f"{shared}_bytes_per_s"]["value"] = min(numbers[f"{shared}_bytes_per_s"]["value"], best)
    return LinkRates(f"link of {torch.cuda.get_device_name(device)}", numbers)


Copy = Callable[[], None]


def _rate(copy: Copy, lane: torch.cuda.Stream, beside: Copy | None = None) -> dict[str, Any]:
    rates = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(3 if beside else 0):
            assert beside is not None
            beside()
        start.record(lane)
        copy()
        end.record(lane)
        torch.cuda.synchronize()
        rates.append(COPY_BYTES / (start.elapsed_time(end) / 1e3))
    return _number(rates)


def _beside_compute(copy: Copy, lane: torch.cuda.Stream, kernels: Kernels) -> float:
    """Bytes per second of one copy while products fill the compute stream."""
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(200):
        kernels.product(2048, kernels.hidden, 4 * kernels.hidden)
    start.record(lane)
    copy()
    end.record(lane)
    torch.cuda.synchronize()
    return COPY_BYTES / (float(start.elapsed_time(end)) / 1e3)


def _small_copy_s(gpu: torch.Tensor, pinned: torch.Tensor, lane: torch.cuda.Stream, repeats: int = 200) -> float:
    """Seconds of one copy of 4 KiB among many."""
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(lane):
        start.record(lane)
        for _ in range(repeats):
            gpu[:4096].copy_(pinned[:4096], non_blocking=True)
        end.record(lane)
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def _wall(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _number(values: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {
        "value": float(middle), "kind": "measured", "source": "hybridserve profile",
        "date": datetime.date.today().isoformat(), "runs": len(values),
        "spread": round((high - low) / middle, 4) if middle else 0.0,
    }  # fmt: skip
