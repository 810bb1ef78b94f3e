"""Achieved rates of a profile over its datasheet's, where both are known."""

from __future__ import annotations

from typing import NamedTuple

from planner.hardware import HardwareProfile


class Efficiency(NamedTuple):
    """One achieved rate (for a table: its best) beside the vendor's peak, in the unit of the key."""

    key: str
    """Dotted, in the profile."""
    achieved: float
    datasheet: float
    fraction: float


def efficiencies(profile: HardwareProfile) -> list[Efficiency]:
    """GEMM of each data type over its FLOP/s, then every rate of GPU memory over the datasheet's."""
    gpu = profile.gpu
    found = []
    for dtype, table in gpu.achieved.gemm_flops_by_rows.items():
        if dtype in gpu.datasheet.flops:
            found.append(_over(f"gemm_flops_by_rows.{dtype}", table.best, gpu.datasheet.flops[dtype].value))
    peak = gpu.datasheet.memory_bytes_per_s
    if peak is not None:
        rates = {
            "memory_bytes_per_s": gpu.achieved.memory_bytes_per_s.value,
            "elementwise_bytes_per_s": gpu.achieved.elementwise_bytes_per_s.value,
            "decode_attention_bytes_per_s_by_context": gpu.achieved.decode_attention_bytes_per_s_by_context.best,
        }
        found += [_over(key, rate, peak.value) for key, rate in rates.items()]
    return found


def _over(key: str, achieved: float, datasheet: float) -> Efficiency:
    return Efficiency(f"gpu.achieved.{key}", achieved, datasheet, achieved / datasheet)
