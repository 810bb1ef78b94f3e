"""Reading YAML strictly and writing files whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from planner.errors import InputError, nearest

ModelT = TypeVar("ModelT", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InputError(f"key '{key}' is given twice (line {line})", cure="Keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_text(path: Path, what: str) -> str:
    """The text of `path`; InputError when it is missing, a folder or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such {what} file", where=str(path), cure="Check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read this {what} file: {reason}", where=str(path)) from None


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping; InputError on syntax errors (with the line), duplicates, or another top level."""
    text = read_text(path, what)
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except InputError as error:
        raise InputError(error.what, where=str(path), cure=error.cure) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"not valid YAML: {problem}", where=place, cure=f"Is the {what} file whole?") from None
    if not isinstance(data, dict):
        raise InputError(f"a {what} file is a mapping of keys to values", where=str(path))
    return data


def validate(schema: type[ModelT], data: dict[str, Any], where: str) -> ModelT:
    """`data` as `schema`; InputError names the first bad key, the mistake and the cure."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise _explain(error, schema, where) from None
    except RecursionError:
        raise InputError("nested too deeply", where=where) from None


def _explain(error: ValidationError, schema: type[BaseModel], where: str) -> InputError:
    problems = error.errors()
    # A misspelt key appears twice, as missing and as unknown: the unknown one says more.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "(top level)"
    place, value = f"{where}: {key}", first.get("input")
    more = f" ({len(problems) - 1} more problem{'s' if len(problems) > 2 else ''})" if len(problems) > 1 else ""
    kind = first["type"]
    if kind == "extra_forbidden":
        known = [str(p["loc"][-1]) for p in problems if p["type"] == "missing"] or _fields_at(schema, first["loc"])
        return InputError(f"unknown key{more}", where=place, cure=_unknown_key_cure(str(first["loc"][-1]), known))
    if kind == "missing":
        return InputError(f"this key is missing{more}", where=place, cure="Add it")
    if isinstance(value, str) and ("float" in kind or "int" in kind):
        return InputError(f"'{value}' is text, not a number{more}", where=place, cure=_number_cure(value))
    message = first["msg"].removeprefix("Value error, ")
    # A whole block that contradicts itself is named by the message; printing it would only bury that.
    got = "" if isinstance(value, dict) else f", got {_short(value)}"
    return InputError(f"{message[:1].lower()}{message[1:]}{got}{more}", where=place)


def _number_cure(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return "Write a plain number; the unit is in the key"
    mantissa, _, exponent = f"{number:e}".partition("e")
    mantissa = mantissa.rstrip("0")
    mantissa += "0" if mantissa.endswith(".") else ""
    return f"YAML reads this spelling as text: write {mantissa}e{exponent[0]}{exponent[1:].lstrip('0') or '0'}"


_UNITS = ("bytes_per_s", "flops", "bytes", "s")


def _unknown_key_cure(key: str, known: list[str]) -> str:
    cure = nearest(key, known)
    wanted = next((k for k in known if k != key and k.split("_")[0] == key.split("_", 1)[0]), None)
    if wanted and any(wanted.endswith(unit) for unit in _UNITS):
        return f"{cure} The unit is part of the key, and SI: '{wanted}'"
    return cure


def _fields_at(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the nested model that `loc` points into."""
    current: Any = schema
    for part in loc[:-1]:
        fields = getattr(current, "model_fields", {})
        field = next((f for name, f in fields.items() if part in (name, f.alias)), None)
        if field is None:
            continue
        current = _model_in(field.annotation) or current
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found:
            return found
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def content_hash(data: Any) -> str:
    """A short hash of plain data (dicts, lists, numbers, text), the same whatever the key order."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename: no reader ever sees half a file."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a device or a pipe cannot be replaced
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write: {reason}", where=str(path), cure="Choose a writable path") from None


def check_writable(path: Path) -> None:
    """InputError where `write_whole` would fail: to be asked before the work is done, not after."""
    try:
        if path.is_dir():
            raise InputError("cannot write: this is a folder", where=str(path), cure="Give a file name in it")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if not folder.is_dir():
            raise InputError(f"cannot write: {folder} is a file, not a folder", where=str(path), cure="Choose another")
        if not os.access(folder, os.W_OK):
            raise InputError(f"cannot write: no permission in {folder}", where=str(path), cure="Choose another")
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", where=str(path), cure="Choose another") from None


def dump_yaml(data: Any) -> str:
    """YAML for people: keys in the order given, short lists on one line."""
    return yaml.safe_dump(data, sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
