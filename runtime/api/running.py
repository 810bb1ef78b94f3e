"""Plans executed: what was measured, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from planner import plan as files
from planner import report
from planner.errors import InputError
from planner.results import TIME_KEYS
from planner.timeline import Timeline
from planner.trace import write_trace
from runtime.api.results import Result
from runtime.commands.shared import need_plots, need_runtime

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from runtime.execution import Execution


@dataclass(frozen=True, repr=False)
class Run(Result):
    """A finished run."""

    execution: Execution

    @property
    def plan(self) -> files.Plan:
        """What was executed, its prediction made before."""
        return self.execution.plan

    @property
    def tokens(self) -> list[list[int]]:
        """Of each request, the token ids that it generated."""
        return self.execution.tokens

    @property
    def measured(self) -> Timeline:
        """The measured timeline, operation by operation."""
        return self.execution.measured

    @property
    def predicted(self) -> Timeline:
        """The timeline that was predicted, from the plan alone."""
        return self.execution.predicted

    @property
    def error(self) -> dict[str, float]:
        """(predicted - measured) / measured, by key: `throughput_tokens_per_s`, `decode_step_s`, ..."""
        found: dict[str, float] = self.result()["error"]
        return found

    def plot(self, step: int | None = None, layers: tuple[int, int] | None = None) -> Figure:
        """One step, predicted and measured under each other; arguments as of `Simulation.plot`."""
        need_plots("plot")
        from runtime.plots.timelines import timelines_figure  # noqa: PLC0415

        return timelines_figure({"predicted": self.predicted, "measured": self.measured}, step, layers)

    def write_trace(self, path: str | Path) -> Path:
        """Write a trace with both timelines, for ui.perfetto.dev; InputError where that cannot be."""
        write_trace(Path(path), self.execution.plan, {"predicted": self.predicted, "measured": self.measured})
        return Path(path)

    def result(self) -> dict[str, Any]:
        return self.execution.result()

    def report(self) -> RenderableType:
        name = self.plan.policy
        return Group(
            report.streams_report(name, self.predicted, self.measured, self.execution.plan.hardware.link),
            report.kinds_report(name, self.predicted, self.measured), report.errors_report([(name, self.result())]),
        )  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row for each quantity: predicted, measured, error."""
        found = self.result()
        return [
            {
                "policy": self.plan.policy, "quantity": key, "predicted": found[key],
                "measured": found["measured"][key], "error": found["error"][key],
            }
            for key in TIME_KEYS
        ]  # fmt: skip

    def __repr__(self) -> str:
        rate, error = self.measured.throughput_tokens_per_s, self.error["throughput_tokens_per_s"]
        title = report.title_of(self.plan)
        return f"<Run {self.plan.policy}: {title}, {rate:.4g} tokens/s measured, predicted {error:+.1%}>"


def run_plan(
    plan: files.Plan, checkpoint: str | Path | None = None, random_weights: int | None = None,
    prompts: Sequence[Sequence[int]] | None = None, advance: Any = None,
) -> Run:  # fmt: skip
    """Execute a plan as every command does. InputError for what excludes each other, and without torch."""
    if checkpoint is not None and random_weights is not None:
        raise InputError("checkpoint and random_weights exclude each other", where="run", cure="Give one")
    need_runtime()
    from runtime.execution import execute  # noqa: PLC0415  (torch is imported only where something runs)

    if prompts is not None:
        _check_prompts(plan, prompts)
    folder = None if checkpoint is None else Path(checkpoint)
    return Run(execute(plan, prompts, folder, random_weights or 0, advance))


def _check_prompts(plan: files.Plan, prompts: Sequence[Sequence[int]]) -> None:
    """As many as planned, as long as planned, of tokens that the model has."""
    wanted = plan.workload.requests
    if len(prompts) != len(wanted):
        what = f"{len(prompts)} prompts for a plan of {len(wanted)} requests"
        raise InputError(what, where="prompts", cure="Plan for as many")
    for i, (prompt, request) in enumerate(zip(prompts, wanted, strict=True)):
        if len(prompt) != request.prompt_len:
            what = f"{len(prompt)} tokens, planned are {request.prompt_len}"
            raise InputError(what, where=f"prompts[{i}]", cure="Plan for prompts of these lengths")
        if not all(isinstance(token, Integral) and 0 <= token < plan.model.vocab for token in prompt):
            raise InputError("not all are token ids", where=f"prompts[{i}]", cure=f"Give 0 to {plan.model.vocab - 1}")


def plot_curve(runs: Sequence[Run], planned: Sequence[Run] = (), axes: Axes | None = None) -> Figure:
    """Decode step over the share of activations of `runs`, predicted and measured; stars mark `planned` ones.

    InputError without runs, and without matplotlib.
    """
    _need_runs(runs, "plot_curve")
    from runtime.plots.runs import curve_figure  # noqa: PLC0415

    return curve_figure(runs, planned, axes)


def plot_accuracy(runs: Sequence[Run]) -> Figure:
    """Predicted against measured, decode step and prefill of every run; the band is 10 %.

    InputError without runs, and without matplotlib.
    """
    _need_runs(runs, "plot_accuracy")
    from runtime.plots.runs import scatter_figure  # noqa: PLC0415

    found = [(run.plan.policy, run.result()) for run in runs]
    keys = [key for key in ("decode_step_s", "prefill_s") if all(one["measured"][key] for _, one in found)]
    return scatter_figure({key: [(name, one[key], one["measured"][key]) for name, one in found] for key in keys})


def _need_runs(runs: Sequence[Run], what: str) -> None:
    need_plots(what)
    if not runs:
        raise InputError("there is nothing to draw", where=what, cure="Give runs: what Plan.run returns")
    need_runtime()
