"""How fast a machine is now, against what its profile says: a few kernels timed again.

A machine that others use too is not equally fast all the time. A reading takes less than a second, so it can be taken
before each of many runs, and `hybridserve profile --check` takes a longer one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from planner.errors import InputError
from planner.gpu import Gpu
from planner.hardware import HardwareProfile
from planner.speed import Reading
from runtime.kernels import GROUP_AT, HEAD_DIM, Kernels, widest
from runtime.timing import Operands, Round, Series, Timer

GEMM_ROWS = (32, 128, 512, 1024)
ATTENDED = GROUP_AT[0]
"""(requests, context) of the attention call of a decode step."""
PROMPTS = (2, 256)
"""(prompts, tokens of each) of the causal attention."""
ELEMENT_ROWS = 512
BEFORE_A_RUN = 16
"""Turns before a run of seconds. Four, a tenth of a second, said too little: the first ones after another run often
take half as long again."""


class Gauge:
    """Times a sample of the kernels that `hardware` was profiled with."""

    def __init__(
        self, hardware: HardwareProfile, reference_s: Mapping[str, float] | None = None, kernels: Kernels | None = None
    ) -> None:
        """`reference_s`: what the sample took when the profile was measured, where that is known; else the profile's
        tables say it, of kernels that were timed one by one and not a few again and again."""
        if hardware.gpu.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"the profile is of {hardware.gpu.name}, and this machine has no CUDA device",
                where=hardware.id, cure="Check it on the machine that it describes",
            )  # fmt: skip
        gpu, device = hardware.gpu, torch.device(hardware.gpu.device)
        self.dtype, table = next(iter(gpu.achieved.gemm_flops_by_rows.items()))
        inner, dtype = [one.second for one in table.slices], getattr(torch, self.dtype)
        said = round(inner[min(1, len(inner) - 1)] / HEAD_DIM) * HEAD_DIM
        # A table may begin beyond what can be timed here: what it says of narrower products is checked.
        hidden = min(max(HEAD_DIM, said), widest(dtype))
        self.kernels = kernels or Kernels(hidden, Operands(device, dtype))
        self._timer = Timer(device)
        self._sample = self._sample_of(gpu)
        self._reference = dict(reference_s or {})

    def read(self, turns: int = 4) -> list[Reading]:
        """Each kernel `turns` times, in turn; the lower quartile counts, as in a profile."""
        one = Round(self._timer)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for _ in range(turns):
                    for name, (_, _, call) in self._sample.items():
                        one.time(name, 1, 1, 1.0, call)
        finally:
            torch.set_num_threads(threads)
        found = {name: one.series[name][1, 1] for name in self._sample}
        return [self._reading(name, found[name]) for name in self._sample]

    def _reading(self, name: str, series: Series) -> Reading:
        kind, profile_s, _ = self._sample[name]
        return Reading(name, kind, self._reference.get(name, profile_s), series.quiet_s, series.spread)

    def _sample_of(self, gpu: Gpu) -> dict[str, tuple[str, float, Callable[[], None]]]:
        """By name: kind, seconds as the profile has it, and the call."""
        k, element = self.kernels, self.kernels.operands.dtype.itemsize
        d, heads = k.hidden, k.heads
        found: dict[str, tuple[str, float, Callable[[], None]]] = {}
        for rows in GEMM_ROWS:
            seconds = gpu.gemm_time(rows, d, 2 * d, self.dtype, element)
            found[f"GEMM, {rows} rows"] = ("gemm", seconds, partial(k.product, rows, d, 2 * d))
        requests, context = ATTENDED
        kv_bytes = 2.0 * requests * context * d * element
        seconds = gpu.decode_attention_time(kv_bytes, requests, context, 1)
        call: Callable[[], None] = partial(k.attend, requests, context, heads, 1)
        found[f"decode attention, {requests} x {context}"] = ("memory", seconds, call)
        prompts, tokens = PROMPTS
        seconds = gpu.prefill_attention_time(2.0 * prompts * tokens * tokens * d, tokens, prompts)
        call = partial(k.attend_prompts, prompts, tokens)
        found[f"prefill attention, {prompts} x {tokens}"] = ("memory", seconds, call)
        seconds = gpu.elementwise_time(22.0 * ELEMENT_ROWS * d * element)
        found[f"element-wise, {ELEMENT_ROWS} rows"] = ("memory", seconds, k.elementwise)
        return found
