"""The sampling fields of a prompt line: temperature, top_k, top_p, seed, stop, ignore_eos."""

from __future__ import annotations

import json
import zlib
from typing import Any

from planner.errors import InputError
from runtime.sampling import Sampling

MAX_TEMPERATURE, MAX_SEED, MAX_TOP_K, MAX_STOPS = 100.0, 2**63 - 1, 10**7, 16


def read(data: dict[str, Any], name: str, where: str) -> tuple[Sampling, tuple[str, ...], bool]:
    """Sampling, stop strings and whether end tokens are ignored; absent and null mean the same. InputError names the
    key. Without a seed the draws follow from the request's `name`, so that a run can be repeated."""
    temperature = _number(data, "temperature", 0.0, (0.0, MAX_TEMPERATURE), where)
    top_p = _number(data, "top_p", 1.0, (0.0, 1.0), where)
    if not top_p:
        raise InputError("top_p = 0 keeps no token", where=where, cure="Give more than 0, at most 1")
    top_k = _whole(data, "top_k", 0, MAX_TOP_K, where)
    seed = _whole(data, "seed", zlib.crc32(name.encode("utf-8", "surrogatepass")), MAX_SEED, where)
    ignores = data.get("ignore_eos") or False
    if not isinstance(ignores, bool):
        raise InputError(f"ignore_eos is true or false, got {short(ignores)}", where=where, cure="Write it so")
    return Sampling(temperature, top_k, top_p, seed), _stops(data, where), ignores


def _number(data: dict[str, Any], key: str, absent: float, limits: tuple[float, float], where: str) -> float:
    value, (low, high) = data.get(key), limits
    if value is None:
        return absent
    if type(value) not in (int, float) or not low <= value <= high:
        raise InputError(
            f"{key} is a number from {low:g} to {high:g}, got {short(value)}", where=where, cure="Correct it"
        )
    return float(value)


def _whole(data: dict[str, Any], key: str, absent: int, most: int, where: str) -> int:
    value = data.get(key)
    if value is None:
        return absent
    if type(value) is not int or not 0 <= value <= most:
        what = f"{key} is a whole number from 0 to {most}, got {short(value)}"
        raise InputError(what, where=where, cure="Correct it, or leave it out")
    return int(value)


def _stops(data: dict[str, Any], where: str) -> tuple[str, ...]:
    value = data.get("stop")
    found = [value] if isinstance(value, str) else [] if value is None else value
    fits = isinstance(found, list) and len(found) <= MAX_STOPS and all(isinstance(one, str) and one for one in found)
    if not fits:
        what = f"stop is text, or a list of at most {MAX_STOPS} texts, none empty, got {short(value)}"
        raise InputError(what, where=where, cure="Correct it, or leave it out")
    return tuple(found)


def short(value: object) -> str:
    """`value` as JSON, in at most 40 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else text[:37] + "..."
