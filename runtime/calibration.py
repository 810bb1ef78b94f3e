"""What kernels alone do not tell: the engine's own overhead, and how kernels slow down inside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from planner.costs import CostModel
from planner.forms import BLOCK_TOKENS
from planner.hardware import HardwareProfile
from planner.model import ModelSpec, load_model
from planner.plan import Plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.repeats import Repeats, kind_of
from planner.scale import scaled_model
from planner.search import Options
from planner.simulator import simulate
from planner.timeline import Timeline
from planner.workload import Workload
from runtime.cpu_device import CpuDevice
from runtime.device import Device
from runtime.engine import Engine, random_prompts
from runtime.weights import RandomWeights

LAYERS, VOCAB = 3, 512
COLD_BYTES, COLD_PROMPT, COLD_REQUESTS = 36 * 2**20, 880, (2, 16)
"""K and V of a layer that are in no cache of the processor any more, prompts that have them, and how many at least and
at most."""
SLOWED = ("embed", "prefill", "rebuild", "forward", "sample")
"""Kinds of operation whose kernels a profile compares with themselves inside the engine."""
SMALL = ("embed", "rebuild", "sample")
"""Those with the overhead of a small operation."""
LARGE = ("prefill", "forward", "rebuild")
"""Those that take the time of a job."""
LEAST_SLOWDOWN = 0.1
"""Where the overhead would explain all that was measured."""
PACED = ("h2d", "d2h", "h2d_during_d2h", "d2h_during_h2d")


class ProbeJob(NamedTuple):
    """What a probe runs."""

    width: float
    """Of its model, relative to the profile's."""
    requests: int
    prompt_len: int
    gen_len: int
    act_share: float = 0.5

    @property
    def workload(self) -> Workload:
        return Workload.uniform(self.requests, self.prompt_len, self.gen_len)


JOBS = (ProbeJob(1.0, 8, 304, 7), ProbeJob(1.0, 24, 72, 7), ProbeJob(0.5, 40, 40, 7), ProbeJob(0.25, 6, 24, 13))
"""Few long prompts, many short ones, and ever smaller operations."""


def probe_jobs(hidden: int, dtype: str) -> tuple[ProbeJob, ...]:
    """`JOBS`, and one whose K and V all come over the link and are more than caches hold: those that were just rebuilt,
    or are few, are still there when they are attended to, which says nothing of a large model's."""
    token_bytes = scaled_model(load_model("opt-6.7b"), hidden, LAYERS, VOCAB, dtype).kv_bytes_per_token_layer
    fewest, most = COLD_REQUESTS
    requests = min(max(round(COLD_BYTES / (COLD_PROMPT * token_bytes)), fewest), most)
    return (*JOBS, ProbeJob(1.0, requests, COLD_PROMPT, 5, act_share=0.0))


@dataclass(frozen=True)
class EngineFit:
    """Seconds of an operation inside the engine = slowdown x its kernels alone + overhead."""

    slowdowns: dict[str, float]
    op_overhead_s: float
    forward_overhead_s: float
    residual: float
    """Mean relative residual over the kinds of operation of all probes."""
    jobs: int
    """Probes that it is fitted to."""

    @classmethod
    def none(cls) -> EngineFit:
        """Before anything is known."""
        return cls(dict.fromkeys(SLOWED, 1.0), 1e-5, 1e-5, 0.0, 0)


class Probe:
    """A small plan with its memory allocated, to be run again and again in turn with kernels timed alone."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.runs: list[Timeline] = []
        self._device = _device(plan.hardware)
        self._engine = Engine(plan, self._device, RandomWeights(0, self._device.torch_device))
        self._prompts = random_prompts(plan, 0)

    def run(self) -> None:
        """One more timeline."""
        self.runs.append(self._engine.run(self._prompts).timeline)

    def close(self) -> None:
        """Give threads and memory back."""
        self._device.close()


@dataclass(frozen=True)
class Probes:
    """The engine under observation: small jobs with every kind of operation."""

    jobs: tuple[Probe, ...]

    @classmethod
    def open(cls, hardware: HardwareProfile, hidden: int, dtype: str) -> Probes:
        """Plans the probes with rates as `hardware` has them: only how busy the streams are depends on it."""
        return cls(tuple(Probe(job_plan(hardware, hidden, dtype, job)) for job in probe_jobs(hidden, dtype)))

    def close(self) -> None:
        """Give threads and memory back."""
        for probe in self.jobs:
            probe.close()

    def fit(self, profile: HardwareProfile) -> EngineFit:
        """What the engine adds to kernels. `profile` holds their rates, timed in turn with the probes.

        Each kind of operation of each probe and phase counts once.
        """
        rows: dict[str, list[tuple[float, float]]] = {}
        for probe in self.jobs:
            for key, pair in _kernels_and_measured(profile, probe).items():
                rows.setdefault(key.partition(".")[2], []).append(pair)
        small, op_overhead = _slowdowns({kind: rows[kind] for kind in SMALL})
        forward, forward_overhead = _slowdowns({"forward": rows["forward"]})
        # Prefill has the same overhead, but is too long to tell it: it would only blur what decode says.
        slowdowns = {**small, **forward, "prefill": _slowdown(rows["prefill"], forward_overhead)}
        overheads = {kind: op_overhead if kind in SMALL else forward_overhead for kind in SLOWED}
        residuals = [
            slowdowns[kind] * kernels / taken + overheads[kind] / taken - 1
            for kind in SLOWED for kernels, taken in rows[kind]
        ]  # fmt: skip
        return EngineFit(slowdowns, op_overhead, forward_overhead, float(np.mean(np.abs(residuals))), len(self.jobs))


def _slowdowns(rows: dict[str, list[tuple[float, float]]]) -> tuple[dict[str, float], float]:
    """(slowdown of each kind, overhead of all) from pairs of (kernels alone, as in the engine), in seconds.

    Both by least squares of relative residuals, nothing negative. Then the slowdown of kinds that take the time of a
    job is what makes their seconds in all come out right: small operations tell the overhead, large ones the slowdown.
    """
    table = [
        [*(kernels / taken * (kind == one) for one in rows), 1 / taken]
        for kind, pairs in rows.items() for kernels, taken in pairs
    ]  # fmt: skip
    *factors, overhead = nnls(np.array(table), np.ones(len(table)))[0].tolist()
    slowdowns = dict(zip(rows, factors, strict=True))
    large = {kind: _slowdown(rows[kind], overhead) for kind in slowdowns.keys() & set(LARGE)}
    return {**slowdowns, **large}, overhead


def _slowdown(pairs: list[tuple[float, float]], overhead: float) -> float:
    """What makes the seconds of all pairs together come out right, each with `overhead`."""
    kernels_s, taken_s = sum(kernels for kernels, _ in pairs), sum(taken for _, taken in pairs)
    return max((taken_s - len(pairs) * overhead) / kernels_s, LEAST_SLOWDOWN)


def _kernels_and_measured(profile: HardwareProfile, probe: Probe) -> dict[str, tuple[float, float]]:
    """By phase and kind: mean seconds of one operation, by its kernels alone, and as undisturbed in the engine."""
    taken = Repeats(probe.runs).kind_s()
    once, twice = (_seconds_by_kind(profile, probe.plan, factor) for factor in (1.0, 2.0))
    counts = Counter(kind_of(span) for span in probe.runs[0].spans)
    # What doubles with the slowdown are the kernels; the rest is known (further attention calls) and not to be fitted.
    return {
        key: (
            (twice[key] - once[key]) / counts[key],
            (taken[key] - (2 * once[key] - twice[key])) / counts[key],
        )
        for key in taken if key.partition(".")[2] in SLOWED
    }  # fmt: skip


def _seconds_by_kind(profile: HardwareProfile, plan: Plan, slowdown: float) -> dict[str, float]:
    """Predicted seconds of every kind of operation of `plan`, kernels slowed as given, the link as in the plan."""
    slowed: dict[str, float] = {f"gpu.achieved.engine_slowdown.{kind}": slowdown for kind in SLOWED}
    pace = {f"link.{key}_bytes_per_s": getattr(plan.hardware.link, f"{key}_bytes_per_s").value for key in PACED}
    costs = CostModel(profile.with_values(**slowed, **pace), plan.model)
    found: dict[str, float] = {}
    for span in simulate(costs, plan.decisions).spans:
        found[kind_of(span)] = found.get(kind_of(span), 0.0) + span.end_s - span.start_s
    return found


def probe_width(share: float, hidden: int) -> int:
    """Whole heads of 64."""
    return max(1, round(share * hidden / 64 - 1e-9)) * 64


def job_plan(profile: HardwareProfile, hidden: int, dtype: str, job: ProbeJob) -> Plan:
    """`job` for a profile of width `hidden`; where the link is paced it is paced to be as busy as compute.

    In one mini-batch: a second one would find the weights in the caches, which those of a large model never are.
    """
    model = scaled_model(load_model("opt-6.7b"), probe_width(job.width, hidden), LAYERS, VOCAB, dtype)
    hardware, work = profile, job.workload
    if profile.gpu.device == "cpu":
        pace = _balanced_pace(profile, model, work)
        hardware = profile.with_values(**{f"link.{key}_bytes_per_s": pace for key in PACED})
    arena = model.outer_bytes + 2 * model.layer_bytes + 5 * work.total_prompt_tokens * model.kv_bytes_per_token_layer
    reserve = profile.gpu.memory.context_reserve_bytes.value
    # Not what the profile shall have: that may be less than a job with more than caches hold.
    hardware = hardware.with_values(**{"gpu.memory.usable_bytes": arena + reserve})
    options = Options(act_share=job.act_share, mini_batches=1, max_resident_layers=0, waves=1)
    return make_plan(hardware, model, work, POLICIES["hybrid"], options)


def _balanced_pace(profile: HardwareProfile, model: ModelSpec, job: Workload) -> float:
    """Bytes per second at which a layer's transfers take two thirds of its rebuild, were half of it activations."""
    tokens = job.total_prompt_tokens
    compute = CostModel(profile, model).rebuild(tokens // 2 // BLOCK_TOKENS).seconds
    moved = tokens * (model.kv_bytes_per_token_layer + model.act_bytes_per_token_layer) / 2
    return moved / compute / 1.5


def _device(hardware: HardwareProfile) -> Device:
    """A device for a probe; on CUDA without a cap on memory, where the profiler's own operands lie beside it."""
    if hardware.gpu.device == "cpu":
        return CpuDevice.of(hardware)
    from runtime.cuda_device import CudaDevice  # noqa: PLC0415

    return CudaDevice(index=torch.cuda.current_device())
