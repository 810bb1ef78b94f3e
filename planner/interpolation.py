"""How well the tables of a profile are interpolated: the error at each point if it were not there."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from rich.console import RenderableType

from planner.curve import Surface
from planner.hardware import HardwareProfile
from planner.tables import bullets


class LeftOut(NamedTuple):
    """Of one table: relative errors of its points, each predicted from its neighbours."""

    key: str
    n: int
    median: float
    worst: float


def left_out(profile: HardwareProfile) -> list[LeftOut]:
    """Every table with points that have neighbours on both sides."""
    achieved = profile.gpu.achieved
    tables: dict[str, Surface] = {
        **{f"gemm_flops_by_rows.{dtype}": table for dtype, table in achieved.gemm_flops_by_rows.items()},
        "prefill_attention_flops_by_tokens": achieved.prefill_attention_flops_by_tokens,
        "decode_attention_bytes_per_s_by_context": achieved.decode_attention_bytes_per_s_by_context,
    }
    errors = {key: [abs(error) for error in table.left_out] for key, table in tables.items()}
    return [
        LeftOut(f"gpu.achieved.{key}", len(found), statistics.median(found), max(found))
        for key, found in errors.items() if found
    ]  # fmt: skip


def left_out_report(found: list[LeftOut]) -> RenderableType:
    """For people."""
    lines = [f"{one.key}: median {one.median:.1%}, worst {one.worst:.0%}, {one.n} points" for one in found]
    return bullets("Interpolation, each point left out in turn", lines)
