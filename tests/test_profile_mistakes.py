"""One profile written by hand with every kind of mistake: each is named, on its own line, with its key and its cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import profile_dict, profile_text, write_profile

from planner.errors import MOST_LINES, InputError
from planner.hardware import load_hardware

PROFILE = """
schema_version: 7
id: my card
description: 12
colour: red
machine: {cores: 8}
gpu:
  name: ""
  device: tpu
  datasheet:
    flops:
      float16: {value: 1.0e+14, kind: datasheet, source: "the vendor"}
      float8: {value: 3.0e+14, kind: datasheet, source: "the vendor"}
    memory_bytes_per_s: {value: 1.0e+12, kind: datasheet, source: "the vendor"}
  memory:
    nominal_bytes: {value: 24.0e+9, kind: datasheet, source: "the vendor"}
    usable_bytes: {value: 25769803776, kind: datasheet, source: "24 GiB"}
    context_reserve_bytes: {value: 26.0e+9, kind: assumed, source: "a guess"}
  achieved:
    gemm_flops_by_rows:
      float16:
        kind: published
        source: "a paper"
        slices: [{second: 1, points: [[64, 4.9e+13], [512, 1.2e+14]]}]
      float32:
        kind: published
        source: "a paper"
        slices: [{second: 1, points: []}]
      bfloat16:
        kind: published
        source: "a paper"
        slices: [{second: 1, points: [[512, 5.0e+13], [64, 6.0e+13]]}, {second: 8, points: [[1, 5.0e+13]]}]
    decode_attention_bytes_per_s_by_context:
      kind: published
      source: "a paper"
      slices: [{second: 1, points: [[64, 5.0e+11, 3]]}, {second: 8, points: [[64, 5e11], [128, .inf]]}]
    attention_group_cost: 0.2
    memory_bytes_per_s: {value: 1.2e+12, kind: published, source: "a paper"}
    elementwise_bytes_per_s: {value: true, kind: published, source: "a paper"}
    op_overhead_s: {value: -1.0e-5, kind: assumed, source: "a guess"}
    forward_overhead_s: {value: .nan, kind: assumed, source: "a guess"}
    attention_call_s: {value: 1.0e-5, kind: guessed, source: "a guess"}
    attention_group_s: {value: 1.0e-5, kind: assumed, source: "a guess"}
    merge_bytes_per_s: {value: 1.0e+11, kind: assumed, source: "a guess"}
    gather_bytes_per_s: {value: 1.0e+11, kind: assumed, source: "a guess"}
    engine_slowdown:
      embed: {value: 1.0, kind: assumed, source: "a guess"}
      sample: {value: 1.0, kind: assumed, source: "a guess"}
      prefil: {value: fast, kind: assumed, source: "a guess"}
      rebuild: {value: 1.0, kind: assumed, source: "a guess", when: today}
      forward: {value: [1.0], kind: assumed, source: "a guess"}
link:
  name: PCIe
  h2d_gb_per_s: {value: 24.5, kind: published, source: "a paper"}
  d2h_bytes_per_s: {value: 2.6e+10, kind: published, source: ""}
  h2d_during_d2h_bytes_per_s: {value: 1e9, kind: published, source: "a paper"}
  d2h_during_h2d_bytes_per_s: {value: 5.0e+10, kind: published, source: "a paper"}
  pageable_h2d_bytes_per_s: {value: 0, kind: published, source: "a paper"}
  pageable_d2h_bytes_per_s: {value: 9.0e+9, kind: measured, source: "here"}
  latency_s: {value: .inf, kind: measured, date: "2026-02-30", runs: 5, source: "here"}
  during_compute: {value: 24, kind: assumed, source: "a guess"}
  compute_s_lost_per_byte: {kind: assumed, source: "a guess"}
host:
  total_bytes: {value: 64.0e+9, kind: datasheet, source: "four modules"}
  reserve_bytes: {value: 64.0e+9, kind: assumed, source: "a guess"}
  pin_rounding: roughly
"""
"""Every block of it holds mistakes, and all blocks but `machine` hold several."""

GEMM, DECODE = "gpu.achieved.gemm_flops_by_rows", "gpu.achieved.decode_attention_bytes_per_s_by_context"
EXPECTED = [
    # the key, the mistake, the cure
    ("schema_version", "input should be 2, got 7", "Write schema_version: 2, and the keys of that version"),
    ("id", "'my card'", "Use letters, digits, '.', '_' and '-' only"),
    ("description", "12 is not text", 'Put it in quotes: "12"'),
    ("colour", "unknown key", "Remove it. Known here: description, gpu, host"),
    ("machine.cores", "8 is not text", 'Put it in quotes: "8"'),
    ("gpu.name", "is empty, at least 1 character", 'Write name: "text"'),
    ("gpu.device", "'cuda' or 'cpu', got 'tpu'", "Did you mean 'cpu'"),
    ("gpu.datasheet.flops.float8", "'float8'", "Did you mean 'float"),
    (f"{GEMM}.float32.slices.0.points", "at least 1 item", "Write points: [[64, 4.9e+13], [512, 1.6e+14]]"),
    ("gpu.achieved.prefill_attention_flops_by_tokens", "this key is missing", "Add it, in FLOP per second: prefill_"),
    (f"{GEMM}.bfloat16.slices.0.points", "must ascend", "Sort the points by size"),
    (f"{DECODE}.slices.0.points.0", "not one of the [size, rate] pairs", "Write points as a list of [size, rate]"),
    (f"{DECODE}.slices.1.points.0.1", "'5e11' is text, not a number", "like 1.0e+9"),
    ("gpu.achieved.attention_group_cost", "0.2 is a bare number", "{value: 1.0, kind: assumed, source: "),
    ("gpu.achieved.elementwise_bytes_per_s.value", "true is not a number", "Write value: 2.4e+10"),
    ("gpu.achieved.op_overhead_s.value", "got -1e-05", "Write a number of at least 0; the unit is seconds"),
    ("gpu.achieved.forward_overhead_s.value", "got nan", "Write a finite number, like value: 1.0e-5"),
    ("gpu.achieved.attention_call_s.kind", "got 'guessed'", "Did you mean 'assumed'"),
    ("gpu.achieved.engine_slowdown.prefil", "unknown key", "Did you mean 'prefill'?"),
    ("gpu.achieved.engine_slowdown.prefill.value", "'fast' is text, not a number", "Write a plain number"),
    ("gpu.achieved.engine_slowdown.rebuild.when", "unknown key", "Remove it. Known here: date, kind, runs"),
    ("gpu.achieved.engine_slowdown.forward.value", "[1.0] is not a number", "Write value: 1.0"),
    ("link.h2d_gb_per_s", "unknown key", "Did you mean 'h2d_bytes_per_s'? The unit is part of the key, and SI"),
    ("link.d2h_bytes_per_s.source", "'' is empty, at least 1", 'Write source: "where the number is from"'),
    ("link.h2d_during_d2h_bytes_per_s.value", "'1e9' is text, not a number", "write 1.0e+9"),
    ("link.pageable_h2d_bytes_per_s.value", "got 0", "of at least 1000; the unit is bytes per second"),
    ("link.latency_s.date", "'2026-02-30' is no day", "Write a date as text in quotes, like '2026-11-23'"),
    ("link.latency_s.value", "got inf", "Write a finite number"),
    ("link.during_compute.value", "got 24", "Write a number of at most 1.05"),
    ("link.compute_s_lost_per_byte.value", "this key is missing", "Add it, in seconds per byte: value: 1.0e-12"),
    ("host.name", "this key is missing", 'Add it: name: "text"'),
    ("host.pin_rounding", "'exact' or 'power_of_two', got 'roughly'", "Known: exact, power_of_two"),
    # contradictions between keys, each although other keys of the same block are mistaken
    ("gpu.memory.usable_bytes", "larger than nominal_bytes, 2.4e+10", "Give at most nominal_bytes"),
    ("gpu.memory.context_reserve_bytes", "leaves nothing of usable_bytes", "Give less than usable_bytes"),
    (f"{GEMM}.float16", "120% of the datasheet's 1e+14", "Look for a cache effect"),
    ("gpu.achieved.memory_bytes_per_s", "120% of the datasheet's 1e+12", "Look for a cache effect"),
    ("link.d2h_during_h2d_bytes_per_s", "faster than d2h_bytes_per_s alone, 2.6e+10", "Give at most d2h_bytes"),
    ("host.reserve_bytes", "leaves nothing of total_bytes, 6.4e+10", "Give less than total_bytes"),
    ("link.pageable_d2h_bytes_per_s", "a measured number needs date, runs, spread", "or use kind: published"),
    ("link.latency_s", "a measured number needs spread", "Add spread"),
]


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load_hardware(str(path))
    return str(caught.value)


def test_every_mistake_of_a_file_is_named_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PROFILE, encoding="utf-8")
    head, *lines = refusal(path).splitlines()
    assert len(EXPECTED) >= 25
    assert head == f"{path}: {len(EXPECTED)} mistakes"
    by_key = {line.strip().partition(": ")[0]: line for line in lines}
    assert sorted(by_key) == sorted(key for key, _, _ in EXPECTED)
    assert len(lines) == len(EXPECTED), "one line each"
    for key, mistake, cure in EXPECTED:
        assert mistake in by_key[key]
        assert cure in by_key[key]
        assert by_key[key].index(mistake) < by_key[key].index(cure)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    data = profile_dict() | {f"key{i}": i for i in range(MOST_LINES + 10)}
    lines = refusal(write_profile(tmp_path, data)).splitlines()
    assert len(lines) == MOST_LINES + 2
    assert lines[0].endswith(f": {MOST_LINES + 10} mistakes")
    assert lines[-1] == "  ... and 10 more"


def test_what_a_yaml_alias_repeats_is_one_mistake(tmp_path: Path) -> None:
    text = profile_text().replace("[64, 4.9e+13]", "[64, 4.9e13]")  # in a table that two data types share
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert refusal(path).count("'4.9e13' is text") == 1


def test_all_keys_given_twice_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("id: a\nid: b\nlink:\n  name: a\n  name: b\n", encoding="utf-8")
    assert refusal(path).splitlines() == [
        f"{path}: 2 mistakes",
        "  key 'id' is given twice (line 2). Keep one of them",
        "  key 'name' is given twice (line 5). Keep one of them",
    ]


def test_a_misspelt_block_is_checked_below(tmp_path: Path) -> None:
    data = profile_dict()
    data["hosst"] = data.pop("host") | {"pin_rounding": "roughly"}
    lines = refusal(write_profile(tmp_path, data)).splitlines()
    assert [line.split(": ")[0].strip() for line in lines[1:]] == ["hosst", "host.pin_rounding"]
