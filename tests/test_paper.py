"""The paper's evaluation: the record is what the code computes and what the page says, and the parts make the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from helpers import ideal_hardware, wide_model

from benchmarks import paper_docs, quotes
from benchmarks.paper_flexgen import best_setting, without_barriers
from benchmarks.paper_points import (
    BATCH,
    FREE,
    GEN_LEN,
    MODELS,
    PEERS_OF_POINT,
    PROMPTS,
    TOGETHER,
    losses,
    predicted,
    speed,
    stage_speeds,
    tasks,
)
from planner.costs import CostModel
from planner.hardware import load_hardware
from planner.model import load_model
from planner.peers.flexgen import FlexGen, Setting
from planner.peers.job import Job

RECORD: dict[str, Any] = paper_docs.load(paper_docs.RECORD) or {"points": []}
POINTS: list[dict[str, Any]] = RECORD["points"]
AGAIN = "run: python -m benchmarks.paper --write"
recorded = pytest.mark.skipif(not POINTS, reason="python -m benchmarks.paper --write has not been run yet")
"""Of tests of the committed record."""


@recorded
def test_the_record_is_of_the_paper_s_grid_and_of_this_profile() -> None:
    assert [(p["model"], p["prompt_len"]) for p in POINTS] == [(m, n) for m in MODELS for n in PROMPTS]
    assert len(MODELS) == 4 and (BATCH, GEN_LEN) == (RECORD["requests"], RECORD["gen_len"]) == (128, 128)
    assert all(set(p["policies"]) == {*TOGETHER, *FREE} for p in POINTS)
    assert RECORD["hardware_hash"] == load_hardware(RECORD["hardware"]).content_hash, AGAIN
    assert len(set(tasks())) == len(tasks()) == 7 * len(POINTS)


@recorded
@pytest.mark.parametrize(("model", "prompt", "what"), [("opt-66b", 128, PEERS_OF_POINT), ("opt-66b", 1920, "act-only")])
def test_the_record_is_what_the_code_computes(model: str, prompt: int, what: str) -> None:
    point = next(p for p in POINTS if (p["model"], p["prompt_len"]) == (model, prompt))
    kept = {**point["policies"], **point}
    for name, figures in predicted(model, prompt, what).items():
        assert same(figures, kept[name] if name != "stages" else {k: kept["stages"][k] for k in figures}), AGAIN


def same(left: Any, right: Any) -> bool:
    """Equal to what another machine's arithmetic leaves of six digits."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return math.isclose(left, right, rel_tol=1e-5) if isinstance(left, float) else bool(left == right)


@recorded
def test_hybrid_is_never_slower_when_all_run_together() -> None:
    slower = [(p["model"], p["prompt_len"], policy) for p in POINTS for policy, ours in losses(p) if ours == "hybrid"]
    assert not slower


@recorded
def test_hybrid_is_never_slower_when_the_batch_may_be_cut() -> None:
    assert not [p for p in POINTS for _, ours in losses(p) if ours == FREE[1]]


@recorded
def test_the_stages_lead_from_flexgen_to_hybrid() -> None:
    for point in POINTS:
        speeds = stage_speeds(point)
        assert speeds[0] == speed(point, "flexgen") and speeds[-1] == speed(point, "hybrid")
        factors = [b / a for a, b in pairwise(speeds)]
        assert math.prod(factors) == pytest.approx(speed(point, "hybrid") / speed(point, "flexgen"))
        assert factors[0] >= 1  # the relay only ever delays


@recorded
def test_a_faster_relay_is_never_slower() -> None:
    for point in POINTS:
        rates, speeds = zip(*point["relays"], strict=True)
        assert list(rates) == sorted(rates) and list(speeds) == sorted(speeds)
        assert speeds[-1] <= point["stages"]["pinned"] * (1 + 1e-9)


def test_the_page_and_the_sentences_are_those_of_the_records() -> None:
    assert paper_docs.document() == paper_docs.DOCUMENT.read_text(), "run: python -m benchmarks.paper --docs"
    readme = paper_docs.README.read_text()
    assert paper_docs.with_gain(readme) == readme, "run: python -m benchmarks.paper --docs"
    assert not POINTS or paper_docs.PICTURE.stat().st_size > 10_000
    assert [quote for quote in quotes.quotes() if not quote.holds] == []


def test_a_stale_sentence_is_found() -> None:
    one = next(quotes.quotes())
    assert one.holds and not one._replace(words=f"{one.words} or so").holds


@recorded
def test_the_gain_is_the_mean_over_the_points_and_its_published_value_is_named() -> None:
    gains = paper_docs.gains(POINTS, "flexgen")
    assert f"{sum(gains) / len(gains):.2f} times FlexGen" in paper_docs.gain_text(RECORD)
    assert "2.19" in paper_docs.gain_text(RECORD)
    points = [{**p, "relays": [[5e9, speed(p, "hybrid") / 3], [1e10, speed(p, "hybrid") / 2]]} for p in POINTS]
    assert "between 5 and 10 GB/s" in paper_docs._why({**RECORD, "points": points})


# ---- FlexGen without barriers ----------------------------------------------------------------------

IDEAL = CostModel(ideal_hardware(), wide_model(3))
JOB = Job(64, 512, 16)


@pytest.mark.parametrize("setting", [Setting(16, 4, relay=False), Setting(64, 1, 0.25, 0.5, relay=False)])
@pytest.mark.parametrize("pieces", [False, True])
def test_without_barriers_time_lies_between_the_busiest_stream_and_the_sum_of_maxima(
    setting: Setting, pieces: bool
) -> None:
    one = FlexGen(IDEAL, setting)
    barred, free = one.phases(JOB), without_barriers(one, JOB, pieces)
    assert barred.busy is not None
    assert free.decode_step_s <= barred.decode_step_s * (1 + 1e-9)
    assert free.decode_step_s >= max(barred.busy.link_s, barred.busy.compute_s) * (1 - 1e-6)
    assert free.prefill_s <= barred.prefill_s * (1 + 1e-9)


def test_pieces_of_one_batch_are_the_whole() -> None:
    one = FlexGen(IDEAL, Setting(64, 1, relay=False))
    assert without_barriers(one, JOB, True).decode_step_s == pytest.approx(
        without_barriers(one, JOB, False).decode_step_s, rel=1e-6
    )


def test_pinned_memory_is_chosen_for_anew() -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-30b"))
    job = Job(128, 512, 128)
    relayed, pinned = (best_setting(costs, job, relay) for relay in (True, False))
    assert relayed.relay and not pinned.relay
    again = FlexGen(costs, replace(relayed, relay=False)).tokens_per_s(job)
    assert FlexGen(costs, pinned).tokens_per_s(job) >= again
