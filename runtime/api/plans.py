"""`hybridserve.plan`: a plan with everything that can be done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from planner import plan as files
from planner import report, selection
from planner.attribution import Attribution
from planner.errors import InputError
from planner.explain_report import explain_report, explain_result
from planner.given import Given
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.peers.catalogue import Peer
from planner.planning import make_plan
from planner.policies import POLICIES, Policy
from planner.results import plan_result, times
from planner.sweep import figures_of
from planner.timeline import Timeline
from planner.trace import write_trace
from planner.verification import predicted_timeline
from planner.wave_attribution import attribute_waves
from planner.workload import Workload
from runtime.api.jobs import HardwareLike, ModelLike, WorkloadLike, given_of, lengths_of, selected
from runtime.api.results import Result
from runtime.commands.shared import need_plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from runtime.api.comparing import Comparison
    from runtime.api.running import Run
    from runtime.api.sweeping import Sweep, Values


@dataclass(frozen=True, repr=False)
class Plan(Result):
    """How a job is run best, what that is predicted to take, and how far from the best it can be."""

    record: files.Plan
    """Every decision and figure, as the plan file has them."""
    given: Given
    """What was asked for."""
    path: Path | None = None
    """The file that it was read from."""

    @property
    def policy(self) -> str:
        """What the plan was restricted to: a name of `POLICIES`."""
        return self.record.policy

    @property
    def model(self) -> ModelSpec:
        """The model, shapes and data type."""
        return self.record.model

    @property
    def hardware(self) -> HardwareProfile:
        """The machine."""
        return self.record.hardware

    @property
    def workload(self) -> Workload:
        """The requests."""
        return self.record.workload

    @property
    def throughput_tokens_per_s(self) -> float:
        """Generated tokens over prefill plus decode time, predicted."""
        return self.record.prediction.throughput_tokens_per_s

    @property
    def total_s(self) -> float:
        """The whole job, seconds, predicted."""
        return self.record.prediction.total_s

    @property
    def prefill_s(self) -> float:
        """Until the first token of all requests, seconds, predicted."""
        return self.record.prediction.prefill_s

    @property
    def decode_s(self) -> float:
        """All decode steps, seconds, predicted."""
        return self.record.prediction.decode_s

    @property
    def decode_step_s(self) -> float:
        """Mean decode step, seconds, predicted: one more token for every request."""
        return self.record.prediction.decode_step_s

    @property
    def bound_total_s(self) -> float:
        """Under this cost model and policy no plan ends sooner; seconds."""
        return self.record.bound_total_s

    @property
    def gap(self) -> float:
        """(predicted - bound) / predicted: a share of one."""
        return self.record.gap

    @property
    def act_share(self) -> float:
        """Share of the cached blocks kept as activations, mean over the decode steps."""
        return self.record.prediction.act_share

    @property
    def binding(self) -> str:
        """What decode is limited by: `link` or `compute`."""
        return self.record.prediction.binding

    @property
    def why(self) -> list[str]:
        """Sentences: why the plan is as it is."""
        return self.record.why

    @property
    def what_if(self) -> list[files.WhatIf]:
        """What a step more of each resource would bring: `change`, `tokens_per_s` and how that is known."""
        return self.record.what_if

    def write(self, path: str | Path) -> Path:
        """Write the plan file that `hybridserve run` takes, whole or not at all; InputError where that cannot be."""
        selection.check_files({"path": Path(path)}, self.given.files())
        self.record.write(Path(path))
        return Path(path)

    def simulate(self) -> Simulation:
        """The predicted timeline, operation by operation. InputError where the plan's file says something else."""
        return Simulation(self, predicted_timeline(self.record, self.path or Path("plan")))

    def explain(self) -> Explanation:
        """Where the predicted time goes; seconds of work for a large job. InputError as of `simulate`."""
        predicted_timeline(self.record, self.path or Path("plan"))
        return Explanation(self, attribute_waves(self.record.hardware, self.record.model, self.record.waves))

    def run(
        self, *, checkpoint: str | Path | None = None, random_weights: int | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> Run:  # fmt: skip
        """Execute the plan with the weights of a checkpoint, or random ones of a seed (default 0).

        `prompts`: token ids of every request, as long as planned; without them, random ones. InputError for what does
        not fit the plan, RunError where the device is missing or fails. Files of prompts, and runs that go on after a
        crash, are what `hybridserve run` is for.
        """
        predicted_timeline(self.record, self.path or Path("plan"))
        from runtime.api.running import run_plan  # noqa: PLC0415

        return run_plan(self.record, checkpoint, random_weights, prompts)

    def compare(self, policies: str | Sequence[str] | None = None, *, execute: bool = False) -> Comparison:
        """Plan the same job with other policies, and with `execute` run them: see `hybridserve.compare`."""
        from runtime.api.comparing import compared  # noqa: PLC0415

        return compared(self.given, policies, execute)

    def sweep(
        self, over: Mapping[str, Values], *, policies: str | Sequence[str] | None = None, workers: int | None = None
    ) -> Sweep:
        """Plan the job again for every combination of values, by default with this policy: see `hybridserve.sweep`.

        A key that was given for this plan takes the values of the sweep instead.
        """
        from runtime.api.sweeping import swept  # noqa: PLC0415

        silent = dict.fromkeys(name for name in over if name in vars(self.given))
        given = replace(self.given, **silent)
        return swept(given, over, self.policy if policies is None else policies, workers)

    def plot_split(self, axes: Axes | None = None) -> Figure:
        """The form of the cache over the context, of all requests. InputError without matplotlib."""
        need_plots("plot_split")
        from runtime.plots.placement import split_figure  # noqa: PLC0415

        return split_figure(self.record, axes)

    def plot_memory(self) -> Figure:
        """Both memory budgets as bars, GB. InputError without matplotlib."""
        need_plots("plot_memory")
        from runtime.plots.placement import memory_figure  # noqa: PLC0415

        return memory_figure(self.record)

    def result(self) -> dict[str, Any]:
        return plan_result(self.record)

    def report(self) -> RenderableType:
        return report.plan_report(self.record)

    def rows(self) -> list[dict[str, Any]]:
        """One row: the columns of `sweep`."""
        return [{"policy": self.policy, **figures_of(self.result())}]

    def __repr__(self) -> str:
        return (
            f"<Plan {self.policy}: {report.title_of(self.record)}, {self.throughput_tokens_per_s:.4g} tokens/s, "
            f"gap {self.gap:.2%}>"
        )


@dataclass(frozen=True, repr=False)
class Simulation(Result):
    """The predicted timeline of a plan."""

    plan: Plan
    timeline: Timeline

    def plot(self, step: int | None = None, layers: tuple[int, int] | None = None) -> Figure:
        """One step, every stream a lane. `step`: 0 is prefill, by default the decode step in the middle; `layers`: only
        what is done for the first to the last of them. InputError where there is none such, or no matplotlib."""
        need_plots("plot")
        from runtime.plots.timelines import timelines_figure  # noqa: PLC0415

        return timelines_figure({"predicted": self.timeline}, step, layers)

    def write_trace(self, path: str | Path) -> Path:
        """Write a trace that ui.perfetto.dev opens; InputError where that cannot be."""
        selection.check_files({"path": Path(path)}, self.plan.given.files())
        write_trace(Path(path), self.plan.record, {"predicted": self.timeline})
        return Path(path)

    def result(self) -> dict[str, Any]:
        return {**self.plan.result(), **times(self.timeline)}

    def report(self) -> RenderableType:
        return self.plan.report()

    def rows(self) -> list[dict[str, Any]]:
        """Every operation: kind, stream, step, layer, part, and start_s, end_s, nbytes."""
        return [span._asdict() for span in self.timeline.spans]

    def __repr__(self) -> str:
        return f"<Simulation of {self.plan!r}: {len(self.timeline.spans):,} operations>"


@dataclass(frozen=True, repr=False)
class Explanation(Result):
    """Where the predicted time of a plan goes."""

    plan: Plan
    attribution: Attribution
    """Streams and kinds of operations of each phase, exposed time, and each resource infinitely fast."""

    @cached_property
    def verdict(self) -> list[str]:
        """Sentences: what binds, and what would help at most."""
        found: list[str] = self.result()["verdict"]
        return found

    def plot(self) -> Figure:
        """What every stream is busy with, beside how long a step takes. InputError without matplotlib."""
        need_plots("plot")
        from runtime.plots.resources import resources_figure  # noqa: PLC0415

        return resources_figure(self.attribution)

    def result(self) -> dict[str, Any]:
        return explain_result(self.plan.record, self.attribution)

    def report(self) -> RenderableType:
        return explain_report(self.plan.record, self.attribution)

    def rows(self) -> list[dict[str, Any]]:
        """Every kind of operation of every phase."""
        return [
            {"phase": name, "kind": kind, **{k: v for k, v in vars(use).items() if k not in ("terms", "gemms")}}
            for name, phase in self.attribution.phases.items() for kind, use in phase.kinds.items()
        ]  # fmt: skip

    def __repr__(self) -> str:
        return f"<Explanation of {self.plan!r}>"


def plan(
    *, model: ModelLike, hardware: HardwareLike, requests: int | None = None, prompt_len: int | None = None,
    gen_len: int | None = None, workload: WorkloadLike | None = None, policy: str = "hybrid",
    act_share: float | None = None, mini_batches: int | None = None, waves: int | None = None,
    dtype: str | None = None, gpu_memory_gb: float | None = None,
) -> Plan:  # fmt: skip
    """The best plan under the cost model, with its bound: `hybridserve plan`, and every argument an option of it.

    The job is `requests` equal ones of `prompt_len` and `gen_len` tokens, or a `workload`. `act_share`, `mini_batches`
    and `waves` force what the solver would choose. InputError for what is misspelt or contradictory, InfeasibleError
    where memory holds no single request: its message says which memory, how much, and what would help.
    """
    given = given_of(
        model, hardware, workload, requests=requests, prompt_len=prompt_len, gen_len=gen_len, act_share=act_share,
        mini_batches=mini_batches, waves=waves, dtype=dtype, gpu_memory_gb=gpu_memory_gb,
    )  # fmt: skip
    chosen = selection.policy_named(policy, "--policy")
    if isinstance(chosen, Peer):
        what = f"'{policy}' is another system: what it would do is predicted, there is no plan"
        raise InputError(what, where="--policy", cure=f"Use compare, or choose one of {', '.join(POLICIES)}")
    return planned(given, chosen)


def planned(given: Given, policy: Policy) -> Plan:
    """The plan for what is given, as the command makes it."""
    what = selected(given, [policy], "--policy")
    return Plan(make_plan(what.hardware, what.model, what.workload, policy, what.options), given)


def read_plan(path: str | Path) -> Plan:
    """A plan from the file that `Plan.write` or `hybridserve plan -o` wrote; InputError where it does not hold."""
    record = files.read_plan(Path(path))
    return Plan(record, given_of(record.model, record.hardware, **lengths_of(record.workload)), Path(path))
