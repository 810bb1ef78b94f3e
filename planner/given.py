"""What a caller gives, on the command line or in Python: a model, a machine, a job, and what he decides himself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from operator import index
from pathlib import Path
from typing import NamedTuple

from planner import selection
from planner.errors import InputError
from planner.hardware import HardwareProfile, load_hardware
from planner.model import ModelSpec, load_model
from planner.peers.catalogue import Peer
from planner.policies import Policy
from planner.scale import replace_fields
from planner.search import Options
from planner.workload import MAX_TOKENS, Workload

FIXED = ("act_share", "mini_batches", "waves")
"""What a caller may decide instead of the solver."""
LENGTHS = ("--requests", "--prompt-len", "--gen-len")


class Limits(NamedTuple):
    """The least and the most that a value may be; `whole`: a count."""

    low: float
    high: float
    whole: bool = True


MOST_REQUESTS, MOST_PARTS = 10**6, 10**9
LIMITS = {
    "requests": Limits(1, MOST_REQUESTS), "prompt_len": Limits(1, MAX_TOKENS), "gen_len": Limits(1, MAX_TOKENS),
    "mini_batches": Limits(1, MOST_PARTS), "waves": Limits(1, MOST_PARTS),
    "act_share": Limits(0, 1, whole=False), "gpu_memory_gb": Limits(0.001, 10**6, whole=False),
}  # fmt: skip
"""Of the flags, and of what Python passes by the same names."""

WorkloadOf = Callable[[int | None, int | None, int | None, str | ModelSpec], Workload]
"""The job of --requests, --prompt-len, --gen-len and --model."""


@dataclass(frozen=True)
class Given:
    """What the caller says; None where he is silent. InputError, naming the flag, for numbers that nothing can be."""

    model: str | ModelSpec | None
    hardware: str | HardwareProfile | None
    workload: Path | Workload | None = None
    dtype: str | None = None
    gpu_memory_gb: float | None = None
    requests: int | None = None
    prompt_len: int | None = None
    gen_len: int | None = None
    act_share: float | None = None
    mini_batches: int | None = None
    waves: int | None = None

    def __post_init__(self) -> None:
        for name, limits in LIMITS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, within(getattr(self, name), limits, flag(name)))

    def places(self) -> dict[str, str]:
        """What is given, as keys of a sweep name what they set, and its flag."""
        flags = {name: flag(name) for name, value in vars(self).items() if value is not None}
        places = {"gpu.memory.usable_bytes" if name == "gpu_memory_gb" else said: said for name, said in flags.items()}
        return places | (dict.fromkeys(LENGTHS, "--workload") if self.workload is not None else {})

    def files(self) -> list[Path]:
        """What is read: nothing of it may be written over."""
        found = [self.workload] if isinstance(self.workload, Path) else []
        found += selection.model_files(self.model) if isinstance(self.model, str) else []
        return [*found, *([Path(self.hardware)] if isinstance(self.hardware, str) else [])]


@dataclass(frozen=True)
class Selected:
    """What there is to plan."""

    hardware: HardwareProfile
    model: ModelSpec
    workload: Workload
    options: Options


def select(given: Given, policies: Iterable[Policy | Peer], policy_flag: str, workload_of: WorkloadOf) -> Selected:
    """Read and check what is given. InputError names the flag, the file or the key."""
    selection.check_options(policies, policy_flag, **{name: getattr(given, name) for name in FIXED})
    if given.model is None or given.hardware is None:
        missing = "model" if given.model is None else "hardware"
        raise InputError(f"no {missing} given", where=flag(missing), cure="Give a name or a file")
    model, hardware = model_of(given.model, given.dtype), hardware_of(given.hardware)
    hardware = selection.capped(hardware, given.gpu_memory_gb)
    job = workload_of(given.requests, given.prompt_len, given.gen_len, given.model)
    return Selected(hardware, model, job, selection.options(given.act_share, given.mini_batches, given.waves, job))


def model_of(model: str | ModelSpec, dtype: str | None) -> ModelSpec:
    """By name, folder or file, or as it is; in `dtype` where that is given."""
    if isinstance(model, str):
        return load_model(model, dtype)
    return model if dtype is None else replace_fields(model, dtype=dtype)


def hardware_of(hardware: str | HardwareProfile) -> HardwareProfile:
    """By name or file, or as it is."""
    return load_hardware(hardware) if isinstance(hardware, str) else hardware


def within(value: object, limits: Limits, where: str) -> float:
    """`value` as a number within `limits`, an int where they are of a count; InputError otherwise."""
    try:
        if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
            raise InputError(f"{value!r} is no number", where=where, cure=_cure(limits))
    except OverflowError:  # a whole number beyond any float
        raise InputError("a number of hundreds of digits is out of range", where=where, cure=_cure(limits)) from None
    try:
        number: float = index(value) if limits.whole else float(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{value!r} is not a whole number", where=where, cure=_cure(limits)) from None
    if not limits.low <= number <= limits.high:
        raise InputError(f"{value:g} is out of range", where=where, cure=_cure(limits))
    return number


def flag(name: str) -> str:
    """The flag of a parameter."""
    return f"--{name.replace('_', '-')}"


def _cure(limits: Limits) -> str:
    kind = "a whole number" if limits.whole else "a number"
    return f"Give {kind} from {limits.low:g} to {limits.high:,.10g}"
