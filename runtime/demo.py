"""The demo: profile this machine, scale OPT-30B on an RTX 4090 down to it, plan and execute three policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from planner import report, tables
from planner.files import dump_yaml, write_whole
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.plan import Plan
from planner.policies import CACHES
from planner.scale import Ratios
from planner.speed import TOLERANCE, Speed
from planner.trace import write_trace
from runtime.api.scale import SLOTS_SHARE, ScaleModel
from runtime.execution import Execution, execute
from runtime.gauge import BEFORE_A_RUN, Gauge
from runtime.profiler import Profiler, Request

Progress = Callable[[int, int, str], None]
Planner = Callable[[HardwareProfile], Plan]
"""Makes a plan for a machine as fast as it is now."""

TARGET = ("opt-30b", "rtx4090-pcie4", 128, 640)
"""Model, hardware, requests and prompt length whose ratios the demo keeps."""
HIDDEN, LAYERS, VOCAB, REQUESTS = 512, 4, 2048, 16
PROFILE_HIDDEN = 448
"""Kernels are profiled at another width than they are run at."""
GEN_LEN, CURVE_GEN_LEN = 16, 7
TURNS = 3
"""Runs of each plan; the one in the middle by predicted over measured time counts."""
CURVE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Demo:
    """What the demo measured."""

    hardware: HardwareProfile
    ratios: Ratios
    runs: list[Execution]
    curve: list[Execution]
    folder: Path

    @property
    def mean_step_error(self) -> float:
        """Mean over the policies of |predicted / measured - 1| of the decode step."""
        errors = [abs(float(run.result()["error"]["decode_step_s"])) for run in self.runs]
        return sum(errors) / len(errors)

    @property
    def order_holds(self) -> bool:
        """True when the policies rank by measured throughput as they were predicted to."""
        predicted = sorted(self.runs, key=lambda r: -r.plan.prediction.throughput_tokens_per_s)
        return predicted == sorted(self.runs, key=lambda r: -r.measured.throughput_tokens_per_s)

    @property
    def slowdowns(self) -> list[float]:
        """Of each policy's run: how many times as long as the profile says products took just before it."""
        dtype = self.runs[0].plan.model.dtype
        best = self.hardware.gpu.gemm_rates(dtype).best
        return [best / run.plan.hardware.gpu.gemm_rates(dtype).best for run in self.runs]

    @property
    def steady(self) -> bool:
        """True when the machine was about as fast for every policy: only then do their figures compare."""
        return max(self.slowdowns) <= (1 + TOLERANCE) * min(self.slowdowns)

    def result(self) -> dict[str, Any]:
        """As `demo --json` prints it."""
        return {
            "scale_model_of": self.hardware.scale_model_of,
            "rebuild_over_kv": self.ratios.rebuild_over_kv,
            "weights_over_kv": self.ratios.weights_over_kv,
            "policies": [run.result() for run in self.runs],
            "curve": [
                {"act_share": r.plan.prediction.act_share, "predicted_decode_step_s": r.plan.prediction.decode_step_s,
                 "measured_decode_step_s": r.measured.decode_step_s}
                for r in self.curve
            ],
            "mean_decode_step_error": self.mean_step_error,
            "order_holds": self.order_holds,
            "slowdowns": self.slowdowns,
            "machine": self.hardware.machine,
            "files": [str(path) for path in sorted(self.folder.iterdir())],
        }  # fmt: skip

    def report(self) -> RenderableType:
        """For people."""
        link = self.hardware.link.h2d_bytes_per_s.value
        parts: list[RenderableType] = [
            Text(
                f"Scale model of {self.hardware.scale_model_of}: link paced at {tables.size(link)}/s, "
                f"rebuild : K/V transfer = {self.ratios.rebuild_over_kv:.2f}, "
                f"weights : K/V of the batch = {self.ratios.weights_over_kv:.2f}. Ratios carry over, speeds do not."
            ),
            report.policies_report(report.title_of(self.runs[0].plan), [run.plan for run in self.runs]),
            report.errors_report([(run.plan.policy, run.result()) for run in self.runs]),
            *(
                report.streams_report(run.plan.policy, run.predicted, run.measured, run.plan.hardware.link)
                for run in self.runs
            ),
            Text(
                f"Decode step, mean error of {len(self.runs)} policies: {self.mean_step_error:.1%}; "
                f"measured order {'as' if self.order_holds else 'NOT as'} predicted"
            ),
            Text(
                f"Just before these runs products took {min(self.slowdowns):.2f} to {max(self.slowdowns):.2f} times as "
                "long as the profile says. Each plan is made for the machine as it was then"
                + ("" if self.steady else ", so its policies do not compare: the machine is busy, run the demo again")
                + "."
            ),
            Text("Written: " + ", ".join(str(path) for path in sorted(self.folder.iterdir()))),
        ]
        return Group(*parts)


def run_demo(folder: Path, progress: Progress) -> Demo:
    """Measure, plan, execute, compare; writes profile, plans, trace, plot and results into `folder`."""
    stages = Profiler.STAGES + TURNS * (len(CACHES) + len(CURVE_SHARES))
    request = Request(device="cpu", hidden=PROFILE_HIDDEN, heads=PROFILE_HIDDEN // 64, profile_id="this-machine")
    profiler = Profiler(request, lambda done, _, text: progress(done, stages, f"profile: {text}"))
    profile = profiler.run()
    scale = ScaleModel.of(
        profile, load_model(TARGET[0]), load_hardware(TARGET[1]), *TARGET[2:], hidden=HIDDEN, layers=LAYERS,
        vocab=VOCAB, scale_requests=REQUESTS, gen_len=GEN_LEN, slots_share=SLOTS_SHARE,
    )  # fmt: skip
    hardware = scale.hardware
    write_whole(folder / "profile.yaml", dump_yaml(hardware.to_plain()))
    policies = {name: partial(_plan, scale, GEN_LEN, name, None) for name in CACHES}
    shares = {f"ACT share {share:.0%}": partial(_plan, scale, CURVE_GEN_LEN, "hybrid", share) for share in CURVE_SHARES}
    planned: dict[str, Planner] = {**policies, **shares}
    gauge = Gauge(hardware, profiler.reference_s)
    found = _in_turn(hardware, gauge, planned, lambda done, what: progress(Profiler.STAGES + done, stages, what))
    runs, curve = found[: len(policies)], found[len(policies) :]
    for run in runs:
        run.plan.write(folder / f"plan-{run.plan.policy}.yaml")
    best = max(runs, key=lambda run: run.measured.throughput_tokens_per_s)
    write_trace(folder / "trace.json", best.plan, {"predicted": best.predicted, "measured": best.measured})
    demo = Demo(hardware, scale.ratios, runs, curve, folder)
    _plot(demo, folder / "demo.png")
    write_whole(folder / "results.json", json.dumps(demo.result(), indent=1))
    return demo


def _plan(scale: ScaleModel, gen_len: int, policy: str, act_share: float | None, hardware: HardwareProfile) -> Plan:
    return scale.plan(gen_len, policy, act_share, hardware).record


def _in_turn(
    hardware: HardwareProfile, gauge: Gauge, planned: Mapping[str, Planner], progress: Callable[[int, str], None]
) -> list[Execution]:
    """Of several runs of each plan, taken in turn, the one in the middle by predicted over measured time: neither luck
    nor a disturbance.

    Before each run a gauge says how fast the machine is now, and the plan with its prediction is made from that.
    """
    runs: dict[str, list[Execution]] = {name: [] for name in planned}
    for turn in range(TURNS):
        for i, (name, plan) in enumerate(planned.items()):
            progress(turn * len(planned) + i, f"{name}, run {turn + 1} of {TURNS}")
            runs[name].append(execute(plan(Speed.of(gauge.read(BEFORE_A_RUN)).applied(hardware))))
    return [sorted(some, key=lambda run: run.predicted.total_s / run.measured.total_s)[TURNS // 2]
            for some in runs.values()]  # fmt: skip


def _plot(demo: Demo, path: Path) -> None:
    """Throughput per policy, and the measured V-curve with the planned point on it."""
    from runtime.plots.runs import demo_figure  # noqa: PLC0415  (matplotlib is optional)

    demo_figure(demo.runs, demo.curve, path)
