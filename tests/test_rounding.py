"""Rounding: every block gets a form, the targets are met within a block, and GPU limits hold."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.epochs import Epoch, demand_of, make_epochs
from planner.forms import ACT_GPU, ACT_HOST, FORMS, KV_GPU, KV_HOST, CacheForm, blocks_for
from planner.placement import FORM_INDEX, MiniBatch
from planner.rounding import STICK, Targets, place_blocks
from planner.workload import Request

EXAMPLES = settings(deadline=None, max_examples=80)
LENGTHS = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 60)), min_size=1, max_size=6)
SHARES = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def requests_of(lengths: list[tuple[int, int]]) -> list[Request]:
    return [Request(str(i), prompt, gen) for i, (prompt, gen) in enumerate(lengths)]


def targets_of(lengths: list[tuple[int, int]], epochs: list[Epoch], shares: list[list[float]]) -> Targets:
    """Targets that a solver could set: each epoch's new blocks split by that epoch's shares, nothing converted."""
    begun = demand_of(lengths, epochs).begun_blocks
    held = dict.fromkeys(FORMS, 0.0)
    targets: Targets = {}
    for e in range(len(epochs)):
        new = begun[e] - (begun[e - 1] if e else 0.0)
        weights = [w + 1e-9 for w in shares[e % len(shares)]]
        for form, weight in zip(FORMS, weights, strict=True):
            held[form] += new * weight / sum(weights)
            targets[form, e] = held[form]
    return targets


def blocks_by_request(batch: MiniBatch) -> dict[int, tuple[CacheForm, ...]]:
    return {r: group.blocks for group in batch.groups for r in group.requests}


@given(LENGTHS, st.lists(SHARES, min_size=1, max_size=4), st.lists(st.integers(0, 40), min_size=2, max_size=2))
@EXAMPLES
def test_every_request_gets_its_blocks_and_gpu_limits_hold(
    lengths: list[tuple[int, int]], shares: list[list[float]], limits: list[int]
) -> None:
    requests, epochs = requests_of(lengths), make_epochs(lengths)
    targets = targets_of(lengths, epochs, shares) or {(form, 0): 1.0 for form in FORMS}
    members = list(range(len(lengths)))
    batch = place_blocks(members, requests, epochs, targets, {ACT_GPU: limits[0], KV_GPU: limits[1]})
    assert sorted(batch.requests) == members
    found = blocks_by_request(batch)
    for r, (prompt, gen) in enumerate(lengths):
        assert len(found[r]) == blocks_for(prompt + gen - 1)
    for group in batch.groups:
        assert all((group.prompt_len, group.gen_len) == lengths[r] for r in group.requests)
    assert batch.blocks(ACT_GPU) <= limits[0]
    assert batch.blocks(KV_GPU) <= limits[1]


@given(
    st.integers(1, 80), st.integers(2, 60), st.integers(1, 8),
    st.sampled_from([(ACT_HOST, KV_HOST), (ACT_GPU, KV_HOST), FORMS]), st.lists(SHARES, min_size=1, max_size=4),
)  # fmt: skip
@EXAMPLES
def test_equal_requests_meet_their_targets_within_a_wave(
    prompt: int, gen: int, count: int, forms: tuple[CacheForm, ...], shares: list[list[float]]
) -> None:
    lengths = [(prompt, gen)] * count
    epochs = make_epochs(lengths)
    masked = [[w if form in forms else 0.0 for form, w in zip(FORMS, row, strict=True)] for row in shares]
    targets = targets_of(lengths, epochs, masked)
    roomy = {ACT_GPU: 10**6, KV_GPU: 10**6}
    shapes = place_blocks(range(count), requests_of(lengths), epochs, targets, roomy).shapes
    for e, epoch in enumerate(epochs):
        for step in range(epoch.first, epoch.last + 1):
            for form in FORMS:
                held = int(shapes.blocks[step - 1, FORM_INDEX[form.name]])
                # A wave of alike requests stays in its form while that is within STICK of all blocks.
                total = sum(targets[f, e] for f in FORMS)
                assert abs(held - targets[form, e]) <= 2 * count + STICK * total, (form.name, step)


@pytest.mark.parametrize("form", FORMS)
def test_one_form_stays_one_form(form: CacheForm) -> None:
    """Rounding must not send to the host what the solver put on the GPU, nor turn one content into the other."""
    lengths = [(33, 20), (33, 20), (5, 40), (70, 1)]
    epochs = make_epochs(lengths)
    begun = demand_of(lengths, epochs).begun_blocks
    final = sum(blocks_for(prompt + gen - 1) for prompt, gen in lengths)
    targets = {(f, e): float(begun[e]) if f == form else 0.0 for f in FORMS for e in range(len(epochs))}
    limits = {f: final if f == form else 0 for f in (ACT_GPU, KV_GPU)}
    batch = place_blocks(range(4), requests_of(lengths), epochs, targets, limits)
    assert {f for group in batch.groups for f in group.blocks} == {form}


def test_requests_are_dealt_whole() -> None:
    """A quarter of ACT is one request in four, so that each is attended in one call."""
    lengths = [(64, 2)] * 8
    epochs = make_epochs(lengths)
    # 4 blocks each in step 1: 8 of all 32 are ACT
    targets: Targets = {(ACT_HOST, 0): 8.0, (KV_HOST, 0): 24.0}
    batch = place_blocks(range(8), requests_of(lengths), epochs, targets, {})
    prompts = Counter(blocks[:4] for blocks in blocks_by_request(batch).values())
    assert prompts == {(ACT_HOST,) * 4: 2, (KV_HOST,) * 4: 6}


def test_only_what_is_left_over_is_cut() -> None:
    """Nine of 32 blocks: two whole requests, and one block of a third."""
    lengths = [(64, 2)] * 8
    targets: Targets = {(ACT_HOST, 0): 9.0, (KV_HOST, 0): 23.0}
    batch = place_blocks(range(8), requests_of(lengths), make_epochs(lengths), targets, {})
    counts = [blocks[:4].count(ACT_HOST) for blocks in blocks_by_request(batch).values()]
    assert sorted(counts) == [0, 0, 0, 0, 0, 1, 4, 4]


def test_alike_requests_share_a_group() -> None:
    lengths = [(32, 5)] * 6
    targets: Targets = {(KV_HOST, 0): 12.0}
    batch = place_blocks(range(6), requests_of(lengths), make_epochs(lengths), targets, {})
    assert len(batch.groups) == 1
