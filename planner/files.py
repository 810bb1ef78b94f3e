"""Reading YAML strictly and writing files whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from planner.errors import InputError, Mistake, mistaken_file
from planner.mistakes import find_mistakes

ModelT = TypeVar("ModelT", bound=BaseModel)


BROKEN = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises for text that is no YAML, or whose tags (`!!int ""`) do not fit the text."""


MOST_BYTES = {"hardware profile": 2**20, "model config": 2**20, "plan": 2**27}
"""What a file of some kind never exceeds; other kinds may have as many as `MOST_BYTES_OF_ALL`. A plan takes up to 600
bytes for a request, and a minute or two to read at this limit."""
MOST_BYTES_OF_ALL = 2**29
MOST_VALUES = 10**7
"""Values of a YAML file, aliases followed: nested ones multiply, and would be walked for ever."""
MOST_MERGED = 10**5
"""Keys that `<<` takes over from other mappings: nested ones multiply, too, while the file is read."""
MOST_LEVELS = 100
"""Of nesting: no file here has ten, and the loader follows them on the stack."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):  # type: ignore[misc]
    """SafeLoader that remembers keys given twice (PyYAML silently keeps the last), and takes no number for another."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[Mistake] = []
        self.merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As PyYAML does it, up to a limit."""
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > MOST_MERGED:
            problem = f"its '<<' take over more than {MOST_MERGED:,} keys"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """YAML 1.1 reads 0777 in base eight and 1:30 in base sixty, which nobody means here."""
        text = node.value.lstrip("+-")
        if ":" in text or (text[:1] == "0" and text[1:2].isdigit() and text.replace("_", "").isdigit()):
            base = "sixty" if ":" in text else "eight"
            problem = f"YAML reads {node.value} in base {base}: write it as a plain number, or in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        make = self.construct_yaml_int if node.tag == "tag:yaml.org,2002:int" else self.construct_yaml_float
        return make(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                self.twice.append(Mistake("", f"key '{key}' is given twice (line {line})", "Keep one of them"))
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= c <= "\udfff" for c in value):  # an escape in quotes can say what no file can hold
            raise yaml.constructor.ConstructorError(None, None, "half of a surrogate pair", node.start_mark)
        return value


for _tag in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _StrictLoader.construct_number)


def read_text(path: Path, what: str) -> str:
    """The text of `path`; InputError when it is missing, a folder, a pipe, too large or not text."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe can be read only once, or never ends
            problem, cure = "this is a pipe or a device, not an ordinary file", "Write it to a file, and give that"
            raise InputError(f"cannot read this {what} file: {problem}", where=str(path), cure=cure)
        most = MOST_BYTES.get(what, MOST_BYTES_OF_ALL)
        # Some files of the system look ordinary, and a read of them waits for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            content = file.read(most + 1)
        if content is None or len(content) > most:
            problem = f"it has more than {most:,} bytes, the limit" if content else "nothing can be read of it now"
            raise InputError(f"cannot read this {what} file: {problem}", where=str(path), cure="Is it the right file?")
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise InputError(f"no such {what} file", where=str(path), cure="Check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        cure = f"Give a {what} file that can be read as text"
        raise InputError(f"cannot read this {what} file: {reason}", where=str(path), cure=cure) from None


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping; InputError on syntax errors (with the line), duplicates (all of them), or another top level."""
    text, twice = read_text(path, what), list[Mistake]()
    try:
        _check_size(text, path)
        loader = _StrictLoader(text)
        twice = loader.twice
        data = loader.get_single_data()
    except BROKEN as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"not valid YAML: {problem}", where=place, cure=_yaml_cure(problem, mark, text, what)
        ) from None
    _check_values(data, path)
    if twice:
        raise mistaken_file(str(path), twice)
    if not isinstance(data, dict):
        cure = "Is this the right file? It should hold lines like 'key: value'"
        raise InputError(f"a {what} file is a mapping of keys to values", where=str(path), cure=cure)
    return data


def _yaml_cure(problem: str, mark: yaml.Mark | None, text: str, what: str) -> str:
    if "'<<'" in problem:
        return "Write the values out where they belong"
    if "plain number" in problem:
        return "The unit is in the key, and a comma ends a number"
    if mark is not None and mark.line + 1 < text.count("\n"):
        return "Mend that line: keys are 'key: value', indented with spaces; text with ': ' or '#' belongs in quotes"
    return f"Is the {what} file whole?"


def _check_size(text: str, path: Path) -> None:
    """InputError for text nested beyond all sense, or of more values than any file here: before any of them is made."""
    level = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if count > MOST_VALUES:
            raise InputError(f"more than {MOST_VALUES:,} values", where=str(path), cure="Is this the right file?")
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise InputError("nested too deeply", where=str(path), cure="Is this the right file?")


def _check_values(data: Any, path: Path) -> None:
    """InputError for what no later step could walk, or no terminal should be sent."""
    try:
        if _count(data, {}) > MOST_VALUES:
            problem = f"its aliases stand for more than {MOST_VALUES:,} values, or for themselves"
            raise InputError(problem, where=str(path), cure="Write the values out where they belong")
        control = _control_character(data, set())
    except RecursionError:
        raise InputError("nested too deeply", where=str(path), cure="Is this the right file?") from None
    if control:
        problem = f"a control character in {control}"
        raise InputError(problem, where=str(path), cure="Remove it: text is letters, digits, signs and spaces")


def _count(data: Any, known: dict[int, float]) -> float:
    """Values below and at `data`, aliases followed; without end for one that contains itself."""
    if not isinstance(data, dict | list):
        return 1
    if id(data) not in known:
        known[id(data)] = float("inf")
        below = [*data.keys(), *data.values()] if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_count(one, known) for one in below)
    return known[id(data)]


def _control_character(data: Any, seen: set[int], at: str = "") -> str:
    """Where text holds a character that steers a terminal; "" where none does."""
    if isinstance(data, str):
        steers = any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in data)
        return (at or repr(data)) if steers else ""
    if not isinstance(data, dict | list) or id(data) in seen:
        return ""
    seen.add(id(data))
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in pairs:
        place = f"{at}.{key}" if at else str(key)
        if isinstance(data, dict) and _control_character(key, seen):
            return f"the key {key!r}"
        if found := _control_character(value, seen, place):
            return found
    return ""


def validate(schema: type[ModelT], data: dict[str, Any], where: str) -> ModelT:
    """`data` as `schema`; one InputError with all mistakes, each with its key and cure."""
    try:
        return schema.model_validate(data)
    except ValidationError:
        raise mistaken_file(where, find_mistakes(schema, data)) from None
    except RecursionError:
        raise InputError("nested too deeply", where=where, cure="Is this the right file?") from None


def content_hash(data: Any) -> str:
    """A short hash of plain data (dicts, lists, numbers, text), the same whatever the key order."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content`, text as UTF-8, to a temporary file beside `path`, then rename: no reader ever sees half a file.

    A link stays a link: what it points to is written.
    """
    try:
        data = content.encode("utf-8") if isinstance(content, str) else content
        target = real_path(path)
        if target.exists() and not target.is_file() and not target.is_dir():  # a device or a pipe cannot be replaced
            target.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write: {reason}", where=str(path), cure="Choose a writable path") from None


def real_path(path: Path) -> Path:
    """`path` absolute, without links; InputError where links run in a circle or the path cannot be one."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        cure = "Choose another path"
        raise InputError("no usable path: its links run in a circle", where=str(path), cure=cure) from None


def check_writable(path: Path) -> None:
    """InputError where `write_whole` would fail: to be asked before the work is done, not after."""
    try:
        target = real_path(path)
        if path.is_dir():
            raise InputError("cannot write: this is a folder", where=str(path), cure="Give a file name in it")
        if target.exists() and not target.is_file() and target != Path(os.devnull):
            what = "cannot write: this is a pipe or a device"  # a pipe would wait for a reader, for ever
            raise InputError(what, where=str(path), cure="Choose an ordinary file; --json prints the result")
        folder = next(folder for folder in target.parents if folder.exists())
        if not folder.is_dir():
            cure = "Choose another path"
            raise InputError(f"cannot write: {folder} is a file, not a folder", where=str(path), cure=cure)
        if not os.access(folder, os.W_OK):
            raise InputError(f"cannot write: no permission in {folder}", where=str(path), cure="Choose another path")
        if (
            folder == target.parent and not target.exists()
        ):  # some folders of the system take no files, some no such name
            probe = target.with_name(f".{target.name}.{os.getpid()}")
            probe.touch(exist_ok=True)
            probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", where=str(path), cure="Choose another path") from None


def dump_yaml(data: Any) -> str:
    """YAML for people: keys in the order given, short lists on one line."""
    return yaml.safe_dump(data, sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
