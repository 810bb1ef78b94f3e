"""What kernels alone do not tell: the engine's own overhead, and how kernels slow down inside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hwprofiles import path_of
from planner.costs import CostModel
from planner.files import read_yaml, validate
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
JOBS = (Workload.uniform(8, 304, 7), Workload.uniform(24, 72, 7))
"""Few long prompts and many short ones."""
OVERHEAD_JOB = Workload.uniform(2, 16, 24)
WARM_UP_STEPS = 2
SLOWED = ("prefill", "rebuild", "forward")
"""Kinds of operation whose kernels a profile compares with themselves inside the engine."""
PACED = ("h2d", "d2h", "h2d_during_d2h", "d2h_during_h2d")


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
    """The engine under observation: a model with next to no arithmetic, and small jobs of every kind of operation."""

    overhead: Probe
    jobs: tuple[Probe, ...]

    @classmethod
    def open(cls, hardware: HardwareProfile, hidden: int, dtype: str) -> Probes:
        """Plans the probes with rates as `hardware` has them: only how busy the streams are depends on it."""
        tiny = load_model("opt-tiny")
        overhead = make_plan(_any_profile(hardware.gpu.device), tiny, OVERHEAD_JOB, POLICIES["kv-only"])
        return cls(Probe(overhead), tuple(Probe(job_plan(hardware, hidden, dtype, job)) for job in JOBS))

    def run(self) -> None:
        """One run of each."""
        for probe in (self.overhead, *self.jobs):
            probe.run()

    def close(self) -> None:
        for probe in (self.overhead, *self.jobs):
            probe.close()

    def overheads(self, kind: str) -> list[float]:
        """Seconds of each operation of `kind` in decode steps of the tiny model, the first steps left out."""
        return [
            span.end_s - span.start_s
            for run in self.overhead.runs for span in run.spans
            if span.kind == kind and span.step > WARM_UP_STEPS
        ]  # fmt: skip

    def slowdowns(self, profile: HardwareProfile) -> dict[str, list[float]]:
        """By kind of operation: undisturbed time inside the engine over that of its kernels alone, one per job.

        `profile` holds the rates of the kernels, timed in turn with the probes, and slows nothing.
        """
        found: dict[str, list[float]] = {kind: [] for kind in SLOWED}
        for probe in self.jobs:
            taken = Repeats(probe.runs).kind_s()
            once, twice = (_seconds_by_kind(profile, probe.plan, factor) for factor in (1.0, 2.0))
            for kind in SLOWED:
                key = f"{'prefill' if kind == 'prefill' else 'decode'}.{kind}"
                kernels = twice[key] - once[key]  # what a slowdown multiplies; the rest is overhead
                found[kind].append((taken[key] - (once[key] - kernels)) / kernels)
        return found


def _seconds_by_kind(profile: HardwareProfile, plan: Plan, slowdown: float) -> dict[str, float]:
    """Predicted seconds of every kind of operation of `plan`, kernels slowed as given, the link as in the plan."""
    slowed: dict[str, float] = {f"gpu.achieved.engine_slowdown.{kind}": slowdown for kind in SLOWED}
    pace = {f"link.{key}_bytes_per_s": getattr(plan.hardware.link, f"{key}_bytes_per_s").value for key in PACED}
    costs = CostModel(profile.with_values(**slowed, **pace), plan.model)
    found: dict[str, float] = {}
    for span in simulate(costs, plan.decisions).spans:
        found[kind_of(span)] = found.get(kind_of(span), 0.0) + span.end_s - span.start_s
    return found


def job_plan(profile: HardwareProfile, hidden: int, dtype: str, job: Workload) -> Plan:
    """`job` with half of its cache as activations; where the link is paced it is paced to be as busy as compute."""
    model = scaled_model(load_model("opt-6.7b"), hidden, LAYERS, VOCAB, dtype)
    hardware = profile
    if profile.gpu.device == "cpu":
        pace = _balanced_pace(profile, model, job)
        hardware = profile.with_values(**{f"link.{key}_bytes_per_s": pace for key in PACED})
    arena = model.outer_bytes + 2 * model.layer_bytes + 3 * job.total_prompt_tokens * model.kv_bytes_per_token_layer
    reserve = profile.gpu.memory.context_reserve_bytes.value
    usable = min(profile.gpu.memory.usable_bytes.value, arena + reserve)
    hardware = hardware.with_values(**{"gpu.memory.usable_bytes": usable})
    options = Options(act_share=0.5, mini_batches=2, max_resident_layers=0)
    return make_plan(hardware, model, job, POLICIES["hybrid"], options)


def _balanced_pace(profile: HardwareProfile, model: ModelSpec, job: Workload) -> float:
    """Bytes per second at which a layer's transfers take two thirds of its rebuild."""
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


def _any_profile(kind: str) -> HardwareProfile:
    """A profile roomy enough to keep the tiny model resident; its rates do not matter here."""
    data = read_yaml(path_of("rtx4090-pcie4"), "hardware profile")
    curves = data["gpu"]["achieved"]["gemm_flops_by_rows"]
    curves["float32"] = curves["float16"]
    data["gpu"]["device"] = kind
    return validate(HardwareProfile, data, "overhead")
