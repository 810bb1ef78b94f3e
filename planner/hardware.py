"""Hardware profiles: one GPU, one link, one host, and the files that hold them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import hwprofiles
from planner.cures import short
from planner.curve import Count, Quantity, Strict
from planner.errors import InputError, Mistake, Mistaken, nearest
from planner.files import content_hash, read_yaml, validate
from planner.gpu import MAX_EFFICIENCY, Gpu
from planner.link import Link


class Host(Strict):
    name: str = Field(min_length=1)
    total_bytes: Quantity
    reserve_bytes: Count
    """Left to the operating system and everything that is not this program's slabs."""
    pin_rounding: Literal["exact", "power_of_two"]
    """How pinned allocations are charged: the runtime registers exact slabs; a caching allocator does not."""

    @model_validator(mode="after")
    def _nested(self) -> Host:
        reserve, total = self.reserve_bytes.value, self.total_bytes.value
        if reserve >= total:
            what = f"{reserve:.6g} leaves nothing of total_bytes, {total:.6g}"
            raise Mistaken(Mistake("reserve_bytes", what, "Give less than total_bytes"))
        return self

    @property
    def budget_bytes(self) -> int:
        return int(self.total_bytes.value - self.reserve_bytes.value)


class HardwareProfile(Strict):
    """One machine, as data. `hybridserve profile` writes one; `hwprofiles/` ships some."""

    schema_version: Literal[2]
    id: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    scale_model_of: str | None = None
    """Set when the link is slowed so that ratios, not speeds, are those of another machine."""
    machine: dict[str, str] = Field(default_factory=dict)
    gpu: Gpu
    link: Link
    host: Host

    @model_validator(mode="after")
    def _pinned_is_faster(self) -> HardwareProfile:
        """Of a paced link, which is slower than the memory that its copies are made in, nothing follows."""
        found = []
        for way in ("h2d", "d2h") if self.gpu.device == "cuda" else ():
            key = f"pageable_{way}_bytes_per_s"
            pageable, pinned = getattr(self.link, key).value, getattr(self.link, f"{way}_bytes_per_s").value
            if pageable > MAX_EFFICIENCY * pinned:
                what = f"{pageable:.4g} is faster than {way}_bytes_per_s alone, {pinned:.4g}, which is page-locked"
                found.append(Mistake(f"link.{key}", what, f"Give at most {way}_bytes_per_s"))
        if found:
            raise Mistaken(*found)
        return self

    @cached_property
    def content_hash(self) -> str:
        return content_hash(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    def with_values(self, **changes: float) -> HardwareProfile:
        """A copy with numbers replaced by dotted path, e.g. `**{"link.h2d_bytes_per_s": 3.2e10}`.

        InputError when a path names no single number.
        """
        data = self.to_plain()
        for path, value in changes.items():
            node = data
            *parents, leaf = path.split(".")
            for part in parents:
                below = node.get(part)
                node = below if isinstance(below, dict) else {}
            if not isinstance(node.get(leaf), dict) or "value" not in node[leaf]:
                cure = nearest(leaf, node or data)
                raise InputError("no such number in a profile", where=path, cure=cure)
            node[leaf] = {"value": float(value), "kind": "assumed", "source": "set by the caller"}
        return validate(HardwareProfile, data, self.id)

    def at_speed(self, gemm: float, memory: float) -> HardwareProfile:
        """A copy whose products and overheads take `gemm` times as long, and all its other kernels `memory` times."""
        data = self.to_plain()
        for key, node in data["gpu"]["achieved"].items():
            if key == "gemm_flops_by_rows":
                for table in node.values():
                    scale_rates(table, 1 / gemm)
            elif "_per_s" in key or "flops" in key:
                scale_rates(node, 1 / memory)
            elif key.endswith("_s"):
                scale_rates(node, gemm)
        return validate(HardwareProfile, data, self.id)


def scale_rates(node: dict[str, Any], factor: float) -> None:
    """Multiply a number, or every rate of a table, in place."""
    if "value" in node:
        node["value"] *= factor
    for one in node.get("slices", ()):
        one["points"] = [[size, rate * factor] for size, rate in one["points"]]


def load_hardware(name_or_file: str) -> HardwareProfile:
    """A shipped profile by name, or one from a YAML file; InputError when it is neither or malformed."""
    path = Path(name_or_file)
    known = hwprofiles.names()
    if not name_or_file.strip():
        raise InputError("no hardware named", where="hardware", cure=f"Give a .yaml file. {nearest('', known)}")
    if name_or_file in known:
        path = hwprofiles.path_of(name_or_file)
    elif path.suffix not in (".yaml", ".yml") and not _exists(path):
        cure = nearest(name_or_file, known, "give a .yaml file")
        raise InputError(f"unknown hardware '{name_or_file}'", where="hardware", cure=cure)
    return validate(HardwareProfile, _resolved(path, depth=0), str(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long, or not ours to look into
        return False


def _resolved(path: Path, depth: int) -> dict[str, Any]:
    """The YAML at `path`, laid over the shipped profile that its `extends` names, if any."""
    data = read_yaml(path, "hardware profile")
    misspelt = next((key for key in data if isinstance(key, str) and key.lower() in _ALMOST_EXTENDS), None)
    if misspelt:
        raise InputError("unknown key", where=f"{path}: {misspelt}", cure="Did you mean 'extends'?")
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if depth > 3 or base not in hwprofiles.names():
        raise InputError(
            f"extends names no shipped profile: {short(base)}",
            where=f"{path}: extends",
            cure=nearest("" if base is None else str(base), hwprofiles.names()),
        )
    if "id" not in data:
        cure = f"Add id: and a name, like id: my-{base}. It is another machine, and plans are made for an id"
        raise InputError("a profile that extends another needs an id of its own", where=f"{path}: id", cure=cure)
    return _overlay(_resolved(hwprofiles.path_of(base), depth + 1), data, f"{path}: ")


_ALMOST_EXTENDS = ("extend", "extents", "extands", "extens", "base", "inherits", "inherit")


def _overlay(base: dict[str, Any], top: dict[str, Any], at: str) -> dict[str, Any]:
    """`top` laid over `base`: numbers and tables as a whole, with where they are from. `at`: where `top` is."""
    merged = dict(base)
    for key, value in top.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and not {"value", "slices"} & value.keys():
            for number in {"value", "slices"} & below.keys():
                what = f"a source for a number that is not given: the {number} would be that of the profile extended"
                raise InputError(what, where=f"{at}{key}", cure=f"Add {number}, or leave out the whole key")
            merged[key] = _overlay(below, value, f"{at}{key}.")
        else:
            merged[key] = value
    return merged
