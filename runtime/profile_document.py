"""From measurements to the document of a hardware profile: values, provenance and how far they scattered."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import isotonic_regression

from runtime.calibration import EngineFit
from runtime.kernels import GEMM_COLUMNS, GROUP, NARROW_COLUMNS
from runtime.machine import device_memory_bytes, device_name, host_memory_bytes, machine_facts
from runtime.profile_link import LinkProbe
from runtime.timing import Round, Series

if TYPE_CHECKING:
    from runtime.profiler import Request

Number = dict[str, Any]
METHOD = "hybridserve profile"
WORKSPACE_BYTES = 2**29
"""CUDA: left to library workspaces and small temporaries beside the arena."""
HOST_RESERVE_BYTES = 2**30


@dataclass(frozen=True)
class Measured:
    """Everything that one profile is made of."""

    request: Request
    device: torch.device
    in_use_bytes: int
    round: Round
    link: LinkProbe
    engine: EngineFit
    probe_runs: int


def document(m: Measured) -> dict[str, Any]:
    """The profile as plain data, ready to be checked and written."""
    facts = machine_facts(m.device) | {"repeatability": f"{m.round.repeatability:.1%}"}
    return {
        "schema_version": 2,
        "id": m.request.profile_id,
        "description": f"measured by {METHOD} on {device_name(m.device)}",
        "machine": facts,
        "gpu": {
            "name": device_name(m.device),
            "device": m.device.type,
            "datasheet": {"flops": {}},
            "memory": _gpu_memory(m),
            "achieved": _achieved(m),
        },
        "link": {"name": m.link.name, **m.link.numbers()},
        "host": {
            "name": platform.node() or "host",
            "total_bytes": said(host_memory_bytes(), "derived", "memory of the machine or its container"),
            "reserve_bytes": said(HOST_RESERVE_BYTES, "assumed", "left to the operating system and Python"),
            "pin_rounding": "exact",
        },
    }


def _gpu_memory(m: Measured) -> dict[str, Any]:
    if m.device.type == "cuda":
        nominal = device_memory_bytes(m.device)
        usable = m.request.gpu_bytes or nominal
        reserve = said(m.in_use_bytes + WORKSPACE_BYTES, "derived", "context in use at the start, and workspaces")
    else:
        nominal = device_memory_bytes(m.device)
        usable = m.request.gpu_bytes or nominal // 4
        reserve = said(0, "derived", "none: the arena is only memory")
    return {
        "nominal_bytes": said(nominal, "derived", "memory of the device"),
        "usable_bytes": said(usable, "assumed" if m.device.type == "cpu" else "derived", "budget of the arena"),
        "context_reserve_bytes": reserve,
    }


def _achieved(m: Measured) -> Number:
    one = m.round.series
    fit = f"seconds = slowdown x kernels + overhead, over {m.engine.jobs} small jobs, off by {m.engine.residual:.1%}"

    def fitted(value: float) -> Number:
        runs = m.probe_runs
        return {**number([value] * 2, fit), "value": short(value), "runs": runs, "spread": round(m.engine.residual, 4)}

    return {
        "gemm_flops_by_rows": {m.request.dtype: _surface(m, "gemm", rising=True)},
        **_input_rate(m),
        "prefill_attention_flops_by_tokens": _surface(m, "prefill", rising=True),
        "decode_attention_bytes_per_s_by_context": _surface(m, "decode"),
        "attention_group_cost": _group_cost(one),
        "merge_bytes_per_s": _merge_rate(one["merge"]),
        "memory_bytes_per_s": _rate(one, "memory", "copy, read plus written"),
        "elementwise_bytes_per_s": _rate(one, "elementwise", "norms, residuals, activation"),
        "gather_bytes_per_s": _rate(one, "gather", "embeddings looked up and added"),
        "op_overhead_s": fitted(m.engine.op_overhead_s),
        "forward_overhead_s": fitted(m.engine.forward_overhead_s),
        **_per_call(one["calls"]),
        "engine_slowdown": {kind: fitted(factor) for kind, factor in m.engine.slowdowns.items()},
    }


def _input_rate(m: Measured) -> dict[str, Number]:
    """From products that differ in their columns alone; nothing where narrow ones are no slower for their size, or on
    a busy machine so much that it would be most of a whole product."""
    hidden, one = m.request.hidden, m.round.series
    wide, narrow = GEMM_COLUMNS * hidden, int(NARROW_COLUMNS * hidden)
    fixed_s = nbytes = whole_s = 0.0
    for key, series in one["narrow"].items():
        at_wide, at_narrow = one["gemm"][key].quiet_s, series.quiet_s
        fixed_s += (at_narrow * wide - at_wide * narrow) / (wide - narrow)
        whole_s += at_wide
        nbytes += key[0] * key[1] * getattr(torch, m.request.dtype).itemsize
    if not 0 < fixed_s < whole_s / 2:
        return {}
    timed = one["narrow"][max(one["narrow"])].seconds
    said_of = f"products of {wide} and of {narrow} columns: the part of their time that is the same"
    return {
        "gemm_columns": said(wide, "derived", "columns of the products timed"),
        "gemm_input_bytes_per_s": {**number(timed, said_of), "value": short(nbytes / fixed_s)},
    }


def _per_call(calls: dict[tuple[float, float], Series]) -> dict[str, Number]:
    """Of attention to the new token and one or two tiny segments: what the second adds, and the rest of the first."""
    one, two = calls[1, 1], calls[2, 1]
    call_s = max(two.quiet_s - one.quiet_s, 0.0)
    return {
        "attention_call_s": {**number(two.seconds, "one more tiny segment attended"), "value": short(call_s)},
        "attention_group_s": {
            **number(one.seconds, "a token's attention to itself, merged with that to a tiny segment"),
            "value": short(max(one.quiet_s - call_s, 0.0)),
        },
    }


def _merge_rate(merges: dict[tuple[float, float], Series]) -> Number:
    """Bytes per second beyond what the calls themselves cost: between few rows and many."""
    few, many = (merges[key] for key in sorted(merges))
    rate = (many.work - few.work) / max(many.quiet_s - few.quiet_s, 1e-9)
    return {**number(many.seconds, "attention outputs of two parts, merged"), "value": short(rate)}


def _group_cost(series: dict[str, dict[tuple[float, float], Series]]) -> Number:
    """Extra time per further query head of a K/V head, relative: from the same bytes with one head and several."""
    extra = []
    for at, shared in series["grouped"].items():
        alone = series["decode"][at]
        extra.append(max((alone.rate / shared.rate - 1) / (GROUP - 1), 0.0))
    return {**number(extra, f"{GROUP} query heads on each K/V head"), "value": short(statistics.fmean(extra))}


def _surface(m: Measured, name: str, rising: bool = False) -> Number:
    found = m.round.series[name]
    slices = []
    for second in sorted({second for _, second in found}):
        sizes, rates = zip(*sorted((size, one.rate) for (size, at), one in found.items() if at == second), strict=True)
        # A larger product is never really slower: dips are noise, and a plan would chase them.
        kept = isotonic_regression(rates).x.tolist() if rising else rates
        slices.append(
            {"second": float(second), "points": [[float(s), short(r)] for s, r in zip(sizes, kept, strict=True)]}
        )
    one = next(iter(found.values()))
    return {
        "kind": "measured",
        "source": f"{METHOD}, {m.request.dtype}, hidden {m.request.hidden}",
        "date": datetime.date.today().isoformat(),
        "runs": len(one.seconds),
        "spread": round(statistics.median(series.spread for series in found.values()), 4),
        "slices": slices,
    }


def _rate(series: dict[str, dict[tuple[float, float], Series]], name: str, what: str) -> Number:
    one = next(iter(series[name].values()))
    return {**number(one.seconds, what), "value": short(one.rate)}


def number(values: Sequence[float], what: str) -> Number:
    """The lower quartile of repeated measurements, and how far they scattered."""
    series = Series(1.0, list(values))
    return {
        "value": short(series.quiet_s),
        "kind": "measured",
        "source": f"{METHOD}: {what}",
        "date": datetime.date.today().isoformat(),
        "runs": len(values),
        "spread": round(series.spread, 4) if series.quiet_s else 0.0,
    }


def said(value: float, kind: str, source: str) -> Number:
    """A number that was not measured."""
    return {"value": float(value), "kind": kind, "source": source}


def short(value: float) -> float:
    """Five digits: more would be noise."""
    return float(f"{value:.5g}")
