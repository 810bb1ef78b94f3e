"""Measures what the cost model uses, with the engine's own kernels, and writes it as a hardware profile."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import isotonic_regression

from planner.errors import InputError
from planner.files import validate
from planner.hardware import HardwareProfile
from runtime.calibration import SLOWED, engine_overheads, engine_slowdowns
from runtime.kernels import GROUP, MOST_TOKENS, Kernels
from runtime.machine import device_name, host_memory_bytes, in_use_bytes, machine_facts
from runtime.profile_link import LinkRates, measure_link
from runtime.timing import Operands, Round, Series, Timer

Progress = Callable[[int, int, str], None]
"""(stages done, stages in all, what is being measured)."""
Number = dict[str, Any]

ROUNDS = 7
"""Every kernel is measured this often, in turn with all others, so that a slow spell of the machine hits all."""
WORKSPACE_BYTES = 2**29
"""CUDA: left to library workspaces and small temporaries beside the arena."""


@dataclass(frozen=True)
class Request:
    """What to measure: the kernel shapes of one model width, and the link to assume or measure."""

    device: str
    hidden: int = 512
    heads: int = 8
    dtype: str = "float32"
    link_bytes_per_s: float | None = None
    """CPU only: the pace of the link; None for the speed of a copy."""
    gpu_bytes: int | None = None
    """A smaller budget than the device has."""
    profile_id: str = "measured"


class Profiler:
    """One measurement of one device."""

    STAGES = ROUNDS + 3

    def __init__(self, request: Request, progress: Progress) -> None:
        if request.device == "cuda" and not torch.cuda.is_available():
            raise InputError("this machine has no CUDA device", where="--device", cure="Use --device cpu")
        self.request, self.progress = request, progress
        self.device = torch.device(request.device)
        self.dtype: torch.dtype = getattr(torch, request.dtype)
        widest = Operands.BYTES // (2 * MOST_TOKENS * self.dtype.itemsize)
        if request.hidden > widest:
            what = f"{request.hidden} is wider than the operands measured here"
            raise InputError(what, where="--hidden", cure=f"Give at most {widest}, or a narrower --dtype")
        self._in_use = in_use_bytes(self.device)
        self.round = Round(Timer(self.device))

    def run(self) -> HardwareProfile:
        """Measure everything; under a minute on one CPU core."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                kernels = Kernels(self.request.hidden, Operands(self.device, self.dtype))
                for turn in range(ROUNDS):
                    self.progress(turn, self.STAGES, f"kernels, round {turn + 1} of {ROUNDS}")
                    kernels.run(self.round)
                self.progress(ROUNDS, self.STAGES, "link")
                link = measure_link(self.device, self.request.link_bytes_per_s, kernels)
                self.progress(ROUNDS + 1, self.STAGES, "engine overhead")
                overheads = engine_overheads(self.device.type)
                alone = {kind: [1.0, 1.0] for kind in SLOWED}
                profile = validate(HardwareProfile, self._profile(link, overheads, alone), "profile")
                self.progress(ROUNDS + 2, self.STAGES, "kernels inside the engine")
                slowdowns = engine_slowdowns(profile, self.request.hidden, self.request.dtype)
        finally:
            torch.set_num_threads(threads)
        return validate(HardwareProfile, self._profile(link, overheads, slowdowns), "profile")

    # ---- the profile -----------------------------------------------------------------------------

    def _profile(
        self, link: LinkRates, overheads: tuple[list[float], list[float]], slowdowns: dict[str, list[float]]
    ) -> dict[str, Any]:
        gpu_bytes, nominal = self._gpu_memory()
        cpu = self.device.type == "cpu"
        method = "hybridserve profile"
        return {
            "schema_version": 2,
            "id": self.request.profile_id,
            "description": f"measured by {method} on {device_name(self.device)}",
            "machine": machine_facts(self.device),
            "gpu": {
                "name": device_name(self.device),
                "device": self.device.type,
                "datasheet": {"flops": {}},
                "memory": {
                    "nominal_bytes": _said(nominal, "derived", "memory of the device"),
                    "usable_bytes": _said(gpu_bytes, "assumed" if cpu else "derived", "budget of the arena"),
                    "context_reserve_bytes": _said(
                        0 if cpu else self._in_use + WORKSPACE_BYTES,
                        "derived",
                        "none: the arena is only memory" if cpu else "context in use at the start, and workspaces",
                    ),
                },
                "achieved": self._achieved(overheads, slowdowns),
            },
            "link": {"name": link.name, **link.numbers},
            "host": {
                "name": platform.node() or "host",
                "total_bytes": _said(host_memory_bytes(), "derived", "memory of the machine or its container"),
                "reserve_bytes": _said(2**30, "assumed", "left to the operating system and Python"),
                "pin_rounding": "exact",
            },
        }

    def _achieved(self, overheads: tuple[list[float], list[float]], slowdowns: dict[str, list[float]]) -> Number:
        two, three = (self.round.series["parts"][n, 1].quiet_s for n in (2, 3))
        calls = [later - two for later in self.round.series["parts"][3, 1].seconds if later > two] or [three]
        return {
            "gemm_flops_by_rows": {self.request.dtype: self._surface("gemm", rising=True)},
            "prefill_attention_flops_by_tokens": self._curve("prefill"),
            "decode_attention_bytes_per_s_by_context": self._surface("decode"),
            "attention_group_cost": self._group_cost(),
            "memory_bytes_per_s": self._number(*self._only("memory"), "copy, read plus written"),
            "elementwise_bytes_per_s": self._number(*self._only("elementwise"), "norms, residuals, activation"),
            "op_overhead_s": self._overhead(overheads[0], "embedding"),
            "forward_overhead_s": self._overhead(overheads[1], "forward"),
            "attention_call_s": _number_of(calls, "one more tiny segment, attended and merged"),
            "engine_slowdown": {
                kind: _number_of(found, f"{kind} operations of a small job over their kernels alone")
                for kind, found in slowdowns.items()
            },
        }

    def _only(self, name: str) -> tuple[Series]:
        return (next(iter(self.round.series[name].values())),)

    def _group_cost(self) -> Number:
        """Extra time per further query head of a K/V head, relative: from the same bytes with one head and several."""
        extra = []
        for at, shared in self.round.series["grouped"].items():
            alone = self.round.series["decode"][at]
            extra.append(max((alone.rate / shared.rate - 1) / (GROUP - 1), 0.0))
        return {**_number_of(extra, f"{GROUP} query heads on each K/V head"), "runs": ROUNDS}

    def _said_of(self, found: list[Series]) -> Number:
        return {
            "kind": "measured",
            "source": f"hybridserve profile, {self.request.dtype}, hidden {self.request.hidden}",
            "date": datetime.date.today().isoformat(),
            "runs": ROUNDS,
            "spread": round(statistics.median(series.spread for series in found), 4),
        }

    def _points(self, name: str, second: float, rising: bool) -> list[list[float]]:
        found = sorted((size, series.rate) for (size, at), series in self.round.series[name].items() if at == second)
        rates = [rate for _, rate in found]
        if rising:
            # A larger product is never really slower: dips are noise, and a plan would chase them.
            rates = isotonic_regression(rates).x.tolist()
        return [[float(size), float(f"{rate:.5g}")] for (size, _), rate in zip(found, rates, strict=True)]

    def _curve(self, name: str) -> Number:
        points = self._points(name, 1, rising=True)
        return {**self._said_of(list(self.round.series[name].values())), "points": points}

    def _surface(self, name: str, rising: bool = False) -> Number:
        found = self.round.series[name]
        seconds = sorted({second for _, second in found})
        slices = [{"second": float(at), "points": self._points(name, at, rising)} for at in seconds]
        return {**self._said_of(list(found.values())), "slices": slices}

    def _number(self, series: Series, what: str) -> Number:
        return {**_number_of(series.seconds, what), "value": float(f"{series.rate:.5g}")}

    def _overhead(self, seconds: list[float], what: str) -> Number:
        return _number_of(seconds, f"{what} of a model with next to no arithmetic")

    def _gpu_memory(self) -> tuple[int, int]:
        """(usable, nominal) bytes."""
        if self.device.type == "cuda":
            total = torch.cuda.mem_get_info(self.device)[1]
            return min(self.request.gpu_bytes or total, total), total
        nominal = host_memory_bytes()
        return min(self.request.gpu_bytes or nominal // 4, nominal), nominal


def _number_of(values: list[float], what: str) -> Number:
    """The lower quartile of repeated measurements, and how far they scattered."""
    series = Series(1.0, values)
    return {
        "value": float(f"{series.quiet_s:.5g}"),
        "kind": "measured",
        "source": f"hybridserve profile: {what}",
        "date": datetime.date.today().isoformat(),
        "runs": len(values),
        "spread": round(series.spread, 4) if series.quiet_s else 0.0,
    }


def _said(value: float, kind: str, source: str) -> Number:
    return {"value": float(value), "kind": kind, "source": source}
