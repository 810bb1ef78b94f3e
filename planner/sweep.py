"""A sweep: one plan for each point and policy, on several cores. The rows do not depend on how many."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from planner.costs import CostModel
from planner.errors import HybridserveError, InfeasibleError, RunError
from planner.peers.catalogue import PEERS, Peer
from planner.peers.forecast import forecast_result
from planner.planning import make_plan
from planner.policies import POLICIES, Policy
from planner.results import TIME_KEYS, plan_result
from planner.sweep_axes import Value
from planner.sweep_points import Point
from planner.terminal import Advance

Done = TypeVar("Done")
MOST_WORKERS = 1024
FIGURES = (
    *TIME_KEYS, "bound_total_s", "gap", "act_share", "waves", "mini_batches", "resident_layers", "binding",
    "link_busy_fraction", "compute_busy_fraction", "gpu_planned_bytes", "gpu_capacity_bytes", "host_planned_bytes",
    "host_capacity_bytes",
)  # fmt: skip
"""Of a plan, with the names and units that `plan --json` gives them; mini-batches and layers are counted. A forecast of
another system has None for what it does not decide."""


@dataclass(frozen=True)
class Row:
    """One point and policy: its `FIGURES`, or why there is no plan."""

    settings: dict[str, Value]
    policy: str
    figures: dict[str, Any] | None
    infeasible: str | None = None


def sweep(points: Sequence[Point], policies: Sequence[Policy | Peer], workers: int, advance: Advance) -> list[Row]:
    """Rows in the order of `points`, for each one in the order of `policies`.

    RunError when a worker dies. An interrupt ends the workers and goes on to the caller.
    """
    tasks = [(point, policy.name) for point in points for policy in policies]
    return in_parallel(_row, tasks, workers, advance)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def figures_of(found: dict[str, Any]) -> dict[str, Any]:
    """The `FIGURES` of a plan's or a forecast's result, in their order."""
    found = dict(found)
    found |= {f"{name}_busy_fraction": found["streams"][stream]["busy_fraction"] for name, stream in _STREAMS.items()}
    for device, record in found["memory"].items():
        found |= {f"{device}_{key}": record[key] for key in ("planned_bytes", "capacity_bytes")}
    found |= {key: len(found[key]) for key in ("mini_batches",) if key in found}
    return {key: found.get(key) for key in FIGURES}


_STREAMS = {"link": "h2d", "compute": "compute"}


def _row(point: Point, policy: str) -> Row:
    try:
        if policy in PEERS:
            forecast = PEERS[policy].forecast(CostModel(point.hardware, point.model), point.workload)
            return Row(point.settings, policy, figures_of(forecast_result(forecast, point.hardware)))
        plan = make_plan(point.hardware, point.model, point.workload, POLICIES[policy], point.options)
    except InfeasibleError as error:
        return Row(point.settings, policy, None, str(error))
    except HybridserveError as error:  # of a kind that survives the way back from a worker
        raise RunError(f"{policy} at {point.settings}: {error}") from None
    return Row(point.settings, policy, figures_of(plan_result(plan)))


def in_parallel(
    work: Callable[..., Done], tasks: Sequence[tuple[Any, ...]], workers: int, advance: Advance
) -> list[Done]:
    """`work(*task)` of every task, in their order, in so many processes; in this one where a single one is enough.

    RunError when a worker dies. An interrupt ends the workers and goes on to the caller.
    """
    workers = min(workers, len(tasks))
    if workers > 1:
        return _in_workers(work, tasks, workers, advance)
    done = []
    for task in tasks:
        done.append(work(*task))
        advance(len(done), len(tasks))
    return done


def _in_workers(
    work: Callable[..., Done], tasks: Sequence[tuple[Any, ...]], workers: int, advance: Advance
) -> list[Done]:
    # Not forked: the solver and the progress bar run threads here, and a fork may copy one of their locks.
    older = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_as_worker)
    try:
        futures = [pool.submit(work, *task) for task in tasks]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            advance(done, len(tasks))
        rows = [future.result() for future in futures]
    except BaseException as error:  # nobody waits for what the workers are at
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - older:
            worker.kill()  # it holds nothing, and must not outlive the parent whatever it is at
        if isinstance(error, BrokenProcessPool):
            what = "a worker was ended from outside, perhaps for want of memory"
            cure = "Give fewer --workers; a script of yours must sweep below if __name__ == '__main__'"
            raise RunError(f"{what}. {cure}") from None
        raise
    pool.shutdown()
    return rows


def _as_worker() -> None:
    """An interrupt is for the parent, which ends its workers; if it dies, so do they."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
