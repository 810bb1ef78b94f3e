"""Hardware and models by name: lists of what is known, and everything about one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

import hwprofiles
from planner import report, selection
from planner.efficiency import efficiencies
from planner.errors import InputError, nearest
from planner.hardware import HardwareProfile, load_hardware
from planner.interpolation import left_out, left_out_report
from planner.model import known_models, load_model
from planner.sensitivity import worth_measuring
from planner.sensitivity_report import efficiency_report, worth_report

Shown = tuple[dict[str, Any], RenderableType]
"""Plain data for scripts, and the same for people."""


def look_up(what: str, name: str | None) -> Shown:
    """What `show` prints: `what` is a list's name, with or without a `name` of it, or a name or file of either."""
    lists = {"hardware": hwprofiles.names(), "models": known_models()}
    if name is not None:
        selection.one_of("show", what, lists)
    elif what in lists:
        return {what: lists[what]}, _list_of(what)
    wanted = what if name is None else name
    if what == "models" or (name is None and (wanted in lists["models"] or _is_config(wanted))):
        model = load_model(wanted)
        return model.model_dump(), report.model_report(model)
    if what == "hardware" or wanted in lists["hardware"] or wanted.endswith((".yaml", ".yml")):
        return hardware(load_hardware(wanted))
    known = [*lists["hardware"], *lists["models"], *lists]
    raise InputError(f"nothing known as '{wanted}'", where="show", cure=nearest(wanted, known))


def hardware(profile: HardwareProfile) -> Shown:
    """Every number of a profile, how good its tables are, and what would be worth measuring."""
    reached, missed, worth = efficiencies(profile), left_out(profile), worth_measuring(profile)
    data = {
        **profile.to_plain(),
        "efficiency": [one._asdict() for one in reached],
        "interpolation": [one._asdict() for one in missed],
        **worth.to_plain(),
    }
    parts = [report.hardware_report(profile), efficiency_report(reached)]
    parts += [left_out_report(missed)] if missed else []
    return data, Group(*parts, worth_report(worth))


def _list_of(what: str) -> RenderableType:
    if what == "hardware":
        return report.hardware_list([load_hardware(name) for name in hwprofiles.names()])
    return report.models_list([load_model(name) for name in known_models()])


def _is_config(name: str) -> bool:
    try:
        return name.endswith(".json") or (Path(name) / "config.json").exists()
    except OSError:  # a name too long for a file
        return False
