"""What a sweep can change: short names, and every number of a profile and of a model's shape by its own name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from planner.errors import InputError, nearest
from planner.files import validate
from planner.hardware import HardwareProfile, scale_rates
from planner.model import ModelSpec
from planner.scale import replace_fields
from planner.workload import MAX_TOKENS

GB = 1e9
MAX_REQUESTS = 10**6
"""As of `--requests`."""
SLOWEST, FASTEST = 0.001, 10_000
"""GB/s of a link, as of `--link-gbps`."""
SMALLEST, LARGEST = 1e-6, 1e6
"""GB of a memory: a kilobyte for toys, a petabyte."""
MODEL_FIELDS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_positions")
PEAKS = "gpu.datasheet"
"""Never used as rates: nothing would follow from changing them."""
RATES = "gpu.achieved"
GEMM = f"{RATES}.gemm_flops_by_rows"


@dataclass(frozen=True)
class Key:
    """Something that a sweep can set. `places` are what it sets: dotted names of numbers, or flags."""

    name: str
    kind: Literal["number", "whole", "factor", "name"]
    """`whole`: a count. `factor`: a table, or several numbers, which can only be scaled."""
    places: tuple[str, ...]
    unit: str = ""
    low: float | None = None
    high: float | None = None
    """Limits of absolute values that nothing else checks."""
    scalable: bool = True

    def overlaps(self, other: Key) -> bool:
        """True where both set the same number."""
        return any(
            f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.") for a in self.places for b in other.places
        )

    def check(self, value: float, where: str) -> None:
        """InputError for what this key cannot be, whatever the other settings."""
        if self.kind == "whole" and value != int(value):
            raise InputError(f"{value:g} is not a whole number", where=where, cure="Give whole numbers")
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            cure = f"Give values from {self.low:g} to {self.high:g}"
            raise InputError(f"{value:g} is out of range", where=where, cure=cure)


@dataclass(frozen=True)
class Setting:
    """One key at one value; with `relative`, the value is a factor of what is there."""

    key: Key
    value: float | str
    relative: bool = False

    def number(self, present: float) -> float:
        """The number to set where `present` is."""
        assert not isinstance(self.value, str)
        return self.value * present if self.relative else self.value


def _link_places(*ways: str) -> tuple[str, ...]:
    other = {"h2d": "d2h", "d2h": "h2d"}
    names = ("{0}_bytes_per_s", "{0}_during_{1}_bytes_per_s", "pageable_{0}_bytes_per_s")
    return tuple(f"link.{name.format(way, other[way])}" for way in ways for name in names)


ALIASES = {
    key.name: key
    for key in (
        Key("model", "name", ("--model",)),
        Key("hardware", "name", ("--hardware",)),
        Key("dtype", "name", ("--dtype",)),
        Key("link", "number", _link_places("h2d", "d2h"), "GB/s", low=SLOWEST, high=FASTEST),
        Key("link.h2d", "number", _link_places("h2d"), "GB/s", low=SLOWEST, high=FASTEST),
        Key("link.d2h", "number", _link_places("d2h"), "GB/s", low=SLOWEST, high=FASTEST),
        Key(
            "gpu.memory",
            "number",
            ("gpu.memory.usable_bytes", "gpu.memory.nominal_bytes"),
            "GB",
            low=SMALLEST,
            high=LARGEST,
        ),
        Key("host.memory", "number", ("host.total_bytes",), "GB", low=SMALLEST, high=LARGEST),
        Key("compute", "factor", (RATES,)),
        Key("gemm", "factor", (GEMM,)),
        Key("requests", "whole", ("--requests",), low=1, high=MAX_REQUESTS, scalable=False),
        Key("prompt_len", "whole", ("--prompt-len",), "tokens", low=1, high=MAX_TOKENS, scalable=False),
        Key("gen_len", "whole", ("--gen-len",), "tokens", low=1, high=MAX_TOKENS, scalable=False),
        Key("act_share", "number", ("--act-share",), low=0, high=1, scalable=False),
        Key("waves", "whole", ("--waves",), low=1, high=MAX_REQUESTS, scalable=False),
        Key("mini_batches", "whole", ("--mini-batches",), low=1, high=MAX_REQUESTS, scalable=False),
    )
}
"""Short names; each is in the table of docs/command-line.md."""


def find_key(name: str, hardware: HardwareProfile) -> Key:
    """A short name, `model.FIELD`, or a number or table of `hardware`; InputError with the nearest names otherwise."""
    known = ALIASES | {key.name: key for key in (*_model_keys(), *_profile_keys(hardware))}
    if name in known:
        return known[name]
    cure = nearest(name, known)
    if cure.startswith("Known"):  # sixty numbers of a profile help nobody
        cure = nearest("", ALIASES, "a number of the profile by its full name, like link.latency_s")
    raise InputError(f"unknown key '{name}'", where="--set", cure=cure)


def _model_keys() -> Iterator[Key]:
    return (Key(f"model.{field}", "whole", (f"model.{field}",)) for field in MODEL_FIELDS)


def _profile_keys(hardware: HardwareProfile) -> Iterator[Key]:
    data = hardware.to_plain()
    for block in ("gpu", "link", "host"):
        for path, node in _leaves(data[block], block):
            if not path.startswith(f"{PEAKS}."):
                table = "slices" in node
                yield Key(path, "factor" if table else "number", (path,), "" if table else unit_of(path))


def _leaves(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number and table below, with its dotted name."""
    for key, below in node.items():
        if isinstance(below, dict):
            here = f"{path}.{key}"
            yield from [(here, below)] if {"value", "slices"} & below.keys() else _leaves(below, here)


def unit_of(path: str) -> str:
    """The unit that the name of a profile's number ends in."""
    units = {"bytes_per_s": "bytes/s", "_per_byte": "s/byte", "_bytes": "bytes", "_s": "s"}
    return next((unit for end, unit in units.items() if path.endswith(end)), "")


def changed_model(model: ModelSpec, settings: Iterable[Setting]) -> ModelSpec:
    """`model` with its shape as set; InputError where that is no model."""
    changes: dict[str, object] = {}
    for setting in settings:
        field = setting.key.name.removeprefix("model.")
        value = setting.number(getattr(model, field))
        setting.key.check(value, f"model.{field}")
        changes[field] = int(value)
    return replace_fields(model, **changes) if changes else model


def changed_hardware(hardware: HardwareProfile, settings: Sequence[Setting]) -> HardwareProfile:
    """`hardware` with its numbers as set, all of them before any is judged; InputError where no machine is so.

    A machine whose rates are changed is no product with a datasheet, so its peaks are dropped: they only judge rates.
    """
    numbers: dict[str, float] = {}
    speed, factors = 1.0, dict[str, float]()
    for setting in settings:
        name = setting.key.name
        if name == "compute":
            speed = setting.number(1.0)
        elif setting.key.kind == "factor":
            factors[setting.key.places[0]] = setting.number(1.0)
        else:
            numbers |= _CHANGES.get(name, _one_number)(hardware, setting)
    if any(place.startswith(RATES) for setting in settings for place in setting.key.places):
        hardware = _without_datasheet(hardware, factors)
    if numbers:
        hardware = hardware.with_values(**numbers)
    return hardware if speed == 1.0 else hardware.at_speed(1 / speed, 1 / speed)


def _without_datasheet(hardware: HardwareProfile, factors: dict[str, float]) -> HardwareProfile:
    """No peaks, and the tables below each dotted name scaled."""
    data = hardware.to_plain()
    data["gpu"]["datasheet"] = {"flops": {}}
    for path, table in _leaves(data["gpu"], "gpu"):
        for place, factor in factors.items():
            if f"{path}.".startswith(f"{place}."):
                scale_rates(table, factor)
    return validate(HardwareProfile, data, hardware.id)


Changes = dict[str, float]


def _value(hardware: HardwareProfile, path: str) -> float:
    node: Any = hardware.to_plain()
    for part in path.split("."):
        node = node.get(part, {}) if isinstance(node, dict) else {}
    if not isinstance(node, dict) or "value" not in node:
        raise InputError(f"{hardware.id} has no such number", where=path, cure="hybridserve show lists what it has")
    return float(node["value"])


def _one_number(hardware: HardwareProfile, setting: Setting) -> Changes:
    path = setting.key.places[0]
    return {path: setting.number(_value(hardware, path))}


def _link(hardware: HardwareProfile, setting: Setting) -> Changes:
    """Each direction at the pace asked for; what else is known of it stays in proportion."""
    found: Changes = {}
    for way in ("h2d", "d2h"):
        alone = _value(hardware, f"link.{way}_bytes_per_s")
        share = setting.number(alone / GB) * GB / alone
        found |= {place: share * _value(hardware, place) for place in _link_places(way) if place in setting.key.places}
    return found


def _gpu_memory(hardware: HardwareProfile, setting: Setting) -> Changes:
    memory = hardware.gpu.memory
    usable = setting.number(memory.usable_bytes.value / GB) * GB
    nominal = max(usable, memory.nominal_bytes.value)
    return {"gpu.memory.usable_bytes": usable, "gpu.memory.nominal_bytes": nominal}


def _host_memory(hardware: HardwareProfile, setting: Setting) -> Changes:
    return {"host.total_bytes": setting.number(hardware.host.total_bytes.value / GB) * GB}


_CHANGES: dict[str, Callable[[HardwareProfile, Setting], Changes]] = {
    "link": _link, "link.h2d": _link, "link.d2h": _link, "gpu.memory": _gpu_memory, "host.memory": _host_memory,
}  # fmt: skip
