"""`hybridserve.sweep`: what if anything were otherwise, planned again for every value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from planner import selection, sweep_report
from planner.errors import InputError
from planner.given import Given, Limits, within
from planner.policies import CACHES
from planner.sweep import FIGURES, MOST_WORKERS, Row, cores
from planner.sweep import sweep as run_sweep
from planner.sweep_axes import Axis, read_axes
from planner.sweep_points import grid
from planner.terminal import Advance
from runtime.api.comparing import names_of
from runtime.api.jobs import HardwareLike, ModelLike, WorkloadLike, given_of
from runtime.api.results import Result
from runtime.commands.shared import need_plots, workload_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = str | float | Iterable[str | float]
"""Of one key: numbers or names, or text as `--set` takes it: "8,16,32", "8..64*2", "x0.5,x2"."""


BY_KEY = 'Give values by key, like {"link.h2d": [16, 25, 32]}'


@dataclass(frozen=True, repr=False)
class Sweep(Result):
    """Plans of one job for every combination of values."""

    axes: tuple[Axis, ...]
    """Keys with their values, the first varying slowest."""
    plans: tuple[Row, ...]
    """A row for each point and policy: its figures, or why there is no plan."""

    @property
    def flips(self) -> list[sweep_report.Flip]:
        """Between which values something else begins to bind."""
        return sweep_report.flips(self.axes, self.plans)

    def plot(self, what: str = "throughput_tokens_per_s") -> Figure:
        """Lines of one figure, a column of `rows`, over the first key. InputError for more than two keys, for what
        cannot be drawn, and without matplotlib."""
        need_plots("plot")
        from runtime.plots.sweeps import lines_figure  # noqa: PLC0415

        return lines_figure(self.axes, self.plans, what)

    def plot_tradeoff(self, x: str = "decode_step_s", y: str = "throughput_tokens_per_s") -> Figure:
        """One figure over another, a point for each plan: batch against latency. InputError as of `plot`."""
        need_plots("plot_tradeoff")
        from runtime.plots.sweeps import tradeoff_figure  # noqa: PLC0415

        return tradeoff_figure(self.axes, self.plans, x, y)

    def result(self) -> dict[str, Any]:
        return sweep_report.sweep_result(self.axes, self.plans)

    def report(self) -> RenderableType:
        return Group(*sweep_report.sweep_report(self.axes, self.plans))

    def rows(self) -> list[dict[str, Any]]:
        """The columns of the command's CSV: `set.KEY`, policy, figures, what binds, why there is no plan."""
        return [
            {
                **{f"set.{key}": value for key, value in row.settings.items()}, "policy": row.policy,
                **(row.figures or dict.fromkeys(FIGURES)), "binds": sweep_report.binds(row),
                sweep_report.INFEASIBLE: row.infeasible,
            }
            for row in self.plans
        ]  # fmt: skip

    def __repr__(self) -> str:
        return f"<Sweep over {', '.join(axis.key.name for axis in self.axes)}: {len(self.plans)} plans>"


def sweep(
    over: Mapping[str, Values], *, model: ModelLike | None = None, hardware: HardwareLike | None = None,
    requests: int | None = None, prompt_len: int | None = None, gen_len: int | None = None,
    workload: WorkloadLike | None = None, policies: str | Sequence[str] | None = None, workers: int | None = None,
    act_share: float | None = None, mini_batches: int | None = None, waves: int | None = None,
    dtype: str | None = None, gpu_memory_gb: float | None = None,
) -> Sweep:  # fmt: skip
    """Plan a job over values of anything: `hybridserve sweep`, and every argument an option of it.

    `over`: values by key, {"link.h2d": [16, 25, 32]}. `workers`: processes, by default one a core; a script that calls
    this with more than one does so below `if __name__ == "__main__":`. Errors as of `compare`.
    """
    given = given_of(
        model, hardware, workload, requests=requests, prompt_len=prompt_len, gen_len=gen_len, act_share=act_share,
        mini_batches=mini_batches, waves=waves, dtype=dtype, gpu_memory_gb=gpu_memory_gb,
    )  # fmt: skip
    return swept(given, over, policies, workers)


def swept(given: Given, over: Mapping[str, Values], policies: str | Sequence[str] | None, workers: int | None) -> Sweep:
    """The sweep of what is given."""
    if not isinstance(over, Mapping):
        raise InputError(f"{over!r} is no mapping", where="over", cure=BY_KEY)
    if workers is not None:
        workers = int(within(workers, Limits(1, MOST_WORKERS), "workers"))
    if not over:
        raise InputError("nothing to sweep", where="over", cure=BY_KEY)
    axes = read_axes([f"{key}={_text(values)}" for key, values in over.items()], given.hardware)
    return swept_axes(given, axes, policies, workers, _silent)


def swept_axes(
    given: Given, axes: tuple[Axis, ...], policies: str | Sequence[str] | None, workers: int | None, advance: Advance
) -> Sweep:
    """The sweep of what is given, as the command makes it."""
    names = ",".join(CACHES) if policies is None else names_of(policies)
    chosen = selection.policies_named(names, execute=False, ours=False)
    points = grid(given, axes, chosen, workload_of(given.workload))
    rows = run_sweep(points, chosen, workers or cores(), advance)
    if all(row.figures is None for row in rows):
        raise selection.NothingFeasibleError(sweep_report.reasons(axes, rows))
    return Sweep(axes, tuple(rows))


def _text(values: Values) -> str:
    if isinstance(values, str):
        return values
    many = values if isinstance(values, Iterable) else [values]
    return ",".join(value if isinstance(value, str) else f"{value!r}" for value in _plain(many))


def _plain(values: Iterable[Any]) -> Iterable[Any]:
    """Numbers of numpy as Python writes them."""
    return (value.item() if hasattr(value, "item") else value for value in values)


def _silent(done: int, of: int, text: str = "") -> None:
    """No progress shown."""
