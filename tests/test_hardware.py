"""Profiles: what ships loads, and a profile with one mistake says which one and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import profile_dict, profile_text, write_profile
from pydantic import ValidationError

import hwprofiles
from planner.errors import InputError
from planner.hardware import HardwareProfile, load_hardware

Data = dict[str, Any]
GEMM = ["gpu", "achieved", "gemm_flops_by_rows", "float16"]
OP = ["gpu", "achieved", "op_overhead_s"]
DELETE: Any = object()


def put(path: str, value: Any) -> Callable[[Data], None]:
    """A mutation: the key at the dotted path gets `value`, or goes."""

    def mutate(data: Data) -> None:
        *parents, leaf = path.split(".")
        node = data
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if value is DELETE:
            del node[leaf]
        else:
            node[leaf] = value

    return mutate


def rename(path: str, name: str) -> Callable[[Data], None]:
    """A mutation: the last key of the dotted path is called `name`."""

    def mutate(data: Data) -> None:
        *parents, leaf = path.split(".")
        node = data
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[name] = node.pop(leaf)

    return mutate


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    assert set(hwprofiles.names()) >= {"rtx4090-pcie4", "rtx4090-desktop"}
    for name in hwprofiles.names():
        assert load_hardware(name).id == name
        assert load_hardware(str(hwprofiles.path_of(name))) == load_hardware(name)


def test_an_overlay_changes_only_what_it_says() -> None:
    server, desktop = load_hardware("rtx4090-pcie4").to_plain(), load_hardware("rtx4090-desktop").to_plain()
    assert desktop["gpu"] == server["gpu"]
    assert desktop["link"] == server["link"]
    assert desktop["host"]["total_bytes"]["value"] == 64 * 2**30
    assert desktop["host"]["pin_rounding"] == server["host"]["pin_rounding"]


def test_an_overlaid_table_is_replaced_whole(tmp_path: Path) -> None:
    """Nothing of the table below shines through, its provenance neither."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: rtx4090-pcie4\nid: mine\ndescription: mine\n"
        "gpu:\n  achieved:\n    gemm_flops_by_rows:\n      float16:\n"
        "        kind: assumed\n        source: a guess\n        slices: [{second: 64, points: [[1, 1.0e+12]]}]\n"
    )
    found, below = (
        load_hardware(name).to_plain()["gpu"]["achieved"]["gemm_flops_by_rows"] for name in (str(path), "rtx4090-pcie4")
    )
    table = {"kind": "assumed", "source": "a guess", "slices": [{"second": 64.0, "points": [[1.0, 1e12]]}]}
    assert found["float16"] == table
    assert found["bfloat16"] == below["bfloat16"]


def test_budgets_are_what_is_left() -> None:
    profile = load_hardware("rtx4090-pcie4")
    assert profile.gpu.budget_bytes == 25_250_627_584 - 1_240_000_000
    assert profile.host.budget_bytes == 882_000_000_000 - 16_000_000_000


BAD: list[tuple[str, Callable[[Data], None], str, str]] = [
    # name, mutation, the key named, the mistake or cure named
    ("unknown key on top", put("linkk", {}), "linkk", "unknown key"),
    ("unknown key below", put("gpu.achieved.turbo", 1.0), "gpu.achieved.turbo", "unknown key"),
    ("unknown key in a number", put("link.latency_s.unit", "s"), "link.latency_s.unit", "unknown key"),
    ("gbps", rename("link.h2d_bytes_per_s", "h2d_gbps"), "link.h2d_gbps", "'h2d_bytes_per_s'"),
    ("gb_per_s", rename("link.h2d_bytes_per_s", "h2d_gb_per_s"), "link.h2d_gb_per_s", "'h2d_bytes_per_s'"),
    ("GiB", rename("host.total_bytes", "total_gib"), "host.total_gib", "'total_bytes'"),
    ("milliseconds", rename("link.latency_s", "latency_ms"), "link.latency_ms", "'latency_s'"),
    ("1e9 is text", put("host.total_bytes.value", "1e9"), "host.total_bytes.value", "write 1.0e+9"),
    ("165.2e12 is text", put("gpu.datasheet.flops.float16.value", "165.2e12"), "float16.value", "write 1.652e+14"),
    ("small number as text", put("link.latency_s.value", "1e-5"), "link.latency_s.value", "write 1.0e-5"),
    ("words", put("host.total_bytes.value", "plenty"), "host.total_bytes.value", "plain number"),
    (
        "text in a curve",
        put(".".join([*GEMM, "slices", "0", "points"]), [[64, "4.9e13"]]),
        "float16.slices.0.points.0.1",
        "text, not a number",
    ),
    ("negative", put("link.h2d_bytes_per_s.value", -1.0), "link.h2d_bytes_per_s.value", "1000"),
    ("zero rate", put("link.h2d_bytes_per_s.value", 0.0), "link.h2d_bytes_per_s.value", "1000"),
    ("negative overhead", put(".".join([*OP, "value"]), -1e-5), "op_overhead_s.value", "greater than or equal to 0"),
    ("nan", put("host.total_bytes.value", float("nan")), "host.total_bytes.value", "nan"),
    ("inf", put("host.total_bytes.value", float("inf")), "host.total_bytes.value", "inf"),
    (
        "inf in a curve",
        put(".".join([*GEMM, "slices", "0", "points"]), [[64, float("inf")]]),
        "float16.slices.0.points.0.1",
        "inf",
    ),
    ("bool", put("host.total_bytes.value", True), "host.total_bytes.value", "true is not a number"),
    ("list", put("host.total_bytes.value", [1.0]), "host.total_bytes.value", "[1.0] is not a number"),
    ("bare number", put("host.total_bytes", 8.82e11), "host.total_bytes", "bare number"),
    ("null", put("gpu", None), "gpu", "null is not a block"),
    ("missing key", put("link.latency_s", DELETE), "link.latency_s", "missing"),
    ("missing value", put("link.latency_s.value", DELETE), "link.latency_s.value", "missing"),
    ("missing part", put("host", DELETE), "host", "missing"),
    ("no curve", put("gpu.achieved.gemm_flops_by_rows", {}), "gpu.achieved.gemm_flops_by_rows", "at least 1"),
    ("empty curve", put(".".join([*GEMM, "slices", "0", "points"]), []), "float16.slices.0.points", "at least 1"),
    (
        "unsorted curve",
        put(".".join([*GEMM, "slices", "0", "points"]), [[128, 9e13], [64, 5e13]]),
        "float16.slices.0.points",
        "ascend",
    ),
    (
        "size twice",
        put(".".join([*GEMM, "slices", "0", "points"]), [[64, 9e13], [64, 5e13]]),
        "float16.slices.0.points",
        "ascend",
    ),
    (
        "triple",
        put(".".join([*GEMM, "slices", "0", "points"]), [[64, 5e13, 1]]),
        "float16.slices.0.points.0",
        "[size, rate] pairs",
    ),
    (
        "huge in a curve",
        put(".".join([*GEMM, "slices", "0", "points"]), [[64, 10**400]]),
        "float16.slices.0.points.0.1",
        "Write ",
    ),
    ("no slices", put(".".join([*GEMM, "slices"]), []), "float16.slices", "at least 1"),
    (
        "slices out of order",
        put(".".join([*GEMM, "slices"]), [{"second": 2, "points": [[1, 5e13]]}, {"second": 1, "points": [[1, 5e13]]}]),
        "float16.slices",
        "ascend",
    ),
    ("a rate without its power of ten", put("link.h2d_bytes_per_s.value", 24.5), "h2d_bytes_per_s.value", "1000"),
    ("a latency in microseconds", put("link.latency_s.value", 10.5), "latency_s.value", "10"),
    ("a compute share above all", put("link.during_compute.value", 2.0), "during_compute.value", "1.05"),
    (
        "no pairs",
        put(".".join([*GEMM, "slices", "0", "points"]), 64),
        "float16.slices.0.points",
        "[size, rate] pairs",
    ),
    ("measured, undocumented", put("link.latency_s.kind", "measured"), "link.latency_s", "date, runs, spread"),
    ("no such day", put("link.latency_s.date", "2026-02-30"), "link.latency_s.date", "'2026-11-23'"),
    ("no runs", put("link.latency_s.runs", 0), "link.latency_s.runs", "greater than or equal to 1"),
    ("unknown kind", put("link.latency_s.kind", "guessed"), "link.latency_s.kind", "'assumed'"),
    ("empty source", put("link.latency_s.source", ""), "link.latency_s.source", "at least 1 character"),
    ("unknown dtype", rename(".".join(GEMM), "float8"), "gemm_flops_by_rows.float8", "'float16'"),
    ("usable > nominal", put("gpu.memory.usable_bytes.value", 2.6e10), "memory.usable_bytes", "larger than nominal"),
    (
        "reserve >= usable",
        put("gpu.memory.context_reserve_bytes.value", 25250627584.0),
        "reserve_bytes",
        "nothing of usa",
    ),
    ("host reserve", put("host.reserve_bytes.value", 9e11), "host.reserve_bytes", "nothing of total_bytes"),
    (
        "GEMM too fast",
        put(".".join([*GEMM, "slices", "0", "points"]), [[64, 1.74e14]]),
        "rows.float16",
        "105% of the datasheet",
    ),
    (
        "memory too fast",
        put("gpu.achieved.memory_bytes_per_s.value", 1.1e12),
        "memory_bytes_per_s",
        "109% of the datasheet",
    ),
    (
        "faster while shared",
        put("link.h2d_during_d2h_bytes_per_s.value", 2.6e10),
        "link.h2d_during_d2h_bytes_per_s",
        "faster than h2d",
    ),
    (
        "faster while shared, back",
        put("link.d2h_during_h2d_bytes_per_s.value", 3e10),
        "link.d2h_during_h2d_bytes_per_s",
        "faster",
    ),
    ("unknown device", put("gpu.device", "tpu"), "gpu.device", "'cuda' or 'cpu'"),
    ("version", put("schema_version", 1), "schema_version", "should be 2"),
    ("version as text", put("schema_version", "2"), "schema_version", "should be 2"),
    ("blank in the id", put("id", "my card"), "id", "is spelt wrongly"),
    ("rounding", put("host.pin_rounding", "roughly"), "host.pin_rounding", "'power_of_two'"),
    ("extends unknown", put("extends", "rtx4090-pcie5"), "extends", "'rtx4090-pcie4'"),
    ("extends a list", put("extends", ["rtx4090-pcie4"]), "extends", "no shipped profile"),
]


@pytest.mark.parametrize(("mutate", "key", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_one_mistake_is_named(tmp_path: Path, mutate: Callable[[Data], None], key: str, says: str) -> None:
    data = json.loads(json.dumps(profile_dict()))  # a copy without YAML's aliases: one key changes, not two
    mutate(data)
    path = write_profile(tmp_path, data)
    with pytest.raises(InputError) as caught:
        load_hardware(path)
    assert path in caught.value.where
    assert caught.value.where.endswith(key)
    assert says in str(caught.value)
    assert caught.value.cure, "how to mend it"
    assert "\n" not in str(caught.value)


FILES = [
    ("twice", profile_text() + "id: again\n", f"key 'id' is given twice (line {profile_text().count(chr(10)) + 1})"),
    ("twice below", profile_text().replace("  name: PCIe", "  name: a\n  name: PCIe"), "key 'name' is given twice"),
    ("broken", profile_text().replace("link:", "link: ["), "line "),
    ("tab", "id:\n\tx: 1\n", "line 2"),
    ("empty", "", "is a mapping"),
    ("only a comment", "# nothing\n", "is a mapping"),
    ("list", "- 1\n- 2\n", "is a mapping"),
    ("two documents", "a: 1\n---\nb: 2\n", "not valid YAML"),
    ("python object", "id: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ("too deep", "a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ("empty int", 'id: !!int ""\n', "not valid YAML"),
    ("no bool", 'id: !!bool "x"\n', "not valid YAML: 'x'"),
    ("no time", 'id: !!timestamp "x"\n', "not valid YAML"),
    ("key of a list", "? [a, b]\n: 1\n", "not valid YAML"),
    ("half a character", 'id: "\\ud800"\n', "not valid YAML"),
    ("endless", "id: &a [*a]\n", "aliases stand for more than"),
    ("no such day unquoted", "id: 2026-02-31\n", "YAML"),
]


@pytest.mark.parametrize(("text", "says"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_broken_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_hardware(str(path))
    assert str(path) in caught.value.where
    assert says in str(caught.value)


def test_no_file_a_folder_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such hardware profile file"):
        load_hardware(str(tmp_path / "missing.yaml"))
    with pytest.raises(InputError, match="cannot read this hardware profile file"):
        load_hardware(str(tmp_path))
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"id: caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_hardware(str(path))


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'rtx4090-pcie4'.*Or give a .yaml file"):
        load_hardware("rtx4090-pcie")
    with pytest.raises(InputError, match=r"Known: .*rtx4090-desktop"):
        load_hardware("zzz")


def test_a_measured_number_with_its_record_loads(tmp_path: Path) -> None:
    data = profile_dict()
    data["link"]["latency_s"] |= {"kind": "measured", "date": "2026-11-23", "runs": 30, "spread": 0.02}
    assert load_hardware(write_profile(tmp_path, data)).link.latency_s.runs == 30


# ---- hashes and changed numbers ------------------------------------------------------------------


def backwards(data: Any) -> Any:
    return {key: backwards(data[key]) for key in reversed(data)} if isinstance(data, dict) else data


def numbers(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of the single numbers of a profile."""
    if not isinstance(data, dict):
        return []
    here = [path] if "value" in data else []
    return here + [found for key, below in data.items() for found in numbers(below, (*path, key))]


def test_the_hash_ignores_key_order(tmp_path: Path) -> None:
    profile = load_hardware("rtx4090-pcie4")
    assert load_hardware(write_profile(tmp_path, backwards(profile_dict()))).content_hash == profile.content_hash


def test_the_hash_changes_with_every_number() -> None:
    profile = load_hardware("rtx4090-pcie4")
    paths = [".".join(path) for path in numbers(profile.to_plain())]
    assert len(paths) >= 15
    hashes = {profile.content_hash}
    for path in paths:
        value = yaml.safe_load(profile_text())
        for part in path.split("."):
            value = value[part]
        hashes.add(profile.with_values(**{path: value["value"] * 0.999}).content_hash)
    assert len(hashes) == len(paths) + 1


def test_with_values_replaces_numbers_and_says_so() -> None:
    before = load_hardware("rtx4090-pcie4")
    after = before.with_values(**{"link.h2d_bytes_per_s": 3.2e10, "gpu.achieved.op_overhead_s": 0})
    assert after.link.h2d_time(3.2e10) == pytest.approx(1.0 + 1e-5)
    assert after.gpu.achieved.op_overhead_s.value == 0
    assert after.link.h2d_bytes_per_s.kind == "assumed"
    assert after.link.d2h_bytes_per_s == before.link.d2h_bytes_per_s
    assert before.link.h2d_bytes_per_s.value == 2.445e10


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("link", 1.0),
        ("link.h2d", 1.0),
        ("link.h2d_bytes_per_s.value", 1.0),
        ("id", 1.0),
        ("id.value", 1.0),
        ("gpu.name.first.letter", 1.0),
        ("schema_version.minor", 1.0),
        ("gpu.achieved.gemm_flops_by_rows.float16", 1.0),
        ("", 1.0),
        ("link.h2d_bytes_per_s", -1.0),
        ("link.h2d_bytes_per_s", float("nan")),
        ("gpu.memory.usable_bytes", 1e12),
    ],
)
def test_with_values_refuses(path: str, value: float) -> None:
    with pytest.raises(InputError):
        load_hardware("rtx4090-pcie4").with_values(**{path: value})


def test_a_profile_does_not_change() -> None:
    profile: HardwareProfile = load_hardware("rtx4090-pcie4")
    with pytest.raises(ValidationError, match="frozen"):
        profile.link.latency_s.value = 0.0  # type: ignore[misc]


def test_a_dtype_without_a_rate_is_refused() -> None:
    with pytest.raises(InputError, match=r"no GEMM rate for float32.*float16, bfloat16"):
        load_hardware("rtx4090-pcie4").gpu.gemm_rates("float32")


# ---- times ---------------------------------------------------------------------------------------


def test_times_by_hand() -> None:
    profile = load_hardware("rtx4090-pcie4")
    assert profile.link.h2d_time(0) == 0.0  # nothing to move is no transfer, so no latency either
    assert profile.link.d2h_time(2.625e10) == pytest.approx(1.0 + 1e-5)
    gpu = profile.gpu
    assert gpu.gemm_time(0, 10, 10, "float16", 2) == 0.0
    assert gpu.gemm_time(512, 8192, 8192, "float16", 2) == pytest.approx(2 * 512 * 8192**2 / 1.645e14)
    # One row is bound by reading the weights, whatever the rate table says.
    traffic = 2 * (8192 * 8192 + 8192 + 8192)
    assert gpu.gemm_time(1, 8192, 8192, "float16", 2) == pytest.approx(traffic / 9.21e11)
    assert gpu.decode_attention_time(8.84e11, 32, 4096, 8) == pytest.approx(1.0)
    assert gpu.prefill_attention_time(1.02e14, 77, 3) == pytest.approx(1.0)
