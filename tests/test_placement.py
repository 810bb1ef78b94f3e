"""Step shapes against a slow walk over every token of every request."""

from __future__ import annotations

import numpy as np
from helpers import mini_batches, random_decisions, uniform_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.decisions import Decisions, chunk_prompts, spread_layers
from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, FORMS, KV_GPU, KV_HOST
from planner.placement import FORM_INDEX, MiniBatch, RequestGroup


def test_shapes_by_hand() -> None:
    """One request of 15 tokens, then 5 more: the 17th token opens the second block."""
    group = RequestGroup((0,), prompt_len=15, gen_len=5, blocks=(ACT_HOST, KV_GPU))
    shapes = MiniBatch((group,)).shapes
    assert shapes.rows.tolist() == [1, 1, 1, 1]
    assert shapes.cached_tokens.tolist() == [15, 16, 17, 18]
    act, kv = FORM_INDEX["act@host"], FORM_INDEX["kv@gpu"]
    assert shapes.blocks[:, [act, kv]].tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
    assert shapes.new_tokens[:, [act, kv]].tolist() == [[1, 0], [0, 1], [0, 1], [0, 1]]


def reference(batch: MiniBatch) -> tuple[np.ndarray, ...]:
    """Rows, cached tokens, blocks and new tokens of every step, token by token."""
    steps = batch.decode_steps
    rows, cached = np.zeros(steps, int), np.zeros(steps, int)
    blocks, new = np.zeros((steps, 4), int), np.zeros((steps, 4), int)
    for group in batch.groups:
        for _ in group.requests:
            for step in range(1, group.gen_len):
                positions = range(group.prompt_len + step - 1)
                rows[step - 1] += 1
                cached[step - 1] += len(positions)
                for block in {position // BLOCK_TOKENS for position in positions}:
                    blocks[step - 1, FORMS.index(group.blocks[block])] += 1
                written = group.blocks[len(positions) // BLOCK_TOKENS]
                new[step - 1, FORMS.index(written)] += 1
    return rows, cached, blocks, new


@given(mini_batches(max_batches=1))
@settings(deadline=None, max_examples=60)
def test_shapes_equal_the_reference(batches: tuple[MiniBatch, ...]) -> None:
    shapes = batches[0].shapes
    found = (shapes.rows, shapes.cached_tokens, shapes.blocks, shapes.new_tokens)
    for array, expected in zip(found, reference(batches[0]), strict=True):
        np.testing.assert_array_equal(array, expected)
    for forms in ((KV_HOST,), (ACT_HOST, ACT_GPU), FORMS):
        columns = [FORM_INDEX[form.name] for form in forms]
        assert shapes.peak_blocks(*forms) == max((int(row[columns].sum()) for row in shapes.blocks), default=0)


def test_blocks_counts_what_requests_end_up_with() -> None:
    batch = MiniBatch((RequestGroup((4, 7), 20, 20, (ACT_HOST, KV_HOST, KV_HOST)),))
    assert (batch.blocks(ACT_HOST), batch.blocks(KV_HOST), batch.blocks(KV_GPU)) == (2, 4, 0)
    assert (batch.requests, batch.decode_steps) == ((4, 7), 19)


# ---- chunks and layers ---------------------------------------------------------------------------


@given(mini_batches(), st.integers(1, 300), st.integers(1, 600))
@settings(deadline=None, max_examples=60)
def test_chunks_and_passes_keep_their_limits(batches: tuple[MiniBatch, ...], chunk: int, passed: int) -> None:
    prompts = {r: g.prompt_len for batch in batches for g in batch.groups for r in g.requests}
    passes = chunk_prompts(batches, prompts, chunk, passed)
    chunks = [c for chunks in passes for c in chunks]
    assert sorted(r for c in chunks for r in c.requests) == sorted(r for batch in batches for r in batch.requests)
    for c in chunks:
        places = [batches[c.mini_batch].requests.index(r) for r in c.requests]
        assert places == sorted(places)
        for group in batches[c.mini_batch].groups:  # the engine takes them as one slice
            mine = [group.requests.index(r) for r in c.requests if r in group.requests]
            assert mine == list(range(mine[0], mine[0] + len(mine))) if mine else True
        assert c.tokens == sum(prompts[r] for r in c.requests)
        assert set(c.requests) <= set(batches[c.mini_batch].requests)
        assert c.tokens <= chunk or len(c.requests) == 1
    for one in passes:
        assert sum(c.tokens for c in one) <= passed or len(one) == 1


def test_chunks_are_as_full_as_they_can_be() -> None:
    batches = tuple(uniform_batches([5, 2], 10, 2, KV_HOST))
    passes = chunk_prompts(batches, dict.fromkeys(range(7), 10), 30, 50)
    assert [[(c.mini_batch, c.requests) for c in chunks] for chunks in passes] == [
        [(0, (0, 1, 2))],
        [(0, (3, 4)), (1, (5, 6))],
    ]  # passes are level


def test_chunks_of_unlike_prompts_are_level() -> None:
    lengths = [985, 869, 283]
    batch = MiniBatch(tuple(RequestGroup((r,), n, 2, (KV_HOST,) * 99) for r, n in enumerate(lengths)))
    passes = chunk_prompts((batch,), dict(enumerate(lengths)), 2048, 4096)
    assert [c.requests for chunks in passes for c in chunks] == [(0,), (1, 2)]


def test_prompts_are_packed_where_their_order_would_make_more_chunks() -> None:
    lengths = [393, 1383, 579]
    batch = MiniBatch(tuple(RequestGroup((r,), n, 2, (KV_HOST,) * 99) for r, n in enumerate(lengths)))
    passes = chunk_prompts((batch,), dict(enumerate(lengths)), 1400, 4096)
    assert [c.requests for chunks in passes for c in chunks] == [(1,), (0, 2)]


@given(st.integers(1, 100), st.data())
@settings(deadline=None, max_examples=100)
def test_chosen_layers_are_spread(layers: int, data: st.DataObject) -> None:
    resident = data.draw(st.integers(0, layers))
    found = spread_layers(resident, layers)
    assert len(set(found)) == len(found) == resident
    assert all(0 <= layer < layers for layer in found)
    gaps = np.diff([-1, *found, layers]) - 1  # streamed layers between resident ones
    if 0 < resident < layers:
        assert gaps.max() <= -(-(layers - resident) // resident)


@given(random_decisions(layers=3))
@settings(deadline=None, max_examples=20)
def test_decisions_count_requests_and_steps(decisions: Decisions) -> None:
    groups = [g for batch in decisions.mini_batches for g in batch.groups]
    assert decisions.requests == sum(len(g.requests) for g in groups)
    assert decisions.decode_steps == max(g.gen_len for g in groups) - 1


@given(mini_batches())
@settings(deadline=None, max_examples=40)
def test_what_is_attended_adds_up(batches: tuple[MiniBatch, ...]) -> None:
    """Every active group once, all of its cached tokens, and no more segments than it has forms."""
    for batch, step in ((one, step) for one in batches for step in range(one.decode_steps)):
        active = [group for group in batch.groups if group.decode_steps > step]
        attended = batch.attended(step)
        assert [requests for requests, _ in attended] == [len(group.requests) for group in active]
        assert [sum(segments) for _, segments in attended] == [group.prompt_len + step for group in active]
        for group, (_, segments) in zip(active, attended, strict=True):
            assert 1 <= len(segments) <= len(set(group.blocks)) and min(segments) > 0
