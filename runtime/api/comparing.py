"""`hybridserve.compare`: one job with several policies, side by side, and executed where that is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from planner import plan as files
from planner import report, selection
from planner.errors import InputError
from planner.given import FIXED, Given
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.peers.forecast import Forecast, forecast_result
from planner.results import plan_result
from planner.sweep import figures_of
from runtime.api.jobs import HardwareLike, ModelLike, WorkloadLike, given_of, selected
from runtime.api.plans import Plan
from runtime.api.results import Result
from runtime.api.running import Run, run_plan
from runtime.commands.shared import need_plots, need_runtime

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Watching = Callable[[str], AbstractContextManager[Any]]
"""What shows that something works: given what it is, yields a progress function or nothing."""


def unwatched(_: str) -> AbstractContextManager[None]:
    """Shows nothing."""
    return nullcontext()


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Plans of one job, forecasts for other systems, and runs."""

    found: dict[str, files.Plan | Forecast]
    """By policy; what is infeasible is missing."""
    infeasible: dict[str, str]
    """By policy, why there is no plan."""
    given: Given
    model: ModelSpec
    hardware: HardwareProfile
    requests: int
    runs: dict[str, Run] = field(default_factory=dict)
    """By policy; empty unless executed."""

    @property
    def plans(self) -> dict[str, Plan]:
        """By policy, what our engine can run."""
        return {name: Plan(one, self.given) for name, one in self.found.items() if isinstance(one, files.Plan)}

    @property
    def best(self) -> str:
        """The policy with the highest predicted throughput."""
        return str(max(self.rows(), key=lambda row: row["throughput_tokens_per_s"] or 0.0)["policy"])

    def plot(self, axes: Axes | None = None) -> Figure:
        """Throughput of every policy, predicted and as far as executed measured. InputError without matplotlib."""
        need_plots("plot")
        from runtime.plots.runs import policies_figure  # noqa: PLC0415

        rates = {
            row["policy"]: (row["throughput_tokens_per_s"], row.get("measured_throughput_tokens_per_s"))
            for row in self.rows() if row["throughput_tokens_per_s"] is not None
        }  # fmt: skip
        return policies_figure(rates, axes)

    def _results(self) -> list[dict[str, Any]]:
        return [self._result_of(name, one) for name, one in self.found.items()]

    def _result_of(self, name: str, one: files.Plan | Forecast) -> dict[str, Any]:
        if name in self.runs:
            return self.runs[name].result()
        return plan_result(one) if isinstance(one, files.Plan) else forecast_result(one, self.hardware)

    def result(self) -> dict[str, Any]:
        return {"policies": self._results(), "infeasible": self.infeasible}

    def report(self) -> RenderableType:
        title = report.job_title(self.model.name, self.hardware.id, self.requests)
        shown = [report.policies_report(title, list(self.found.values())), *report.refusals(self.infeasible)]
        if self.runs:
            shown.append(report.errors_report([(name, run.result()) for name, run in self.runs.items()]))
        return Group(*shown)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each policy: the columns of `sweep`, measured times as `measured_...`, and why there is no plan."""
        found = []
        for one in self._results():
            measured = {f"measured_{key}": v for key, v in one.get("measured", {}).items() if isinstance(v, float)}
            found.append({"policy": one["policy"], **figures_of(one), **measured, "infeasible": None})
        empty = dict.fromkeys(figures_of({"streams": _IDLE, "memory": {}}))
        return found + [{"policy": name, **empty, "infeasible": why} for name, why in self.infeasible.items()]

    def __repr__(self) -> str:
        title = report.job_title(self.model.name, self.hardware.id, self.requests)
        return f"<Comparison of {', '.join(self.found)}: {title}>"


_IDLE: dict[str, Any] = {name: {"busy_fraction": None} for name in ("h2d", "compute")}


def compare(
    *, model: ModelLike, hardware: HardwareLike, requests: int | None = None, prompt_len: int | None = None,
    gen_len: int | None = None, workload: WorkloadLike | None = None, policies: str | Sequence[str] | None = None,
    execute: bool = False, act_share: float | None = None, mini_batches: int | None = None, waves: int | None = None,
    dtype: str | None = None, gpu_memory_gb: float | None = None,
) -> Comparison:  # fmt: skip
    """One job with several policies: `hybridserve compare`, and every argument an option of it.

    `policies`: names, or text with commas between; by default all that can be shown. Errors as of `plan`; where no
    policy is feasible, a HybridserveError with every reason.
    """
    given = given_of(
        model, hardware, workload, requests=requests, prompt_len=prompt_len, gen_len=gen_len, act_share=act_share,
        mini_batches=mini_batches, waves=waves, dtype=dtype, gpu_memory_gb=gpu_memory_gb,
    )  # fmt: skip
    return compared(given, policies, execute)


def compared(
    given: Given, policies: str | Sequence[str] | None, execute: bool, planning: Watching = unwatched,
    running: Watching = unwatched,
) -> Comparison:  # fmt: skip
    """The comparison of what is given, as the command makes it."""
    is_fixed = any(getattr(given, name) is not None for name in FIXED)
    chosen = selection.policies_named(names_of(policies), execute, ours=execute or is_fixed)
    what = selected(given, chosen, "--policies")
    if execute:
        need_runtime()
    refused: dict[str, str] = {}
    found: dict[str, files.Plan | Forecast] = {}
    for policy in chosen:
        with planning(f"planning {policy.name}"):
            one = selection.try_each(what.hardware, what.model, what.workload, policy, what.options, refused)
        if one:
            found[policy.name] = one
    if not found:
        raise selection.NothingFeasibleError(refused)
    runs = {}
    for name, one in found.items():
        if execute and isinstance(one, files.Plan):
            with running(f"running {name}") as advance:
                runs[name] = run_plan(one, advance=advance)
    return Comparison(found, refused, given, what.model, what.hardware, len(what.workload), runs)


def names_of(policies: str | Sequence[str] | None) -> str | None:
    """Names as the command line has them: with commas between."""
    if policies is None or isinstance(policies, str):
        return policies
    if not isinstance(policies, Sequence) or not all(isinstance(name, str) for name in policies):
        cure = "Give a name, or a list of names"
        raise InputError(f"{policies!r} names no policies", where="policies", cure=cure)
    return ",".join(policies)
