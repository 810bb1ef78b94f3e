"""The paper's figure executed in scale: small models and a paced link with the ratios of OPT-6.7B, 30B and 66B.

Predicted before every run from a profile calibrated on other shapes, which goes on being measured in between, at the
speed that a few kernels had before the runs of the last round (`runtime.gauge`): a profile says how fast kernels are
undisturbed. Every round runs all policies of a point one after the other, so that a slow spell of the machine hits them
alike, and gains are of the fastest runs of each. What has been run is kept in out/paper-scale after every run: a
measurement that was broken off goes on from there.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from benchmarks.accuracy import FIRST_ROUNDS, calibration, predicted_now, refuse_shared, times
from benchmarks.accuracy_report import middles
from benchmarks.paper_docs import SCALE
from benchmarks.paper_points import BATCH, HARDWARE, costs_of
from benchmarks.profiling import narrow_profiler
from benchmarks.records import write
from planner.errors import InputError
from planner.files import write_whole
from planner.hardware import HardwareProfile
from planner.model import ModelSpec, load_model
from planner.plan import Plan, read_plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.scale import Ratios, scaled_link, scaled_model, scaled_workload
from planner.search import Options
from planner.speed import Speed
from planner.workload import Workload
from runtime.device import open_device
from runtime.engine import Engine, random_prompts
from runtime.weights import RandomWeights

PARTIAL = Path("out") / "paper-scale"
SHAPES = (("opt-6.7b", 192, 5), ("opt-30b", 256, 4), ("opt-66b", 384, 3))
"""What is scaled down, and the width and layers of its scale model. No width is that of the profile's kernels."""
PROMPTS = (256, 512, 1024, 1920)
POLICIES_RUN = ("kv-only", "act-only", "hybridserve", "hybrid")
REQUESTS, GEN_LEN, VOCAB = 8, 9, 1024
RUNS_PER_TURN = 8
"""Runs between two turns of the profiler."""
ROUNDS = 7
SLOTS_SHARE = 1.2
"""Arena beside weights, as a share of the whole batch's K and V in one layer: room for slots and a few residents."""
STREAMED = Options(max_resident_layers=0, waves=1)
"""The arena could keep a model of a few layers; the card cannot keep those that it stands for."""


@dataclass
class ScalePoint:
    """One policy at one prompt length of one shape, and what was predicted and measured, run by run."""

    target: str
    prompt_len: int
    policy: str
    plan: Plan
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Predicted and measured seconds."""
    engine: Engine | None = None
    """Made for the first run, and kept: loading weights takes as long as a run."""

    @property
    def key(self) -> str:
        return f"{self.target}-{self.prompt_len}-{self.policy}"

    def run(self, profile: HardwareProfile) -> None:
        """Predict, then execute."""
        predicted = predicted_now(self.plan, profile)
        if self.engine is None:
            device = open_device(self.plan.hardware)
            self.engine = Engine(self.plan, device, RandomWeights(0, device.torch_device))
        measured = self.engine.run(random_prompts(self.plan, len(self.runs))).timeline
        self.runs.append({"predicted": times(predicted), "measured": times(measured)})

    def record(self) -> dict[str, Any]:
        """The point as data: of each quantity its run in the middle, and all of them."""
        request, model, prediction = self.plan.workload.requests[0], self.plan.model, self.plan.prediction
        return {
            "split": "validate", "target": self.target, "target_prompt_len": self.prompt_len, "policy": self.policy,
            "hidden": model.hidden, "layers": model.layers, "requests": len(self.plan.workload),
            "prompt_len": request.prompt_len, "gen_len": request.gen_len,
            "link_bytes_per_s": self.plan.hardware.link.h2d_bytes_per_s.value,
            "act_share": prediction.act_share, "binding": prediction.binding,
            "mini_batches": len(self.plan.decisions.mini_batches),
            **middles([(run["predicted"], run["measured"]) for run in self.runs]), "runs": self.runs,
        }  # fmt: skip


def measure(quick: bool, again: bool) -> dict[str, Any]:
    """Everything, in less than a quarter of an hour on a quiet machine with two cores; returns the record.

    `quick`: one shape and prompt length, once, kept nowhere. `again`: forget what was broken off. InputError when a
    plan that was broken off is one of another version.
    """
    started = time.perf_counter()
    folder, rounds = (None, 1) if quick else (PARTIAL, ROUNDS)
    if again and folder and folder.exists():
        shutil.rmtree(folder)
    kept = _kept(folder)
    before_s = float(kept["spent_s"])
    profiler = narrow_profiler("paper-scale-profile")
    with profiler.measuring():
        for i in range(1 if quick else FIRST_ROUNDS):
            _say(f"profile: round {i + 1}")
            profiler.round_of_turns()
        profile = profiler.profile()
        points = list(
            _points(profile, folder, kept["runs"], SHAPES[:1] if quick else SHAPES, PROMPTS[:1] if quick else PROMPTS)
        )
        refuse_shared(profile, [point.plan for point in points])
        done, speeds = 0, deque[Speed](maxlen=len(points))
        for turn in range(rounds):
            for point in _in_turn(points, turn):
                if len(point.runs) > turn:
                    continue
                if done % RUNS_PER_TURN == 0:
                    profiler.turn()
                    profile = profiler.profile()
                speeds.append(profiler.speed())
                point.run(Speed.typical(speeds).applied(profile))
                done += 1
                _keep(folder, points, before_s + time.perf_counter() - started)
                _say(f"round {turn + 1} of {rounds}: {point.key}, {sum(len(p.runs) for p in points)} runs of "
                     f"{rounds * len(points)}")  # fmt: skip
    record = {
        "schema_version": 1, "date": datetime.date.today().isoformat(), "machine": profile.machine,
        "took_s": round(before_s + time.perf_counter() - started), "hardware": HARDWARE,
        "calibrate": calibration(profile), "points": [point.record() for point in points],
    }  # fmt: skip
    if folder:
        _say(f"written: {write(SCALE, record)}")
        shutil.rmtree(folder)
    return record


def _in_turn(points: list[ScalePoint], turn: int) -> Iterator[ScalePoint]:
    """All policies of one point after each other, in another order each round."""
    policies = len(POLICIES_RUN)
    for first in range(0, len(points), policies):
        some = points[first : first + policies]
        yield from (some[(i + turn) % policies] for i in range(policies))


def _points(
    profile: HardwareProfile,
    folder: Path | None,
    known: dict[str, Any],
    shapes: tuple[tuple[str, int, int], ...],
    prompts: tuple[int, ...],
) -> Iterator[ScalePoint]:
    """Planned now, or as they were when the measurement was broken off."""
    for target, hidden, layers in shapes:
        model = scaled_model(load_model(target), hidden, layers, VOCAB)
        for prompt in prompts:
            hardware, job = scaled(profile, model, target, prompt)
            for policy in POLICIES_RUN:
                file = folder / f"{target}-{prompt}-{policy}.yaml" if folder else None
                if file and known:
                    plan = read_plan(file)
                else:
                    plan = make_plan(hardware, model, job, POLICIES[policy], STREAMED)
                    _say(f"planned {target}, prompt {prompt}, {policy}")
                if file and not known:
                    plan.write(file)
                point = ScalePoint(target, prompt, policy, plan)
                point.runs = known.get(point.key, [])
                yield point


def scaled(
    profile: HardwareProfile, model: ModelSpec, target: str, prompt: int
) -> tuple[HardwareProfile, Workload]:  # fmt: skip
    """The machine and the job whose two ratios are those of `target` with the paper's batch on the paper's machine."""
    wanted = Ratios.of(costs_of(target), BATCH * prompt)
    what = f"{target} on {HARDWARE}, {BATCH} requests of {prompt} tokens"
    job = scaled_workload(model, wanted, REQUESTS, GEN_LEN)
    cache = (job.total_prompt_tokens + job.total_generated_tokens) * model.kv_bytes_per_token_layer
    arena = model.outer_bytes + 2 * model.layer_bytes + SLOTS_SHARE * cache
    hardware = scaled_link(profile, model, wanted, what)
    return hardware.with_values(**{"gpu.memory.usable_bytes": float(round(arena))}), job


# ---- what was broken off -------------------------------------------------------------------------


def _begun(folder: Path) -> bool:
    return (folder / "runs.json").exists()


def _kept(folder: Path | None) -> dict[str, Any]:
    """What was kept, or nothing yet. InputError where it is not what `_keep` writes."""
    if folder is None or not _begun(folder):
        return {"spent_s": 0.0, "runs": {}}
    file = folder / "runs.json"
    try:
        found = json.loads(file.read_text())
        quantities = {
            quantity for runs in found["runs"].values() for run in runs for side in ("predicted", "measured")
            for quantity in (run[side]["prefill_s"], run[side]["decode_step_s"], run[side]["total_s"])
        }  # fmt: skip
        whole = all(isinstance(one, float) and 0 <= one < inf for one in {found["spent_s"], *quantities})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError("this is no measurement that was broken off", where=str(file), cure="Begin anew with --again")
    return dict(found)


def _keep(folder: Path | None, points: list[ScalePoint], spent_s: float) -> None:
    if folder:
        kept = {"spent_s": spent_s, "runs": {point.key: point.runs for point in points}}
        write_whole(folder / "runs.json", json.dumps(kept))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
