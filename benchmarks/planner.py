"""`python -m benchmarks.planner`: how near the best the plans of random ragged jobs are proven to be, and how soon.

Random machines, models and jobs with memory from ample to barely enough, each planned by `hybrid`. Nothing is measured
but the time that planning takes.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.records import write_jobs
from planner.errors import InfeasibleError
from planner.forms import ACT_HOST, KV_HOST, blocks_for
from planner.hardware import HardwareProfile, load_hardware
from planner.model import ModelSpec, load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Request, Workload

RECORD = "planner.json"
MODELS = ("opt-6.7b", "opt-13b", "opt-30b", "llama-2-13b", "llama-3-8b")
PROFILES = ("rtx4090-pcie4", "rtx3090", "a100-40gb", "t4")
CASES, SEED = 200, 2501
FEWEST, MOST = 8, 512
"""Requests of a job."""
LENGTHS = ((32, 1500), (8, 256))
"""Prompt and generated tokens, shortest and longest."""
LEAST_HOST, MOST_HOST = 0.9, 2.0
"""Host memory, as a multiple of what weights and the smaller form of the cache take."""
LEAST_GPU = 0.4
"""GPU memory, as a share of the profile's, at least."""


@dataclass(frozen=True)
class Case:
    """One job on one machine."""

    hardware: HardwareProfile
    model: ModelSpec
    workload: Workload


def cases(count: int, seed: int) -> Iterator[Case]:
    """The same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        model, profile = load_model(rng.choice(MODELS), "float16"), load_hardware(rng.choice(PROFILES))
        work = _workload(rng, round(FEWEST * (MOST / FEWEST) ** rng.random()))
        blocks = sum(blocks_for(r.positions) for r in work.requests)
        cache = blocks * min(KV_HOST.block_bytes(model), ACT_HOST.block_bytes(model))
        host = profile.host.reserve_bytes.value + rng.uniform(LEAST_HOST, MOST_HOST) * (model.weight_bytes + cache)
        usable = profile.gpu.memory.usable_bytes.value * rng.uniform(LEAST_GPU, 1.0)
        changed = {"host.total_bytes": float(round(host)), "gpu.memory.usable_bytes": float(round(usable))}
        yield Case(profile.with_values(**changed), model, work)


def _workload(rng: random.Random, requests: int) -> Workload:
    """Prompts and generations each from a range of their own, so that some jobs are nearly even and others are not."""
    bounds = [sorted(round(low * (high / low) ** rng.random()) for _ in range(2)) for low, high in LENGTHS]
    pairs = ([rng.randint(*bound) for bound in bounds] for _ in range(requests))
    return Workload(tuple(Request(str(i), prompt, gen) for i, (prompt, gen) in enumerate(pairs)))


def planned(case: Case) -> dict[str, Any]:
    """One case as data."""
    started = time.perf_counter()
    about: dict[str, Any] = {
        "hardware": case.hardware.id, "model": case.model.name, "requests": len(case.workload),
        "prompt_tokens": case.workload.total_prompt_tokens, "generated_tokens": case.workload.total_generated_tokens,
        "gpu_bytes": case.hardware.gpu.budget_bytes, "host_bytes": case.hardware.host.budget_bytes,
    }  # fmt: skip
    try:
        plan = make_plan(case.hardware, case.model, case.workload, POLICIES["hybrid"])
    except InfeasibleError as error:
        return {**about, "took_s": time.perf_counter() - started, "infeasible": str(error)}
    took_s = time.perf_counter() - started
    return {
        **about, "took_s": took_s, "gap": plan.gap, "act_share": plan.prediction.act_share,
        "mini_batches": max(len(wave.mini_batches) for wave in plan.waves), "total_s": plan.prediction.total_s,
    }  # fmt: skip


def summary(found: list[dict[str, Any]]) -> str:
    """Gaps and times in words."""
    done = [one for one in found if "gap" in one]
    if not done:
        return f"{len(found)} jobs, none of them feasible"
    gaps, took = (np.array([one[key] for one in done]) for key in ("gap", "took_s"))
    return (
        f"{len(done)} jobs planned, {len(found) - len(done)} infeasible. "
        f"Gap: median {np.median(gaps):.2%}, 95th percentile {np.percentile(gaps, 95):.2%}, worst {gaps.max():.2%}, "
        f"{np.mean(gaps <= 0.005):.0%} within 0.5 %. "
        f"Planning: median {np.median(took):.2f} s, 95th percentile {np.percentile(took, 95):.2f} s, "
        f"worst {took.max():.2f} s."
    )


def main() -> None:
    """Plan, print, and write the record unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    options = parser.parse_args()
    found = []
    for case in cases(options.cases, options.seed):
        found.append(planned(case))
        if options.verbose:
            print(found[-1], flush=True)
    print(summary(found))
    if not options.dry_run:
        print(f"written: {write_jobs(RECORD, found)}")


if __name__ == "__main__":
    main()
