"""The arguments that describe a job, as Python passes them: names, files, or objects that were made before."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any

from planner.costs import CostModel
from planner.errors import InputError
from planner.given import Given, Selected, select
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.peers.catalogue import Peer
from planner.peers.forecast import Forecast
from planner.policies import Policy
from planner.workload import Request, Workload, check_fits
from runtime.commands.shared import workload_of

ModelLike = str | Path | ModelSpec
"""A bundled name, a folder or file with a config.json, or a model that was loaded."""
HardwareLike = str | Path | HardwareProfile
"""A shipped name, a YAML file, or a profile that was loaded or measured."""
WorkloadLike = str | Path | Workload | Sequence[tuple[int, int]]
"""A file of JSON lines, a workload, or (prompt_len, gen_len) of every request."""


def given_of(
    model: ModelLike | None, hardware: HardwareLike | None, workload: WorkloadLike | None = None, **more: Any
) -> Given:
    """What the arguments of a function say; InputError, naming the flag, for what nothing can be."""
    return Given(_named(model, ModelSpec, "--model"), _named(hardware, HardwareProfile, "--hardware"),
                 None if workload is None else _workload(workload), **more)  # fmt: skip


def selected(given: Given, policies: Sequence[Policy | Peer], policy_flag: str) -> Selected:
    """Read and checked, as every command does it."""
    return select(given, policies, policy_flag, workload_of(given.workload))


def forecast_of(other: Peer, what: Selected) -> Forecast:
    """What another system would do; InputError where the job does not fit the model, InfeasibleError if none fits."""
    check_fits(what.workload, what.model)
    return other.forecast(CostModel(what.hardware, what.model), what.workload)


def lengths_of(workload: Workload) -> dict[str, Any]:
    """A workload as arguments: counts and lengths where its requests are equal, so that a sweep can change them."""
    first = workload.requests[0]
    equal = {"requests": len(workload), "prompt_len": first.prompt_len, "gen_len": first.gen_len}
    return equal if Workload.uniform(*equal.values()) == workload else {"workload": workload}


def plain_name(one: Any) -> Any:
    """A path as text; anything else as it is."""
    return str(one) if isinstance(one, Path) else one


def _named(one: Any, kind: type, where: str) -> Any:
    found = plain_name(one)
    if found is None or isinstance(found, kind | str):
        return found
    raise InputError(f"{type(one).__name__} is neither a name nor a {kind.__name__}", where=where, cure="Give a name")


def _workload(workload: WorkloadLike) -> Path | Workload:
    if isinstance(workload, Workload | Path):
        return workload
    if isinstance(workload, str):
        return Path(workload)
    try:
        pairs = [(_int(prompt), _int(gen)) for prompt, gen in workload]
    except (TypeError, ValueError):
        cure = "Give a file, or a list of (prompt_len, gen_len)"
        raise InputError("this is no list of requests", where="--workload", cure=cure) from None
    return Workload(tuple(Request(str(i), prompt, gen) for i, (prompt, gen) in enumerate(pairs)))


def _int(one: Any) -> Any:
    """A whole number of numpy or pandas as one of Python; anything else as it is."""
    return index(one) if isinstance(one, Integral) and not isinstance(one, bool) else one
