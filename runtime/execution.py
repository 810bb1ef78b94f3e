"""Executes a plan: opens the device, loads weights, runs, and lays the measurement beside the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from planner.costs import CostModel
from planner.errors import InputError
from planner.model import CONFIG_FILE, load_model
from planner.plan import Plan
from planner.results import measured_result
from planner.timeline import Timeline
from planner.wave_timeline import simulate_waves
from runtime.device import Device, open_device
from runtime.ending import Ends
from runtime.engine import Engine, random_prompts
from runtime.keeper import EVERY_S, Keep
from runtime.layers.base import layers_for
from runtime.live import Progress
from runtime.sampling import Sampling
from runtime.weights import Checkpoint, RandomWeights, Source


@dataclass(frozen=True)
class Execution:
    """A finished run."""

    plan: Plan
    tokens: list[list[int]]
    measured: Timeline
    peak_bytes: dict[str, int]

    @cached_property
    def predicted(self) -> Timeline:
        """The timeline that was predicted, from the plan alone."""
        return simulate_waves(CostModel(self.plan.hardware, self.plan.model), self.plan.waves)

    def result(self) -> dict[str, Any]:
        """Predicted, measured and error, as `run --json` prints them."""
        return measured_result(self.plan, self.measured, self.peak_bytes, self.ended_early)

    @property
    def ended_early(self) -> int:
        """Requests that ended by themselves, before their planned length."""
        planned = self.plan.workload.requests
        return sum(len(made) < request.gen_len for made, request in zip(self.tokens, planned, strict=True))


def execute(
    plan: Plan,
    prompts: Sequence[Sequence[int]] | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    device: Device | None = None,
    ways: Sequence[Sampling] | None = None,
    keep: Keep | None = None,
    keep_every_s: float = EVERY_S,
    ends: Ends | None = None,
) -> Execution:
    """Run `plan` on its device, with a checkpoint's weights or seeded random ones.

    Without prompts, random token ids of the planned lengths. `ways`, `keep` and `ends` as of `Engine.run`.

    InputError when the checkpoint is of another model,
    RunError when the device is missing or fails.
    """
    layers = layers_for(plan.model)
    if checkpoint is not None:
        _check_same_model(plan, checkpoint)
    opened = device or open_device(plan.hardware)
    try:
        source: Source = (
            Checkpoint(checkpoint, layers) if checkpoint is not None else RandomWeights(seed, opened.torch_device)
        )
        engine = Engine(plan, opened, source)
        given = prompts if prompts is not None else random_prompts(plan, seed)
        result = engine.run(given, progress, ways, keep, keep_every_s, ends)
    finally:
        if device is None:
            opened.close()
    return Execution(plan, result.tokens, result.timeline, result.peak_bytes)


def _check_same_model(plan: Plan, checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        what = "a checkpoint is a folder, this is a file" if checkpoint.exists() else "no such folder"
        cure = "Give the Hugging Face folder with config.json and the safetensors"
        raise InputError(what, where=str(checkpoint), cure=cure)
    found = load_model(str(checkpoint / CONFIG_FILE), dtype=plan.model.dtype)
    if found.content_hash != plan.model.content_hash:
        differing = [
            f"{key} {getattr(found, key)} (planned {getattr(plan.model, key)})"
            for key in type(found).model_fields
            if key != "name" and getattr(found, key) != getattr(plan.model, key)
        ]
        raise InputError(
            f"this checkpoint is not the model of the plan, {plan.model.name}: {', '.join(differing)}",
            where=str(checkpoint),
            cure=f"Plan for it: hybridserve plan --model {checkpoint}",
        )
