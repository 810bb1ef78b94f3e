"""`python -m benchmarks.exhaustive`: plans of small random jobs beside every plan of whole requests, simulated.

Enumerated are all ways to form up to three mini-batches, one cache form for each request, every amount of weights
on the GPU and the longest passes of prefill that fit. Plans may also cut a request into forms, so they may come out
ahead.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice, product
from typing import Any

from benchmarks.records import write
from planner.composition import compositions
from planner.costs import CostModel
from planner.decisions import Decisions, chunk_prompts, spreads, streams
from planner.forms import FORMS, KV_HOST, blocks_for
from planner.hardware import HardwareProfile, load_hardware
from planner.memory import gpu_lines, host_lines, planned_bytes
from planner.model import ModelSpec, load_model
from planner.placement import MiniBatch, RequestGroup
from planner.policies import POLICIES
from planner.search import Options
from planner.simulator import simulate
from planner.sweep import cores, in_parallel
from planner.terminal import steps
from planner.waves import WaveSearch
from planner.workload import Request, Workload

RECORD, SEED, JOBS = "exhaustive.json", 2026, 300
MOST_BATCHES = 3
WIDTHS = ((256, 6e6), (2048, 4e8))
"""Hidden sizes, and the GPU bytes that their buffers take beside weights and cache."""
MANY = 0.1
"""Share of the jobs with four to six requests: a minute each."""
CLOSE = 1e-3


@dataclass(frozen=True)
class Job:
    """One random job on one random machine."""

    hardware: HardwareProfile
    model: ModelSpec
    work: Workload

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {
            "lengths": [[r.prompt_len, r.gen_len] for r in self.work.requests],
            "layers": self.model.layers, "hidden": self.model.hidden,
            "gpu_bytes": self.hardware.gpu.budget_bytes, "host_bytes": self.hardware.host.budget_bytes,
            "h2d_bytes_per_s": self.hardware.link.h2d_bytes_per_s.value,
        }  # fmt: skip


def jobs(count: int, seed: int = SEED) -> Iterator[Job]:
    """Up to three requests of any lengths, or four to six equal ones; memories from ample to too tight."""
    draw = random.Random(seed)
    for _ in range(count):
        hidden, buffers = draw.choice(WIDTHS)
        model = _model(hidden, draw.randint(2, 4))
        work = _work(draw)
        cache = sum(blocks_for(r.positions) for r in work.requests) * KV_HOST.block_bytes(model)
        whole = cache + model.weight_bytes
        yield Job(_machine(draw, buffers + draw.uniform(0.1, 1.2) * whole, draw.uniform(0.5, 2.0) * whole), model, work)


def _model(hidden: int, layers: int) -> ModelSpec:
    heads = hidden // 64
    shape = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": heads, "head_dim": 64, "ffn": 4 * hidden}
    return load_model("opt-tiny", "float16").model_copy(update={**shape, "vocab": 64, "max_positions": 4096})


def _work(draw: random.Random) -> Workload:
    kinds = [(draw.randint(100, 2000), draw.randint(4, 20)) for _ in range(draw.randint(1, 3))]
    if draw.random() < MANY:
        kinds = kinds[:1] * draw.randint(4, 6)
    return Workload(tuple(Request(str(i), *lengths) for i, lengths in enumerate(kinds)))


def _machine(draw: random.Random, gpu_bytes: float, host_bytes: float) -> HardwareProfile:
    server = load_hardware("rtx4090-pcie4")
    link = draw.choice([3e9, 1e10, 2.5e10])
    rates = {key: link for key in type(server.link).model_fields if key.endswith("_bytes_per_s")}
    found = server.at_speed(draw.choice([1.0, 3.0, 10.0]), 1.0)
    return found.with_values(**{
        **{f"link.{key}": rate for key, rate in rates.items()},
        "gpu.memory.context_reserve_bytes": 0.0, "host.reserve_bytes": 0.0,
        "gpu.memory.usable_bytes": float(int(gpu_bytes)), "gpu.memory.nominal_bytes": float(int(gpu_bytes)),
        "host.total_bytes": float(int(host_bytes)),
    })  # fmt: skip


def best_of_all(job: Job) -> tuple[float, int] | None:
    """Seconds of the fastest of all enumerated plans, and how many fit; None where none does."""
    costs = CostModel(job.hardware, job.model)
    times = [simulate(costs, decisions).total_s for decisions in enumerated(job)]
    return (min(times), len(times)) if times else None


def enumerated(job: Job) -> Iterator[Decisions]:
    """Every plan of whole requests that fits."""
    kinds = [(r.prompt_len, r.gen_len) for r in job.work.requests]
    for members in compositions(kinds, MOST_BATCHES):
        for batches in product(*(list(_in_forms(one, kinds)) for one in members)):
            for resident in spreads(job.model):
                if found := _fitting(job, batches, resident):
                    yield found


def _in_forms(members: list[int], kinds: list[tuple[int, int]]) -> Iterator[MiniBatch]:
    """A mini-batch in every choice of forms, requests of one kind being interchangeable."""
    alike: dict[tuple[int, int], list[int]] = {}
    for r in members:
        alike.setdefault(kinds[r], []).append(r)
    for choice in product(*(combinations_with_replacement(FORMS, len(rs)) for rs in alike.values())):
        yield MiniBatch(tuple(
            RequestGroup((r,), *lengths, (form,) * blocks_for(sum(lengths) - 1))
            for (lengths, rs), forms in zip(alike.items(), choice, strict=True)
            for r, form in zip(rs, forms, strict=True)
        ))  # fmt: skip


def _fitting(job: Job, batches: tuple[MiniBatch, ...], resident: tuple[int, ...]) -> Decisions | None:
    """With all prompts in one pass, or with one prompt in each, where that fits."""
    prompts = {i: r.prompt_len for i, r in enumerate(job.work.requests)}
    longest = max(prompts.values())
    for chunk, passed in ((max(longest, 2048), job.work.total_prompt_tokens), (longest, longest)):
        passes = chunk_prompts(batches, prompts, chunk, passed)
        found = Decisions(batches, passes, resident, 2 if streams(job.model, resident) else 0, 2, 2)
        host = sum(line.nbytes for line in host_lines(job.model, found))
        gpu = planned_bytes(gpu_lines(job.model, found))
        if gpu <= job.hardware.gpu.budget_bytes and host <= job.hardware.host.budget_bytes:
            return found
    return None


def planned_s(job: Job) -> tuple[float, float] | None:
    """(seconds, gap) of the plan; None where there is none."""
    found = WaveSearch(CostModel(job.hardware, job.model), job.work, POLICIES["hybrid"], Options(waves=1)).run()
    return (found.timeline.total_s, 1 - found.bound_s / found.timeline.total_s) if found else None


def compared(number: int, job: Job) -> dict[str, Any] | None:
    """The record of one job; None where nothing fits. Says where a plan is slower than one that was enumerated."""
    everything, plan = best_of_all(job), planned_s(job)
    if not (everything or plan):
        return None
    assert plan, f"job {number}: something fits, but no plan was found: {job.describe()}"
    best_s, count = everything or (None, 0)
    if best_s and plan[0] > best_s * (1 + CLOSE):
        print(f"job {number}: {plan[0] / best_s - 1:.2%} slower than the best of {count}", flush=True)
    return {"job": number, **job.describe(), "plan_s": plan[0], "gap": plan[1], "best_s": best_s, "plans": count}


def main() -> None:
    """Run and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"default {JOBS}, of which those that fit count")
    options = parser.parse_args()
    started, rows = time.perf_counter(), list[dict[str, Any]]()
    numbered = enumerate(jobs(10 * options.jobs))
    with steps("comparing") as advance:
        while len(rows) < options.jobs and (more := list(islice(numbered, options.jobs - len(rows)))):
            rows += filter(None, in_parallel(compared, more, cores(), advance))
    print(summary(rows))
    print(f"written: {write(RECORD, {'seed': SEED, 'took_s': round(time.perf_counter() - started), 'jobs': rows})}")


def summary(rows: list[dict[str, Any]]) -> str:
    """How far plans are from the best of everything enumerated."""
    ratios = [row["plan_s"] / row["best_s"] - 1 for row in rows if row["best_s"]]
    worse = [ratio for ratio in ratios if ratio > CLOSE]
    return (
        f"{len(ratios)} jobs, {sum(row['plans'] for row in rows):,} plans enumerated: {len(ratios) - len(worse)} plans "
        f"are within {CLOSE:.1%} of the best or ahead; worst {max(ratios):+.2%}, furthest ahead {min(ratios):+.1%}"
    )


if __name__ == "__main__":
    main()
