"""A job that fits in real numbers and not in whole blocks is refused by the memory that would help."""

from __future__ import annotations

import pytest
from helpers import ideal_hardware, small_model

from planner import feasibility
from planner.errors import InfeasibleError
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.search import Options
from planner.workload import Workload


def test_the_refusal_names_a_memory_and_an_amount_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the linear program misses nothing: what is named is tried, and is not zero bytes."""
    monkeypatch.setattr(feasibility, "shortage", lambda problem: (0.0, 0.0))
    hardware, job = ideal_hardware(gpu_bytes=10e6, host_bytes=9e6), Workload.uniform(8, 400, 9)

    def plan(host_bytes: float) -> None:
        roomier = hardware.with_values(**{"host.total_bytes": host_bytes})
        make_plan(roomier, small_model(), job, POLICIES["kv-only"], Options(waves=1))

    with pytest.raises(InfeasibleError, match="leave out --waves") as refused:
        plan(9e6)
    error = refused.value
    assert error.limit == "host_memory" and error.missing_bytes > 1
    plan(9e6 + error.missing_bytes)
