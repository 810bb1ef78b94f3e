"""Measures what the cost model uses, with the engine's own kernels, and writes it as a hardware profile."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy.optimize import isotonic_regression

from planner.errors import InputError
from planner.files import validate
from planner.hardware import HardwareProfile
from runtime.attention import attend_prompt, attend_segment
from runtime.calibration import decode_slowdowns, engine_overheads
from runtime.machine import device_name, host_memory_bytes, in_use_bytes, machine_facts
from runtime.profile_link import LinkRates, measure_link
from runtime.timing import Operands, Series, Timer

Progress = Callable[[int, int, str], None]
"""(stages done, stages in all, what is being measured)."""
Number = dict[str, Any]

GEMM_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
PROMPTS = (32, 64, 128, 256, 512, 1024)
CACHED = ((2, 32), (4, 64), (8, 128), (8, 256), (8, 512), (16, 512))
"""(requests, context) of the decode attention table; its size is their product."""
ROUNDS = 5
"""Every quantity is measured this often, in turn with all others, so that a slow spell of the machine hits all."""
COPY_BYTES = 2**28
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
        widest = Operands.BYTES // (2 * max(n * context for n, context in CACHED) * self.dtype.itemsize)
        if request.hidden > widest:
            what = f"{request.hidden} is wider than the operands measured here"
            raise InputError(what, where="--hidden", cure=f"Give at most {widest}, or a narrower --dtype")
        self.timer = Timer(self.device)
        self._in_use = in_use_bytes(self.device)
        self.series: dict[tuple[str, float], Series] = {}
        self.operands = Operands(self.device, self.dtype)

    def run(self) -> HardwareProfile:
        """Measure everything; about 20 s on one CPU core."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for turn in range(ROUNDS):
                    self.progress(turn, self.STAGES, f"kernels, round {turn + 1} of {ROUNDS}")
                    self._round()
                self.progress(ROUNDS, self.STAGES, "link")
                link = measure_link(self.device, self.request.link_bytes_per_s)
                self.progress(ROUNDS + 1, self.STAGES, "engine overhead")
                overheads = engine_overheads(self.device.type)
                profile = validate(HardwareProfile, self._profile(link, overheads, [1.0, 1.0]), "profile")
                self.progress(ROUNDS + 2, self.STAGES, "engine beside a busy link")
                slowdowns = decode_slowdowns(profile, self.request.hidden, self.request.dtype)
        finally:
            torch.set_num_threads(threads)
        return validate(HardwareProfile, self._profile(link, overheads, slowdowns), "profile")

    # ---- measurements ----------------------------------------------------------------------------

    def _round(self) -> None:
        d = self.request.hidden
        for rows in GEMM_ROWS:
            self._time("gemm", rows, 4.0 * rows * d * d, partial(self._product, rows, d))
        self._attention()
        source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        # Read plus written: the cost model counts both.
        self._time("memory", COPY_BYTES, 2.0 * COPY_BYTES, partial(target.copy_, source))

    def _attention(self) -> None:
        heads, head_dim = self.request.heads, self.request.hidden // self.request.heads
        for requests, context in CACHED:
            nbytes = 2.0 * requests * context * self.request.hidden * self.dtype.itemsize
            shape = (requests, context, 2, heads, head_dim)
            self._time("decode", requests * context, nbytes, partial(self._attend, shape))
        for prompt in PROMPTS:
            flops = 2.0 * prompt * prompt * self.request.hidden
            self._time("prefill", prompt, flops, partial(self._attend_prompt, (1, prompt, heads, head_dim)))

    def _time(self, name: str, size: float, work: float, call: Callable[[], object]) -> None:
        self.series.setdefault((name, size), Series(work, [])).seconds.append(self.timer.seconds(call))

    def _product(self, rows: int, d: int) -> None:
        take = self.operands.take
        torch.addmm(take(2 * d), take(rows, d), take(2 * d, d).t(), out=self.operands.result(rows, 2 * d))

    def _attend(self, shape: tuple[int, ...]) -> None:
        requests, _, _, heads, head_dim = shape
        keys, values = (part.transpose(1, 2) for part in self.operands.take(*shape).unbind(2))
        attend_segment(self.operands.take(requests, heads, 1, head_dim), keys, values)

    def _attend_prompt(self, shape: tuple[int, ...]) -> None:
        attend_prompt(self.operands.take(*shape), self.operands.take(*shape), self.operands.take(*shape))

    # ---- the profile -----------------------------------------------------------------------------

    def _profile(
        self, link: LinkRates, overheads: tuple[list[float], list[float]], slowdowns: list[float]
    ) -> dict[str, Any]:
        gpu_bytes, nominal = self._gpu_memory()
        cpu = self.device.type == "cpu"
        method = "hybridserve profile"
        return {
            "schema_version": 1,
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
                "achieved": {
                    "gemm_flops_by_rows": {self.request.dtype: self._curve("gemm", rising=True)},
                    "prefill_attention_flops_by_tokens": self._curve("prefill", rising=True),
                    "decode_attention_bytes_per_s_by_tokens": self._curve("decode", rising=False),
                    "memory_bytes_per_s": self._number(self.series["memory", COPY_BYTES], "copy, read plus written"),
                    "op_overhead_s": self._overhead(overheads[0], "embedding"),
                    "forward_overhead_s": self._overhead(overheads[1], "forward"),
                    "decode_slowdown": self._median(slowdowns, "steps of a small job, measured over kernels alone"),
                },
            },
            "link": {"name": link.name, **link.numbers},
            "host": {
                "name": platform.node() or "host",
                "total_bytes": _said(host_memory_bytes(), "derived", "memory of the machine or its container"),
                "reserve_bytes": _said(2**30, "assumed", "left to the operating system and Python"),
                "pin_rounding": "exact",
            },
        }

    def _curve(self, name: str, rising: bool) -> Number:
        found = sorted(((size, series) for (kind, size), series in self.series.items() if kind == name), key=_size)
        rates = [series.rate for _, series in found]
        if rising:
            # A larger product is never really slower: dips are noise, and a plan would chase them.
            rates = isotonic_regression(rates).x.tolist()
        return {
            "kind": "measured",
            "source": f"hybridserve profile, {self.request.dtype}, hidden {self.request.hidden}",
            "date": datetime.date.today().isoformat(),
            "runs": ROUNDS,
            "spread": round(statistics.median(series.spread for _, series in found), 4),
            "points": [[float(size), float(f"{rate:.5g}")] for (size, _), rate in zip(found, rates, strict=True)],
        }

    def _number(self, series: Series, what: str) -> Number:
        return {
            "value": float(f"{series.rate:.5g}"),
            "kind": "measured",
            "source": f"hybridserve profile: {what}",
            "date": datetime.date.today().isoformat(),
            "runs": len(series.seconds),
            "spread": round(series.spread, 4),
        }

    def _overhead(self, seconds: list[float], what: str) -> Number:
        return self._median(seconds, f"{what} of a model with next to no arithmetic")

    def _median(self, values: list[float], what: str) -> Number:
        return {**self._number(Series(1.0, values), what), "value": float(f"{statistics.median(values):.5g}")}

    def _gpu_memory(self) -> tuple[int, int]:
        """(usable, nominal) bytes."""
        if self.device.type == "cuda":
            total = torch.cuda.mem_get_info(self.device)[1]
            return min(self.request.gpu_bytes or total, total), total
        nominal = host_memory_bytes()
        return min(self.request.gpu_bytes or nominal // 4, nominal), nominal


def _size(item: tuple[float, Series]) -> float:
    return item[0]


def _said(value: float, kind: str, source: str) -> Number:
    return {"value": float(value), "kind": kind, "source": source}
