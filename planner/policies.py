"""Policies that our engine can run: restrictions of one problem, or another way to decide it."""

from __future__ import annotations

from dataclasses import dataclass

from planner.errors import InputError, nearest
from planner.forms import ACT_GPU, ACT_HOST, FORMS, KV_GPU, KV_HOST, CacheForm


@dataclass(frozen=True)
class Policy:
    """A named set of allowed forms. All policies share the cost model, the schedule and the engine."""

    name: str
    forms: tuple[CacheForm, ...]
    summary: str
    resident: bool = False
    """All layers stay on the GPU."""
    heuristic: bool = False
    """Decided by the paper's heuristic, not by the solver."""


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("hybrid", FORMS, "every block as K and V or as activations, wherever the solver puts it"),
        Policy("kv-only", (KV_GPU, KV_HOST), "the usual cache: K and V of every token, ideal overlap"),
        Policy("act-only", (ACT_GPU, ACT_HOST), "activations of every token, K and V always rebuilt"),
        Policy("resident", (KV_GPU,), "no offload: all weights and the whole cache on the GPU", resident=True),
        Policy("hybridserve", FORMS, "the paper's heuristic: one ratio for all requests, no solver", heuristic=True),
    )
}

CACHES = ("hybrid", "kv-only", "act-only")
"""What the cache is kept as: the comparison that the demo and the benchmarks execute."""


def policy_named(name: str) -> Policy:
    """InputError with the nearest names when there is none."""
    if name not in POLICIES:
        raise InputError(f"unknown policy '{name}'", where="--policy", cure=nearest(name, POLICIES))
    return POLICIES[name]
