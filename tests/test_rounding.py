"""Rounding: every block gets a form, the targets are met within a block, and GPU limits hold."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.epochs import Classes, Epoch, demands_of, lifetime_of, make_epochs
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
    """Targets that a solver could set for each lifetime: each epoch's new blocks split by that epoch's shares."""
    targets: Targets = {}
    for life, demand in enumerate(demands_of(Classes.of(lengths), epochs)):
        held, before = dict.fromkeys(FORMS, 0.0), 0.0
        for e, begun in enumerate([*demand.begun_blocks, demand.final_blocks]):
            weights = [w + 1e-12 for w in shares[e % len(shares)]]
            for form, weight in zip(FORMS, weights, strict=True):
                held[form] += (begun - before) * weight / sum(weights)
                targets[life, form, e] = held[form]
            before = begun
    return targets


def blocks_by_request(batch: MiniBatch) -> dict[int, tuple[CacheForm, ...]]:
    return {r: group.blocks for group in batch.groups for r in group.requests}


@given(
    LENGTHS, st.lists(SHARES, min_size=1, max_size=4), st.lists(st.integers(0, 40), min_size=2, max_size=2),
    st.booleans(),
)  # fmt: skip
@EXAMPLES
def test_every_request_gets_its_blocks_and_gpu_limits_hold(
    lengths: list[tuple[int, int]], shares: list[list[float]], limits: list[int], whole: bool
) -> None:
    requests, epochs = requests_of(lengths), make_epochs(lengths)
    targets = targets_of(lengths, epochs, shares)
    members = list(range(len(lengths)))
    batch = place_blocks(members, requests, epochs, targets, {ACT_GPU: limits[0], KV_GPU: limits[1]}, whole)
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
    st.booleans(),
)  # fmt: skip
@EXAMPLES
def test_equal_requests_meet_their_targets_within_a_wave(
    prompt: int, gen: int, count: int, forms: tuple[CacheForm, ...], shares: list[list[float]], whole: bool
) -> None:
    lengths = [(prompt, gen)] * count
    epochs = make_epochs(lengths)
    masked = [[w if form in forms else 0.0 for form, w in zip(FORMS, row, strict=True)] for row in shares]
    targets = targets_of(lengths, epochs, masked)
    roomy = {ACT_GPU: 10**6, KV_GPU: 10**6}
    shapes = place_blocks(range(count), requests_of(lengths), epochs, targets, roomy, whole).shapes
    life = lifetime_of(gen, epochs)
    for e, epoch in enumerate(epochs):
        for step in range(epoch.first, epoch.last + 1):
            for form in FORMS:
                held = int(shapes.blocks[step - 1, FORM_INDEX[form.name]])
                # A wave of alike requests stays in its form while that is within STICK of all blocks.
                total = sum(targets[life, f, e] for f in FORMS)
                assert abs(held - targets[life, form, e]) <= 2 * count + STICK * total, (form.name, step)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_one_form_stays_one_form(form: CacheForm, whole: bool) -> None:
    """Rounding must not send to the host what the solver put on the GPU, nor turn one content into the other."""
    lengths = [(33, 20), (33, 20), (5, 40), (70, 1)]
    epochs = make_epochs(lengths)
    final = sum(blocks_for(prompt + gen - 1) for prompt, gen in lengths)
    targets = targets_of(lengths, epochs, [[1.0 if f == form else 0.0 for f in FORMS]])
    limits = {f: final if f == form else 0 for f in (ACT_GPU, KV_GPU)}
    batch = place_blocks(range(4), requests_of(lengths), epochs, targets, limits, whole)
    assert {f for group in batch.groups for f in group.blocks} == {form}


def test_requests_are_dealt_whole() -> None:
    """A quarter of ACT is one request in four, so that each is attended in one call."""
    lengths = [(64, 2)] * 8
    epochs = make_epochs(lengths)
    # 4 blocks each in step 1: 8 of all 32 are ACT
    targets: Targets = {(1, ACT_HOST, 0): 8.0, (1, KV_HOST, 0): 24.0}
    batch = place_blocks(range(8), requests_of(lengths), epochs, targets, {}, whole=True)
    prompts = Counter(blocks[:4] for blocks in blocks_by_request(batch).values())
    assert prompts == {(ACT_HOST,) * 4: 2, (KV_HOST,) * 4: 6}


def test_only_what_is_left_over_is_cut() -> None:
    """Nine of 32 blocks: two whole requests, and one block of a third."""
    lengths = [(64, 2)] * 8
    targets: Targets = {(1, ACT_HOST, 0): 9.0, (1, KV_HOST, 0): 23.0}
    batch = place_blocks(range(8), requests_of(lengths), make_epochs(lengths), targets, {}, whole=True)
    counts = [blocks[:4].count(ACT_HOST) for blocks in blocks_by_request(batch).values()]
    assert sorted(counts) == [0, 0, 0, 0, 0, 1, 4, 4]


def test_alike_requests_share_a_group() -> None:
    lengths = [(32, 5)] * 6
    targets: Targets = {(1, KV_HOST, 0): 12.0}
    batch = place_blocks(range(6), requests_of(lengths), make_epochs(lengths), targets, {}, whole=True)
    assert len(batch.groups) == 1


def test_every_lifetime_holds_its_own_mix() -> None:
    """Short-lived requests as activations, long-lived ones as K and V, though half of all blocks are either."""
    lengths = [(64, 3), (64, 40)] * 4
    epochs = make_epochs(lengths)
    long = lifetime_of(40, epochs)
    targets: Targets = {(lifetime_of(3, epochs), ACT_HOST, 0): 1.0, (long, KV_HOST, 0): 1.0, (long, KV_HOST, 1): 1.0}
    batch = place_blocks(range(8), requests_of(lengths), epochs, targets, {}, whole=False)
    assert {(group.gen_len, form) for group in batch.groups for form in group.blocks} == {(3, ACT_HOST), (40, KV_HOST)}


def test_a_mix_is_spread_over_the_requests() -> None:
    """Where one call takes requests of all lengths, each holds the shares, so that the mix lasts as they end."""
    lengths = [(64, 2)] * 8
    targets: Targets = {(1, ACT_HOST, 0): 8.0, (1, KV_HOST, 0): 24.0}
    batch = place_blocks(range(8), requests_of(lengths), make_epochs(lengths), targets, {}, whole=False)
    assert {blocks[:4].count(ACT_HOST) for blocks in blocks_by_request(batch).values()} == {1}


def test_blocks_go_on_between_targets_as_from_one_to_the_next() -> None:
    """All prompts K and V, all that follows activations: the means of the epochs say neither, their slope does."""
    lengths = [(16 + i, 65) for i in range(16)] * 2
    epochs = make_epochs(lengths)
    life = lifetime_of(65, epochs)
    demand = demands_of(Classes.of(lengths), epochs)[life]
    prompts = demand.prompt_blocks
    held = [*demand.begun_blocks, demand.final_blocks]
    targets: Targets = {(life, KV_HOST, e): prompts for e in range(len(held))}
    targets |= {(life, ACT_HOST, e): float(blocks - prompts) for e, blocks in enumerate(held)}
    batch = place_blocks(range(len(lengths)), requests_of(lengths), epochs, targets, {}, whole=False)
    assert abs(batch.blocks(KV_HOST) - prompts) <= 0.05 * prompts
