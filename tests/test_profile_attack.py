"""Profiles broken with intent: refused in one message that names the key, or harmless."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import small_model

import hwprofiles
from planner.errors import InfeasibleError, InputError
from planner.files import MOST_BYTES, check_writable, dump_yaml, read_text, read_yaml
from planner.hardware import load_hardware
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Workload

Data = dict[str, Any]
ACHIEVED = "gpu.achieved"
SHIPPED = ("rtx4090-pcie4", "t4", "a100-40gb")


def shipped(name: str = "rtx4090-pcie4") -> Data:
    return load_hardware(name).to_plain()


def refused(folder: Path, data: Data | str) -> str:
    path = folder / "mine.yaml"
    path.write_text(data if isinstance(data, str) else dump_yaml(data), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_hardware(str(path))
    assert str(path) in caught.value.where
    assert len(str(caught.value)) < 5000
    return str(caught.value)


def put(data: Data, path: str, value: Any) -> Data:
    *parents, leaf = path.split(".")
    node: Any = data
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    node[int(leaf) if isinstance(node, list) else leaf] = value
    return data


DECODE, PREFILL = f"{ACHIEVED}.decode_attention_bytes_per_s_by_context", f"{ACHIEVED}.prefill_attention_flops_by_tokens"
NUMBERS = [
    # what no card can do, or no measurement says
    (f"{DECODE}.slices.0.points.0.1", 7.27e14, "of the datasheet's 1.008e+12"),
    (f"{PREFILL}.slices.0.points.0.1", 1.02e17, "of the datasheet's 1.652e+14"),
    (f"{ACHIEVED}.merge_bytes_per_s.value", 1.0e15, "of the datasheet's 1.008e+12"),
    (f"{ACHIEVED}.engine_slowdown.forward.value", 1.0e17, "at most 100"),
    (f"{ACHIEVED}.engine_slowdown.prefill.value", 1.0e-9, "at least 0.1"),
    (f"{ACHIEVED}.attention_group_cost.value", 1.0e17, "at most 100"),
    ("link.during_compute.value", 1.0e-12, "at least 0.01"),
    ("link.pageable_h2d_bytes_per_s.value", 9.0e10, "faster than h2d_bytes_per_s alone"),
    ("link.pageable_d2h_bytes_per_s.value", 9.0e10, "faster than d2h_bytes_per_s alone"),
    (f"{ACHIEVED}.gemm_flops_by_rows.float16.slices.0.points.0.0", 1e-320, "at least 1"),
    (f"{DECODE}.slices.3.second", 1e17, "below 1e+09"),
    ("link.latency_s.spread", float("inf"), "finite"),
    ("link.latency_s.spread", 1e9, "at most 100"),
    ("link.latency_s.runs", 10**12, "below 1e+09"),
    ("link.latency_s.date", "9999-01-01", "no day on which such a machine was measured"),
    ("link.latency_s.source", "   ", "blank"),
    ("link.latency_s.source", "a \x1b[31mred\x1b[0m source", "control character in link.latency_s.source"),
    ("gpu.name", "bell\x07", "control character in gpu.name"),
    ("id", "..", "letters, digits"),
    ("id", "a" * 10_000, "at most 100 characters"),
    ("id", "../../etc/passwd", "letters, digits"),
]


@pytest.mark.parametrize(("path", "value", "says"), NUMBERS, ids=[f"{path}={str(v)[:12]}" for path, v, _ in NUMBERS])
def test_what_no_machine_can_be_is_refused(tmp_path: Path, path: str, value: Any, says: str) -> None:
    text = refused(tmp_path, put(shipped(), path, value))
    assert says in text


TEXTS = [
    ("octal", ("value: 1.6e+10", "value: 0777"), "in base eight"),
    ("sixty", ("value: 1.6e+10", "value: 1:30:00"), "in base sixty"),
    ("commas", ("value: 1.6e+10", "value: 882,000,000"), "a comma ends a number"),
    ("quoted commas", ("value: 1.6e+10", "value: '882,000,000'"), "write digits without commas: 882000000"),
    ("quoted", ("value: 1.6e+10", "value: '16000000000'"), "in quotes it is text: write 16000000000"),
]


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_numbers_that_yaml_reads_otherwise(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    text = hwprofiles.path_of("rtx4090-pcie4").read_text(encoding="utf-8")
    assert change[0] in text
    assert says in refused(tmp_path, text.replace(*change)).lower()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("extends: t4\nlink: {name: slow}\n", "needs an id of its own. Add id:"),
        (
            "extends: t4\nid: mine\nlink:\n  latency_s: {kind: assumed, source: mine}\n",
            "latency_s: a source for a",
        ),
        ("extend: t4\nid: mine\n", "Did you mean 'extends'?"),
        ("extends: 4090\nid: mine\n", "'rtx4090-desktop' or 'rtx4090-pcie4'"),
        ("extends: RTX4090-PCIE4\nid: mine\n", "Did you mean 'rtx4090-pcie4'?"),
        ("extends: null\nid: mine\n", "extends names no shipped profile: null. Known: a100-40gb"),
        ("extends: [t4]\nid: mine\n", "extends names no shipped profile: ['t4']. Did you mean 't4'?"),
        ("extends: t4\nid: mine\nmachine: &a [&b [*b, *b]]\n", "aliases stand for"),
    ],
)
def test_overlays(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_aliases_that_multiply_are_not_walked(tmp_path: Path) -> None:
    """Each line ten times the one before: twelve of them are more than a machine can hold."""
    lines = ["machine:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "aliases stand for" in refused(tmp_path, "\n".join(lines))


POINTS = "[[64, 4.9e+13], [128, 9.05e+13], [256, 1.505e+14], [512, 1.645e+14]]"


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ("[[64, fast]]", "'fast' is text"),
        ("[]", "slices.0.points: [] is empty, at least 1 item is needed"),
        ("[[64, 4.9e+13, 7]]", "is not one of the [size, rate] pairs"),
        ("[[64, .inf]]", "Write a finite number, like 1.6e+14"),
        ("[[0.5, 4.9e+13]]", "Write a number of at least 1"),
        ("[[null, 4.9e+13]]", "null is not a number. Write 64"),
        ("[[64, null]]", "null is not a number. Write 1.6e+14"),
    ],
)
def test_a_mistake_in_a_shared_table_is_named_once_and_in_plain_words(tmp_path: Path, points: str, says: str) -> None:
    text = hwprofiles.path_of("rtx4090-pcie4").read_text(encoding="utf-8")
    said = refused(tmp_path, text.replace(POINTS, points))
    assert said.count(says) == 1 and "\n" not in said
    assert all(odd not in said for odd in ("supported", "validation", "FLOP", "&gemm"))


def test_large_files_and_odd_ones(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("# " + "x" * MOST_BYTES["hardware profile"], encoding="utf-8")
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        load_hardware(str(path))
    with pytest.raises(InputError, match="no hardware named"):
        load_hardware("  ")
    kernel_log = Path("/proc/kmsg")
    if kernel_log.exists():  # looks ordinary, and a read of it waits for the next message
        with suppress(InputError):  # what has not been read since the machine began
            while read_text(kernel_log, "hardware profile"):
                pass
        with pytest.raises(InputError, match="cannot read"):
            read_text(kernel_log, "hardware profile")


@pytest.mark.parametrize("path", ["/dev/full", "/proc/mine.yaml", f"{'n' * 300}.yaml"])
def test_outputs_that_cannot_be_are_refused_before_the_work(path: str) -> None:
    with pytest.raises(InputError, match="cannot write"):
        check_writable(Path(path))


# ---- mutations ---------------------------------------------------------------------------------------


def nodes(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of the tree."""
    pairs = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [(data, key) for key, _ in pairs] + [one for _, below in pairs for one in nodes(below)]


def mutate(data: Data, draw: random.Random) -> None:
    container, key = draw.choice(nodes(data))
    value = container[key]
    ways: list[Callable[[], Any]] = [
        lambda: container.pop(key),
        lambda: container.__setitem__(key, draw.choice([None, True, -1, 0, "", "1e9", [], {}, float("nan"), 10**30])),
        lambda: container.__setitem__(key, [value, value]),
        lambda: container.__setitem__(key, {"value": value}),
    ]
    if isinstance(value, float | int) and not isinstance(value, bool):
        factor = draw.choice([-1, 1e-20, 1e-6, 1e-3, 0.5, 2, 1e3, 1e6, 1e20])
        ways += [lambda: container.__setitem__(key, value * factor)] * 6
    if isinstance(value, list):
        ways += [value.reverse, lambda: value.extend(value[:1])]
    if isinstance(container, dict):
        ways.append(lambda: container.__setitem__(f"{key}x", container.pop(key)))
    draw.choice(ways)()


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("seed", range(50))
def test_a_mutated_profile_is_refused_or_plans_to_finite_numbers(tmp_path: Path, name: str, seed: int) -> None:
    data = copy.deepcopy(shipped(name))
    mutate(data, random.Random(f"{name} {seed}"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        hardware = load_hardware(str(path))
    except InputError as error:
        assert error.where
        return
    try:
        plan = make_plan(hardware, small_model(), Workload.uniform(2, 20, 3), POLICIES["hybrid"])
    except (InputError, InfeasibleError):
        return
    assert 0 < plan.prediction.total_s < 1e9


def test_merges_that_multiply_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["m0: &m0 {a: 1}"]
    lines += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="take over more than 100,000 keys"):
        read_yaml(path, "hardware profile")
    path.write_text("base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n")
    assert read_yaml(path, "hardware profile")["more"] == {"a": 1, "b": 3}
