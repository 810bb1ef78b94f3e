"""What a simulation would come to, from some of its decode steps: to choose between plans before one is simulated."""

from __future__ import annotations

from collections.abc import Sequence

from planner.costs import CostModel
from planner.decisions import Decisions
from planner.sampled_timeline import simulate_sampled

SAMPLED_STEPS = 24
"""Decode steps that are walked."""


def estimated_s(costs: CostModel, decisions: Decisions) -> float:
    """Seconds of the whole job, exact where it has few decode steps, else within about a thousandth."""
    return simulate_sampled(costs, decisions, SAMPLED_STEPS).total_s


def estimated_waves_s(costs: CostModel, waves: Sequence[Decisions]) -> float:
    """The same of waves one after the other; equal ones are looked at once."""
    known = {shape: estimated_s(costs, wave) for shape, wave in {wave.shape: wave for wave in waves}.items()}
    return sum(known[wave.shape] for wave in waves)
