"""A plan from a file is believed only as far as this version of the planner says the same.

Verified: that its decisions follow its schedule's rules and budgets (`planner/consistency.py`), and that its recorded
prediction is what the cost model and the simulator make of these decisions on this hardware. The bound and the shadow
prices are not: proving them again is planning again.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose
from pathlib import Path

from planner.costs import CostModel
from planner.errors import InputError
from planner.plan import Plan, Prediction
from planner.planning import predict
from planner.timeline import Timeline
from planner.wave_timeline import simulate_waves

SAME = 1e-6
"""Relative: figures are written with all their digits, and another machine's arithmetic is this near."""


def predicted_timeline(plan: Plan, path: Path) -> Timeline:
    """The simulated timeline of `plan`; InputError where the prediction in its file at `path` is another."""
    timeline = simulate_waves(CostModel(plan.hardware, plan.model), plan.waves)
    for key, found, wanted in _figures(plan.prediction, predict(plan.waves, timeline)):
        if not isclose(found, wanted, rel_tol=SAME, abs_tol=1e-12):
            what = f"{found:.9g} is not what this version predicts for these decisions, {wanted:.9g}"
            cure = "The file was edited, or another version wrote it. Plan again"
            raise InputError(what, where=f"{path}: prediction.{key}", cure=cure)
    return timeline


def _figures(said: Prediction, found: Prediction) -> Iterator[tuple[str, float, float]]:
    for key in ("total_s", "prefill_s", "decode_s"):
        yield key, getattr(said, key), getattr(found, key)
    for name, stream in found.streams.items():
        written = said.streams[name]
        yield f"streams.{name}.busy_fraction", written.busy_fraction, stream.busy_fraction
        yield f"streams.{name}.bytes_per_s", written.bytes_per_s, stream.bytes_per_s
