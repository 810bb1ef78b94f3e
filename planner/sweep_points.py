"""The points of a sweep: what the flags select, with every combination of the swept values, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar, cast

from planner import selection
from planner.costs import CostModel
from planner.errors import InputError
from planner.given import FIXED, LENGTHS, Given, WorkloadOf, hardware_of, model_of
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.peers.catalogue import Peer
from planner.policies import Policy
from planner.search import Options
from planner.sweep_axes import Axis, Value
from planner.sweep_keys import Setting, changed_hardware, changed_model
from planner.workload import Workload, check_fits

T = TypeVar("T")
MOST_PLANS = 10_000
"""Hours of work: more is a typing mistake."""


@dataclass(frozen=True)
class Point:
    """One job on one machine. `settings`: the swept keys with their values as typed."""

    settings: dict[str, Value]
    hardware: HardwareProfile
    model: ModelSpec
    workload: Workload
    options: Options


def grid(given: Given, axes: Sequence[Axis], policies: Sequence[Policy | Peer], workload_of: WorkloadOf) -> list[Point]:
    """Every combination, the last axis varying fastest.

    InputError for flags that contradict a swept key, for what neither says, and for the first point that is impossible,
    as opposed to infeasible.
    """
    _check_given(given, axes)
    count = len(policies)
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_PLANS:
        what = f"{count:,} plans are more than {MOST_PLANS:,}"
        raise InputError(what, where="--set", cure="Give fewer values, keys or policies")
    builder = _Builder(given, policies, workload_of)
    return [builder.point(axes, values) for values in product(*(axis.values for axis in axes))]


def _check_given(given: Given, axes: Sequence[Axis]) -> None:
    places = given.places()
    for axis in axes:
        for place in axis.key.places:
            if place in places:
                what = f"{places[place]} says it already"
                raise InputError(what, where=f"--set {axis.key.name}", cure="Leave out one of them")
    swept = {place for axis in axes for place in axis.key.places}
    if given.model is None and "--model" not in swept:
        raise InputError("no model given", where="--model", cure="Give --model, or --set model=A,B")
    if given.workload is None and (missing := [flag for flag in LENGTHS if flag not in swept | places.keys()]):
        cure = "Give or sweep all three, or give --workload FILE.jsonl"
        raise InputError(f"no workload: {', '.join(missing)} missing", cure=cure)


@dataclass
class _Builder:
    """Builds points; what several of them share is read and checked once."""

    given: Given
    policies: Sequence[Policy | Peer]
    workload_of: WorkloadOf
    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.given.model is not None:  # a mistake here is no mistake of a --set
            self._read_model(self.given.model, self.given.dtype)
        if self.given.workload is not None and self.given.model is not None:
            self._read_job(None, None, None, self.given.model)
        if self.given.hardware is not None:
            selection.capped(self._read_hardware(self.given.hardware), self.given.gpu_memory_gb)
        fixed = {name: getattr(self.given, name) for name in FIXED}
        selection.check_options(self.policies, "--policies", **fixed)

    def _read_model(self, model: str | ModelSpec, dtype: str | None) -> ModelSpec:
        return self._once(model_of, model, dtype)

    def _read_hardware(self, hardware: str | HardwareProfile) -> HardwareProfile:
        return self._once(hardware_of, hardware)

    def _read_job(self, *what: Any) -> Workload:
        return self._once(self.workload_of, *what)

    def _once(self, read: Callable[..., T], *what: Any) -> T:
        """What `read` makes of `what`. Specs and profiles that were given themselves have no hash."""
        key = (read, *(one if isinstance(one, str | float | int | None) else id(one) for one in what))
        if key not in self._known:
            self._known[key] = read(*what)
        return cast(T, self._known[key])

    def point(self, axes: Sequence[Axis], values: Sequence[Value]) -> Point:
        settings = [Setting(axis.key, value, axis.relative) for axis, value in zip(axes, values, strict=True)]
        said = [axis.said(value) for axis, value in zip(axes, values, strict=True)]
        try:
            built = self._build(settings)
        except InputError as error:
            label = " ".join(f"{axis.key.name}={text}" for axis, text in zip(axes, said, strict=True))
            where = f"--set {label}" + (f": {error.where}" if error.where else "")
            raise InputError(error.what, where=where, cure=error.cure) from None
        typed = [text if axis.relative else value for axis, text, value in zip(axes, said, values, strict=True)]
        return Point(dict(zip((axis.key.name for axis in axes), typed, strict=True)), *built)

    def _build(self, settings: Sequence[Setting]) -> tuple[HardwareProfile, ModelSpec, Workload, Options]:
        flags = vars(self.given) | {one.key.name: one.value for one in settings if one.key.name in vars(self.given)}
        places = {one.key.name: one for one in settings if one.key.name not in flags}
        on_model = [one for name, one in places.items() if name.startswith("model.")]
        on_hardware = [one for name, one in places.items() if not name.startswith("model.")]
        hardware = changed_hardware(
            selection.capped(self._read_hardware(flags["hardware"]), flags["gpu_memory_gb"]), on_hardware
        )
        model = changed_model(self._read_model(flags["model"], flags["dtype"]), on_model)
        requests, prompt_len, gen_len = (_whole(flags[name]) for name in ("requests", "prompt_len", "gen_len"))
        job = self._read_job(requests, prompt_len, gen_len, flags["model"])
        selection.check_options(self.policies, "--policies", **{name: flags[name] for name in FIXED})
        check_fits(job, model)
        CostModel(hardware, model)  # refuses a data type without a rate
        return (
            hardware,
            model,
            job,
            selection.options(flags["act_share"], _whole(flags["mini_batches"]), _whole(flags["waves"]), job),
        )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
