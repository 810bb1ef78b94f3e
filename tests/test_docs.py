"""The documents name only what exists: files, links, headings, commands, options and keys."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import hwprofiles
from hybridserve import app
from planner.attribution import attribute
from planner.catalogue import look_up
from planner.explain_report import explain_result
from planner.hardware import load_hardware
from planner.model import load_model
from planner.operation import KINDS, STREAMS
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.results import plan_result
from planner.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "hwprofiles" / "README.md",
        ROOT / "notebooks" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
PLACES = ("planner", "runtime", "hwprofiles", "benchmarks", "tests", "docs", "notebooks")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(
    r"""\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)|^\s{0,3}\[[^\]]+\]:\s*(\S+)|<(?:a|img)\s[^>]*?(?:href|src)="([^"]+)\"""",
    re.MULTILINE,
)
"""Links and pictures: inline, by reference, and as HTML."""
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them: of equal ones, the second has -1 at its end."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(text)):
        words = re.sub(r"\]\([^)]*\)", "", heading)
        one = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        found.add(next(name for n in range(len(found) + 1) if (name := f"{one}-{n}" if n else one) not in found))
    return found


def targets(text: str) -> list[str]:
    """What a document links to, outside of its code."""
    return ["".join(groups) for groups in LINK.findall(INLINE.sub("", prose(text)))]


def leads_somewhere(path: Path, text: str, target: str) -> bool:
    """Whether `text`, a document at `path`, links to something; what is outside the repository is nothing."""
    name, _, anchor = target.partition("#")
    if name:
        file = (path.parent / name).resolve()
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and file.suffix != ".md"):
            return False
        text = file.read_text(encoding="utf-8") if anchor else ""
    return not anchor or anchor in anchors(text)


def broken(path: Path, text: str) -> list[str]:
    """Relative links of `text`, a document at `path`, that lead nowhere."""
    relative = [target for target in targets(text) if not re.match(r"[a-z]+:", target)]
    return [target for target in relative if not leads_somewhere(path, text, target)]


def inline(text: str) -> list[str]:
    return INLINE.findall(prose(text))


def is_path(name: str) -> bool:
    """A path in the repository, rather than a file that an example writes or a key with a dot."""
    if re.search(r"[\s*|<>{}\[\]=]|NAME", name):
        return False
    top = name.partition("/")[0]
    return ("/" in name and top in PLACES) or name.endswith((".py", ".md", ".toml"))


def examples(text: str) -> Iterator[list[str]]:
    """Words of every `hybridserve` line in a bash block."""
    for language, body in FENCE.findall(text):
        if language == "bash":
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["hybridserve"]:
                    yield words[1:]


def options(command: Any) -> set[str]:
    flags = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    return {"--help"} | {flag for flag in flags if flag.startswith("-")}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path, path.read_text(encoding="utf-8")) == []


def test_broken_links_of_every_kind_are_found() -> None:
    good = '# A `b`: c\n## Twice\n## Twice\n[x](#a-b-c) [x](#twice-1) ![x](images/demo.png "t") [x](https://a.b/c#d)\n'
    good += '[x](../README.md#installation)\n\n[y]: policies.md#ours\n\n<img src="images/demo.png"> `[x](no.md)`\n'
    page = ROOT / "docs" / "page.md"
    assert len(targets(good)) == 7 and broken(page, good) == []
    for wrong in ("[x](#twice-2)", "![x](images/none.png)", "[x](policies.md#theirs)", "\n[y]: none.md",
                  '<a class="c" href="none.md">', "[x](../../elsewhere)", "[x](images/demo.png#a)"):  # fmt: skip
        assert len(broken(page, good + wrong)) == 1, wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_files_in_backticks_exist(path: Path) -> None:
    for name in filter(is_path, inline(path.read_text(encoding="utf-8"))):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_example_commands_parse(path: Path) -> None:
    for words in examples(path.read_text(encoding="utf-8")):
        assert words and words[0] in COMMANDS, f"{path.name}: no command {words}"
        try:
            COMMANDS[words[0]].make_context(words[0], words[1:])  # parses and checks, runs nothing
        except Exception as error:  # the classes differ between versions of typer
            pytest.fail(f"{path.name}: hybridserve {shlex.join(words)}: {error}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_an_example_that_parses(name: str) -> None:
    _, *found = COMMANDS[name].help.split("Example: hybridserve ")
    assert len(found) == 1, f"hybridserve {name} --help has {len(found)} examples"
    command, *words = shlex.split(found[0])  # lines are broken anywhere
    assert command == name
    COMMANDS[name].make_context(name, words)  # parses and checks, runs nothing


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_commands_and_options_in_backticks_exist(path: Path) -> None:
    every = set().union(*map(options, COMMANDS.values()))
    for code in inline(path.read_text(encoding="utf-8")):
        words = code.split()
        known = every
        if words[0] == "hybridserve" and len(words) > 1 and words[1].islower():
            assert words[1] in COMMANDS, f"{path.name}: {code}"
            known = options(COMMANDS[words[1]])
        elif not words[0].startswith("--") and words[0] not in ("plan", "run"):
            continue
        for word in words:
            flag = word.partition("=")[0].rstrip("),.;")
            assert not flag.startswith("--") or flag in known, f"{path.name}: {code}"


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for name, command in COMMANDS.items():
        body = sections[f"hybridserve {name}"] + sections["Selecting a job"]
        missing = {flag for flag in options(command) - {"--help"} if f"`{flag}`" not in body}
        assert not missing, f"hybridserve {name}: {missing}"


def test_json_keys_are_documented() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8").partition("## JSON keys")[2]
    said = {key for line in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for key in INLINE.findall(line)}
    plan = make_plan(
        load_hardware("rtx4090-pcie4"), load_model("opt-125m"), Workload.uniform(2, 16, 4), POLICIES["kv-only"]
    )
    assert said == set(plan_result(plan)) | {"settings", "measured", "peak_bytes", "error", "bad_lines"}


def test_keys_of_explain_and_show_are_documented() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    hardware = load_hardware("rtx4090-pcie4")
    plan = make_plan(hardware, load_model("opt-125m"), Workload.uniform(2, 16, 4), POLICIES["kv-only"])
    explained = explain_result(plan, attribute(plan.hardware, plan.model, plan.decisions))
    del explained["made_for"]  # documented with `plan`
    shown, _ = look_up("hardware", hardware.id)
    added = {key: shown[key] for key in ("efficiency", "reference_job", "worth_measuring")}
    for section, data in (("hybridserve explain", explained), ("hybridserve show", added)):
        missing = {key for key in keys(data) if f"`{key}`" not in sections[section]}
        assert not missing, f"{section}: {missing}"


def keys(node: Any) -> Iterator[str]:
    """Every key at any depth, but not the names of streams, kinds and products."""
    if isinstance(node, list):
        for one in node:
            yield from keys(one)
    elif isinstance(node, dict):
        for key, below in node.items():
            if key not in (*STREAMS, *KINDS) and key.isidentifier() and key != "head":
                yield key
            yield from keys(below)


def test_every_shipped_policy_and_profile_key_is_documented() -> None:
    command_line = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in command_line for name in POLICIES)
    profiles = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    missing = {
        key
        for name in hwprofiles.names()
        for block in ("gpu", "link", "host")
        for key in _leaves(load_hardware(name).to_plain()[block], block)
        if f"`{key}`" not in profiles
    }
    assert not missing


def _leaves(node: dict[str, Any], path: str) -> Iterator[str]:
    """Dotted keys down to numbers, tables and text; a data type is called DTYPE, a kind of operation KIND."""
    for key, value in node.items():
        one = "DTYPE" if key in ("float16", "bfloat16", "float32") else key
        here = f"{path}.{'KIND' if path.endswith('engine_slowdown') else one}"
        if isinstance(value, dict) and not {"value", "slices"} & value.keys():
            yield from _leaves(value, here)
        else:
            yield here


def test_readme_keeps_the_place_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- demo:begin -->", "<!-- demo:end -->"
    assert text.count(begin) == text.count(end) == 1
    assert text.index(begin) < text.index(end)
