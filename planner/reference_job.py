"""A standard job for a machine, and a short version of its plan that simulates in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from planner.columns import Columns, schedule_columns
from planner.costs import CostModel
from planner.decisions import Decisions, spread_parts
from planner.forms import blocks_for
from planner.hardware import HardwareProfile
from planner.memory import resident_layers
from planner.model import ModelSpec, load_model
from planner.placement import MiniBatch
from planner.policies import POLICIES
from planner.schedule import Schedule
from planner.search import Options, Search
from planner.simulator import Durations, timeline_of
from planner.workload import Workload

LAYERS, STEPS = 6, 3
"""What the short version keeps: layers are alike, and so nearly are neighbouring decode steps."""
MINI_BATCHES = (2, 4, 8, 16)
"""Tried in place of a search over all numbers, which takes seconds on some machines: the plan is to be typical."""


class Job(NamedTuple):
    """Equal requests; lengths in tokens."""

    model: str
    requests: int
    prompt_len: int
    gen_len: int

    def __str__(self) -> str:
        return f"{self.model}, {self.requests} x {self.prompt_len} + {self.gen_len} tokens"


JOBS = (
    Job("opt-30b", 128, 1024, 128), Job("opt-13b", 128, 1024, 128), Job("opt-6.7b", 128, 1024, 128),
    Job("opt-1.3b", 64, 512, 64), Job("opt-125m", 32, 512, 32), Job("opt-small", 8, 256, 8), Job("opt-tiny", 8, 64, 8),
)  # fmt: skip
"""From large to small: the first that a machine can hold is its reference. The first is the job of the README."""


@dataclass(frozen=True)
class ShortJob:
    """The plan of a reference job on the machine it was made for, cut to `LAYERS` layers and `STEPS` decode steps."""

    job: Job
    model: ModelSpec
    decisions: Decisions
    columns: Columns
    layers_ratio: float
    steps: int

    def total_s(self, hardware: HardwareProfile) -> float:
        """Predicted total of the whole job by the same plan on `hardware`, from the short version."""
        costs = CostModel(hardware, self.model)
        seconds = Durations(costs, self.decisions).all(self.columns)
        ends = timeline_of(self.columns, seconds, costs, self.decisions).step_ends_s
        # The first decode step still fills the pipeline: where there are more, they stand for all.
        first = min(1, len(ends) - 2)
        step_s = (ends[-1] - ends[first]) / (len(ends) - 1 - first) if self.steps else 0.0
        return self.layers_ratio * (ends[0] + self.steps * step_s)


def reference(hardware: HardwareProfile) -> ShortJob | None:
    """The largest of `JOBS` that has a plan on `hardware`, as `hybrid` plans it in the best of a few numbers
    of mini-batches; None when none has."""
    dtypes = [str(dtype) for dtype in hardware.gpu.achieved.gemm_flops_by_rows]
    for job in JOBS:
        model = load_model(job.model)
        if model.dtype not in dtypes:
            model = load_model(job.model, dtypes[0])
        plans = _plans(hardware, job, model)
        if plans:
            return min(plans, key=lambda plan: plan.total_s(hardware))
    return None


def _plans(hardware: HardwareProfile, job: Job, model: ModelSpec) -> list[ShortJob]:
    workload, costs = Workload.uniform(job.requests, job.prompt_len, job.gen_len), CostModel(hardware, model)
    counts = [count for count in MINI_BATCHES if count <= job.requests]
    forms = POLICIES["hybrid"].forms
    found = [Search(costs, workload, forms, Options(mini_batches=count)).run() for count in counts]
    return [shorten(job, model, one.decisions) for one in found if one is not None]


def shorten(job: Job, model: ModelSpec, decisions: Decisions) -> ShortJob:
    """The first layers and decode steps of a plan; the share of resident weights stays as near as it can."""
    layers = min(LAYERS, model.layers)
    short = model.model_copy(update={"layers": layers})
    resident = spread_parts(short, resident_layers(model, decisions) * layers / model.layers)
    batches = tuple(_first_steps(batch) for batch in decisions.mini_batches)
    few = replace(decisions, mini_batches=batches, resident_parts=resident)
    columns = schedule_columns(Schedule(short, few))
    return ShortJob(job, short, few, columns, model.layers / layers, decisions.decode_steps)


def _first_steps(batch: MiniBatch) -> MiniBatch:
    groups = []
    for group in batch.groups:
        gen_len = min(group.gen_len, STEPS + 1)
        blocks = group.blocks[: blocks_for(group.prompt_len + gen_len - 1)]
        groups.append(replace(group, gen_len=gen_len, blocks=blocks))
    return MiniBatch(tuple(groups))
