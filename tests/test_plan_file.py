"""Plan files: they come back equal, or one message names the file, the key and the mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import small_model

from planner.checker import check_hazards
from planner.errors import InputError
from planner.files import dump_yaml
from planner.hardware import load_hardware
from planner.memory import resident_layers
from planner.plan import Plan, read_plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.schedule import Schedule
from planner.search import Options
from planner.workload import Request, Workload

Data = dict[str, Any]
SERVER, DESKTOP = load_hardware("rtx4090-pcie4"), load_hardware("rtx4090-desktop")
HYBRID = POLICIES["hybrid"]


RAGGED = Workload(
    (Request("a", 200, 20), Request("b", 40, 9), Request("c", 200, 20), Request("d", 77, 1), Request("e", 40, 9))
)


def small_plan() -> Plan:
    """Two streamed layers or more, and blocks on both sides of the link."""
    model = small_model(layers=4)
    hardware = SERVER.with_values(**{"gpu.memory.usable_bytes": 1.24e9 + 11e6, "gpu.memory.nominal_bytes": 2e9})
    return make_plan(hardware, model, RAGGED, HYBRID, Options(mini_batches=2, max_resident_layers=2, act_share=0.4))


PLAN = small_plan()
GOOD: Data = yaml.safe_load(PLAN.to_yaml())


def test_the_small_plan_is_worth_reading() -> None:
    assert 0 < resident_layers(PLAN.model, PLAN.decisions) <= 2
    assert PLAN.decisions.weight_slots == 2
    assert len(PLAN.decisions.mini_batches) == 2
    check_hazards(Schedule(PLAN.model, PLAN.decisions))


def test_a_plan_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "plan.yaml"
    PLAN.write(path)
    again = read_plan(path)
    assert again == PLAN
    assert again.decisions == PLAN.decisions
    assert again.workload == RAGGED
    assert again.to_yaml() == path.read_text(encoding="utf-8") == PLAN.to_yaml()
    assert [p.name for p in path.parent.iterdir()] == ["plan.yaml"]  # no temporary file stays


def test_a_plan_is_for_people(tmp_path: Path) -> None:
    text = PLAN.to_yaml()
    assert list(GOOD)[:3] == ["schema_version", "made_for", "policy"]
    assert "!!" not in text
    assert "requests: 0" in text or 'requests: "0' in text or "requests: '0" in text


def test_writing_where_nothing_can_be_written_is_a_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        PLAN.write(tmp_path / "file" / "plan.yaml")


def put(path: str, value: Any) -> Callable[[Data], None]:
    """A mutation: the value at the dotted path, numbers are positions in lists."""

    def mutate(data: Data) -> None:
        *parents, leaf = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = data
        for part in parents:
            node = node[part]
        node[leaf] = value

    return mutate


def drop(path: str) -> Callable[[Data], None]:
    def mutate(data: Data) -> None:
        *parents, leaf = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = data
        for part in parents:
            node = node[part]
        del node[leaf]

    return mutate


def twice(data: Data) -> None:
    groups = data["decisions"]["waves"][0]["mini_batches"]
    groups[1]["groups"].append(copy.deepcopy(groups[0]["groups"][0]))


def one_block_more(data: Data) -> None:
    data["decisions"]["waves"][0]["mini_batches"][0]["groups"][0]["blocks"][0][1] += 1


def lengths_mixed(data: Data) -> None:
    for batch in data["decisions"]["waves"][0]["mini_batches"]:
        batch["groups"] = batch["groups"][:1]
    data["decisions"]["waves"][0]["mini_batches"][0]["groups"][0]["requests"] = "0-1"


GROUP = "decisions.waves.0.mini_batches.0.groups.0"


def beyond_the_budget(data: Data) -> None:
    """More weight slots than fit, with the budget edited to match."""
    data["decisions"]["weight_slots"] = 30
    for line in data["memory"]["gpu"]["lines"]:
        if line["name"] == "weight slots":
            extra = line["bytes"] // 2 * 28
            line["bytes"] += extra
            data["memory"]["gpu"]["planned_bytes"] += extra


BINDING = PLAN.prediction.binding
OTHER = {"link": "compute", "compute": "link"}
BAD: list[tuple[str, Callable[[Data], None], str, str]] = [
    ("version", put("schema_version", 4), "schema_version", "should be 3"),
    ("unknown key", put("decision", {}), "decision", "unknown key"),
    ("unknown key below", put("decisions.weight_slot", 2), "decisions.weight_slot", "'weight_slots'"),
    ("missing key", drop("decisions.cache_slots"), "decisions.cache_slots", "missing"),
    ("missing part", drop("hardware"), "hardware", "missing"),
    ("text for a number", put("decisions.weight_slots", "2"), "decisions.weight_slots", "text, not a number"),
    ("text for a count", put(f"{GROUP}.blocks.0.1", "2"), f"{GROUP}.blocks.0.1", "text, not a number"),
    ("a fraction", put("decisions.weight_slots", 1.5), "decisions.weight_slots", "whole number"),
    ("a bool", put("decisions.cache_slots", True), "decisions.cache_slots", "whole number"),
    ("infinite", put("bound_total_s", float("inf")), "bound_total_s", "finite"),
    ("nan", put("gap", float("nan")), "gap", "finite"),
    ("hardware tampered", put("hardware.link.h2d_bytes_per_s.value", 5e10), "hardware", "not the one it was made for"),
    ("hardware broken", put("hardware.link.h2d_bytes_per_s.value", "5e10"), "h2d_bytes_per_s.value", "5.0e+10"),
    ("model tampered", put("model.ffn", 2048), "model", "not the one it was made for"),
    ("workload tampered", put("workload.runs.0.1", 201), "workload", "not the one it was made for"),
    ("workload broken", put("workload.runs.0.1", "200"), "workload: prompt_len", "not a whole number"),
    ("workload gone", put("workload", {}), "workload", "runs"),
    ("made for fewer", put("made_for.requests", 4), "made_for.requests", "planned for 4"),
    ("request twice", twice, "mini_batches.1.groups.", "is in two groups"),
    ("request missing", drop("decisions.waves.0.mini_batches.1"), "decisions.waves", "is in no mini-batch"),
    ("request unknown", put(f"{GROUP}.requests", "0-99"), f"{GROUP}", "not within the 5 requests"),
    ("range backwards", put(f"{GROUP}.requests", "3-1"), f"{GROUP}", "runs backwards"),
    ("range of nonsense", put(f"{GROUP}.requests", "all"), f"{GROUP}.requests", "is spelt wrongly"),
    ("endless number", put(f"{GROUP}.requests", "9" * 5000), f"{GROUP}.requests", "is spelt wrongly"),
    ("unlike requests", lengths_mixed, f"{GROUP}.requests", "differ in length"),
    ("unknown form", put(f"{GROUP}.blocks.0.0", "kv@disk"), f"{GROUP}.blocks", "unknown cache form 'kv@disk'"),
    ("a block more", one_block_more, f"{GROUP}.blocks", "which take"),
    ("blocks gone", put(f"{GROUP}.blocks", []), f"{GROUP}.blocks", "0 blocks"),
    ("endless blocks", put(f"{GROUP}.blocks.0.1", 10**12), f"{GROUP}.blocks", "which take"),
    ("too few layers", put("decisions.resident_parts", [1]), "decisions.resident_parts", "parts of each of 4 layers"),
    ("too many parts", put("decisions.resident_parts", [4] * 4), "decisions.resident_parts", "0 to 3 of them"),
    (
        "parts below zero",
        put("decisions.resident_parts", [-1, 0, 0, 0]),
        "resident_parts.0",
        "greater than or equal to 0",
    ),
    ("no weight slots", put("decisions.weight_slots", 0), "decisions.weight_slots", "need a slot"),
    ("no cache slots", put("decisions.cache_slots", 0), "decisions.cache_slots", "greater than or equal to 1"),
    ("no mini-batches", put("decisions.waves.0.mini_batches", []), "decisions.waves.0.mini_batches", "at least 1"),
    ("no waves", put("decisions.waves", []), "decisions.waves", "at least 1"),
    ("other slots", put("decisions.cache_slots", 7), "memory.gpu", "does not follow"),
    ("budget edited", put("memory.gpu.planned_bytes", 1), "memory.gpu", "does not follow"),
    ("budget gone", drop("memory.host"), "memory.host", "does not follow"),
    ("line edited", put("memory.host.lines.0.bytes", 1), "memory.host", "does not follow"),
    ("policy unknown", put("policy", "kvonly"), "policy", "Did you mean 'kv-only' or 'act-only'? Plan again"),
    ("policy edited", put("policy", "act-only"), "policy", "policy 'act-only' has no 'kv@"),
    ("hardware renamed", put("made_for.hardware", "mine"), "made_for.hardware", "planned for mine"),
    ("model renamed", put("made_for.model", "mine"), "made_for.model", "planned for mine"),
    ("total edited", put("prediction.total_s", 1.0), "prediction.total_s", "1 is not prefill_s + decode_s"),
    ("prefill edited", put("prediction.prefill_s", 1.0), "prediction.total_s", "is not prefill_s + decode_s"),
    ("rate edited", put("prediction.throughput_tokens_per_s", 9.0), "throughput_tokens_per_s", "tokens over total_s"),
    ("step edited", put("prediction.decode_step_s", 1.0), "prediction.decode_step_s", "over 19 steps"),
    ("share edited", put("prediction.act_share", 0.123), "prediction.act_share", "is not the share of the decisions"),
    ("binding edited", put("prediction.binding", OTHER[BINDING]), "prediction.binding", BINDING),
    ("no streams", put("prediction.streams", {}), "prediction.streams", "h2d, compute, d2h, not none"),
    ("a stream gone", drop("prediction.streams.d2h"), "prediction.streams", "not compute, h2d"),
    ("a stream endless", put("prediction.streams.d2h.bytes_per_s", float("inf")), "d2h.bytes_per_s", "finite"),
    ("bound edited", put("bound_total_s", 1e-9), "gap", "is not 1 - bound_total_s / total_s"),
    ("gap edited", put("gap", 0.5), "gap", "0.5 is not 1 - bound_total_s / total_s"),
    ("objective edited", put("objective_total_s", 1e3), "objective_total_s", "is not what `why` says"),
    ("a step gone", drop("what_if.2"), "what_if", "+1 GB/s of link"),
    ("a step renamed", put("what_if.0.change", "+2 GB/s of link"), "what_if", "not +2 GB/s of link"),
    ("more than the share", put("what_if.1.tokens_per_s", 1e6), "what_if.1", "more than that share"),
    ("worth of what does not bind", put("what_if.3.at_first_tokens_per_s", 1.0), "what_if.3", "does not bind"),
    ("worth negative", put("what_if.2.tokens_per_s", -1.0), "what_if.2.tokens_per_s", "greater than or equal to 0"),
    ("how unknown", put("what_if.2.how", "guessed"), "what_if.2.how", "duals"),
    ("beyond the budget", beyond_the_budget, "memory.gpu.planned_bytes", "the decisions take"),
]


@pytest.mark.parametrize(("mutate", "key", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_one_mistake_is_named(tmp_path: Path, mutate: Callable[[Data], None], key: str, says: str) -> None:
    data = copy.deepcopy(GOOD)
    mutate(data)
    path = tmp_path / "plan.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert str(path) in caught.value.where
    assert key in caught.value.where
    assert says in str(caught.value)
    assert caught.value.cure, "how to mend it"
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_plan_is_refused(tmp_path: Path, share: float) -> None:
    text = PLAN.to_yaml()
    path = tmp_path / "plan.yaml"
    path.write_text(text[: int(len(text) * share)], encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert str(path) in caught.value.where
