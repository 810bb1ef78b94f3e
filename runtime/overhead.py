"""What one operation of the engine costs when there is next to nothing to compute."""

from __future__ import annotations

import torch

from hwprofiles import path_of
from planner.files import read_yaml, validate
from planner.hardware import HardwareProfile
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Workload
from runtime.cpu_device import CpuDevice
from runtime.device import Device
from runtime.engine import Engine, random_prompts
from runtime.weights import RandomWeights

STEPS = 32
WARM_UP_STEPS = 2


def engine_overheads(kind: str) -> tuple[list[float], list[float]]:
    """Seconds of each embedding and of each decode forward of a tiny resident model, the first steps left out."""
    hardware = _any_profile(kind)
    model = load_model("opt-tiny")
    plan = make_plan(hardware, model, Workload.uniform(2, 16, STEPS), POLICIES["kv-only"])
    device = _device(kind)
    try:
        engine = Engine(plan, device, RandomWeights(0, device.torch_device))
        spans = engine.run(random_prompts(plan, 0)).timeline.spans
    finally:
        device.close()
    small, forward = (
        [span.end_s - span.start_s for span in spans if span.kind == kind and span.step > WARM_UP_STEPS]
        for kind in ("embed", "forward")
    )
    return small, forward


def _device(kind: str) -> Device:
    if kind == "cpu":
        return CpuDevice(None, None)
    from runtime.cuda_device import CudaDevice  # noqa: PLC0415

    return CudaDevice(index=torch.cuda.current_device())


def _any_profile(kind: str) -> HardwareProfile:
    """A profile roomy enough to keep the tiny model resident; its rates do not matter here."""
    data = read_yaml(path_of("rtx4090-pcie4"), "hardware profile")
    curves = data["gpu"]["achieved"]["gemm_flops_by_rows"]
    curves["float32"] = curves["float16"]
    data["gpu"]["device"] = kind
    return validate(HardwareProfile, data, "overhead")
