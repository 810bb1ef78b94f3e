"""What a simulation would come to, from some of its decode steps: to choose between plans before one is simulated."""

from __future__ import annotations

import numpy as np

from planner.columns import schedule_columns
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.schedule import Schedule
from planner.simulator import Durations, simulate, timeline_of

SAMPLED_STEPS = 24
"""Decode steps that are walked; the others take what lies between their neighbours. Steps change slowly."""


def estimated_s(costs: CostModel, decisions: Decisions) -> float:
    """Seconds of the whole job, exact where it has few decode steps, else within about a thousandth."""
    count = decisions.decode_steps
    if count <= SAMPLED_STEPS + 1:
        return simulate(costs, decisions).total_s
    # The first step follows prefill, unlike all others, so the second stands for those that come after it.
    steps = [1, *np.unique(np.linspace(2, count, SAMPLED_STEPS).round().astype(int)).tolist()]
    columns = schedule_columns(Schedule(costs.model, decisions, steps))
    ends = timeline_of(columns, Durations(costs, decisions).all(columns), costs, decisions).step_ends_s
    return float(ends[0] + np.interp(np.arange(1, count + 1), steps, np.diff(ends)).sum())
