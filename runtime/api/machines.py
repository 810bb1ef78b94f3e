"""Machines: `hybridserve.profile` measures this one, `check` asks whether a profile still holds, `show` prints any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from planner import catalogue, report, selection
from planner.errors import RunError
from planner.files import dump_yaml, write_whole
from planner.given import LIMITS, Limits, flag, hardware_of, within
from planner.hardware import HardwareProfile
from planner.speed import Check
from planner.terminal import Advance
from runtime.api.jobs import HardwareLike, plain_name
from runtime.api.results import Result
from runtime.commands.shared import need_runtime

LINK_GBPS, HIDDEN, ROUNDS = Limits(0.001, 10_000, whole=False), Limits(64, 2**16), Limits(1, 1000)
"""Limits of what `profile` is told."""
CHECK_TURNS = 24
"""Readings of each kernel by a check: a second or two."""


@dataclass(frozen=True, repr=False)
class Shown(Result):
    """What `hybridserve show` prints."""

    what: str
    data: dict[str, Any]
    shown: RenderableType

    def result(self) -> dict[str, Any]:
        return self.data

    def report(self) -> RenderableType:
        return self.shown

    def rows(self) -> list[dict[str, Any]]:
        """A row for each name of a list, or for each value with its dotted key."""
        lists = [value for value in self.data.values() if isinstance(value, list)]
        if len(self.data) == 1 and lists:
            return [{"name": name} for name in lists[0]]
        return [{"key": key, "value": value} for key, value in _flat(self.data, "")]

    def __repr__(self) -> str:
        return f"<Shown {self.what}>"


def show(what: str, name: str | None = None) -> Shown:
    """Known "hardware" or "models", or one of them by its name or file; InputError with what is near otherwise."""
    return Shown(name or what, *catalogue.look_up(what, name))


@dataclass(frozen=True, repr=False)
class Profiled(Result):
    """A machine as it was measured."""

    hardware: HardwareProfile
    """Give this to `plan`, or `write` it first."""
    repeatability: float
    """How far two profiles taken one after the other would differ, relative."""
    link_gbps: float | None = None
    """What the link was to be paced at."""

    @property
    def warnings(self) -> list[str]:
        """A link that is slower than asked for, a machine too noisy to be measured."""
        found = (report.pace_warning(self.hardware, self.link_gbps), report.noise_warning(self.repeatability))
        return [warning for warning in found if warning]

    def write(self, path: str | Path) -> Path:
        """Write the profile, whole or not at all; InputError where that cannot be."""
        write_whole(Path(path), dump_yaml(self.hardware.to_plain()))
        return Path(path)

    @cached_property
    def _shown(self) -> catalogue.Shown:
        return catalogue.hardware(self.hardware)

    def result(self) -> dict[str, Any]:
        return self._shown[0]

    def report(self) -> RenderableType:
        return self._shown[1]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each value of the profile with its dotted key."""
        return [{"key": key, "value": value} for key, value in _flat(self.hardware.to_plain(), "")]

    def __repr__(self) -> str:
        return f"<Profiled {self.hardware.id}: {self.hardware.description}>"


def profile(
    *, device: str = "cpu", hidden: int = 512, link_gbps: float | None = None, gpu_memory_gb: float | None = None,
    dtype: str | None = None, name: str = "measured", rounds: int | None = None,
) -> Profiled:  # fmt: skip
    """Measure this machine: `hybridserve profile`, and every argument an option of it; `name` becomes the profile's id.

    Under a minute on a CPU core, under two on CUDA. `rounds`: how often everything is measured; fewer take less time
    and are less repeatable. InputError for what cannot be measured here, and without torch.
    """
    kind = checked_dtype(device, dtype, link_gbps, hidden)
    if rounds is not None:
        within(rounds, ROUNDS, "rounds")
    return measured(device, kind, hidden, link_gbps, gpu_memory_gb, selection.profile_id(Path(name)), rounds)


def checked_dtype(device: str, dtype: str | None, link_gbps: float | None, hidden: int) -> str:
    """The data type to measure in; InputError, naming the flag, for what nothing can measure."""
    selection.one_of("--device", device, ("cpu", "cuda"))
    kind = dtype or ("float16" if device == "cuda" else "float32")
    selection.one_of("--dtype", kind, ("float16", "bfloat16", "float32"))
    within(hidden, HIDDEN, "--hidden")
    if link_gbps is not None:
        within(link_gbps, LINK_GBPS, "--link-gbps")
    selection.check_profile(device, link_gbps, hidden)
    return kind


def measured(
    device: str, dtype: str, hidden: int, link_gbps: float | None, gpu_memory_gb: float | None, name: str,
    rounds: int | None = None, advance: Advance | None = None,
) -> Profiled:  # fmt: skip
    """The profile of this machine, as the command makes it."""
    if gpu_memory_gb is not None:
        within(gpu_memory_gb, LIMITS["gpu_memory_gb"], flag("gpu_memory_gb"))
    need_runtime()
    from runtime.profiler import Profiler, Request  # noqa: PLC0415

    request = Request(
        device=device, hidden=hidden, heads=hidden // 64, dtype=dtype, profile_id=name, rounds=rounds,
        link_bytes_per_s=link_gbps * 1e9 if link_gbps else None,
        gpu_bytes=int(gpu_memory_gb * 1e9) if gpu_memory_gb else None,
    )  # fmt: skip
    profiler = Profiler(request, advance or _silent)
    return Profiled(profiler.run(), profiler.repeatability, link_gbps)


@dataclass(frozen=True, repr=False)
class Checked(Result):
    """A profile laid beside the machine as it is now."""

    check: Check

    @property
    def describes(self) -> bool:
        """True when the profile holds as far as can be told."""
        return self.check.describes

    @property
    def verdict(self) -> str:
        """One sentence, and what to do."""
        return self.check.verdict

    @property
    def now(self) -> HardwareProfile:
        """The profile, as fast as the machine is now: plans made for it predict what a run now would take."""
        return self.check.speed.applied(self.check.hardware)

    def result(self) -> dict[str, Any]:
        return self.check.result()

    def report(self) -> RenderableType:
        return self.check.report()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each kernel that was timed."""
        found: list[dict[str, Any]] = self.result()["readings"]
        return found

    def __repr__(self) -> str:
        return f"<Checked {self.check.hardware.id}: {self.verdict}>"


def check(hardware: HardwareLike) -> Checked:
    """Measure a sample and say whether a profile of this machine still holds: a second or two.

    InputError for a profile of a device that is not here, and without torch.
    """
    found = hardware_of(plain_name(hardware))
    need_runtime()
    from runtime.gauge import Gauge  # noqa: PLC0415

    return Checked(Check(found, Gauge(found).read(CHECK_TURNS)))


def refuse_if_outdated(found: Checked) -> None:
    """RunError where the profile does not hold: the exit code of `profile --check`."""
    if not found.describes:
        raise RunError(found.verdict)


def _silent(done: int, of: int, text: str = "") -> None:
    """No progress shown."""


def _flat(node: Any, path: str) -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(path, node)]
    return [pair for key, below in node.items() for pair in _flat(below, f"{path}.{key}" if path else str(key))]
