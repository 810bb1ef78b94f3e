"""Epochs: they cut the decode steps into stretches, and their demand is the mean of the step shapes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import batch_of
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.epochs import MAX_EPOCHS, demand_of, make_epochs
from planner.forms import blocks_for

LENGTHS = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 60)), min_size=1, max_size=8)
LONG = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 1200)), min_size=1, max_size=4)
EXAMPLES = settings(deadline=None, max_examples=100)


@given(st.one_of(LENGTHS, LONG))
@EXAMPLES
def test_epochs_partition_the_steps(lengths: list[tuple[int, int]]) -> None:
    epochs = make_epochs(lengths)
    steps = [step for epoch in epochs for step in range(epoch.first, epoch.last + 1)]
    assert steps == list(range(1, max(gen for _, gen in lengths)))
    assert len(epochs) <= MAX_EPOCHS
    assert all(epoch.steps == epoch.last - epoch.first + 1 >= 1 for epoch in epochs)


@given(LENGTHS)
@EXAMPLES
def test_demand_is_the_mean_of_the_steps(lengths: list[tuple[int, int]]) -> None:
    epochs = make_epochs(lengths)
    demand, shapes = demand_of(lengths, epochs), batch_of(lengths).shapes
    for e, epoch in enumerate(epochs):
        span = slice(epoch.first - 1, epoch.last)
        assert demand.rows[e] == pytest.approx(shapes.rows[span].mean())
        assert demand.cached_tokens[e] == pytest.approx(shapes.cached_tokens[span].mean())
        assert demand.blocks[e] == pytest.approx(shapes.blocks[span].sum(axis=1).mean())
    assert demand.final_blocks == sum(blocks_for(prompt + gen - 1) for prompt, gen in lengths)
    assert demand.prompt_blocks == sum(blocks_for(prompt) for prompt, _ in lengths)


@given(LENGTHS)
@EXAMPLES
def test_begun_blocks_never_shrink(lengths: list[tuple[int, int]]) -> None:
    """What an ended request held stays counted, at its final size."""
    epochs = make_epochs(lengths)
    demand = demand_of(lengths, epochs)
    for e, epoch in enumerate(epochs):
        steps = range(epoch.first, epoch.last + 1)
        begun = [blocks_for(prompt + min(step, gen) - 1) for step in steps for prompt, gen in lengths]
        assert demand.begun_blocks[e] == pytest.approx(sum(begun) / epoch.steps)
    assert (np.diff(demand.begun_blocks) >= -1e-9).all()
    assert (demand.begun_blocks <= demand.final_blocks + 1e-9).all()


@given(st.integers(1, 80), st.integers(2, 60), st.integers(1, 9))
@EXAMPLES
def test_equal_requests_have_one_number_of_blocks_per_epoch(prompt: int, gen: int, count: int) -> None:
    """So that for them the averages of the solver are exact."""
    shapes = batch_of([(prompt, gen)] * count).shapes
    for epoch in make_epochs([(prompt, gen)] * count):
        assert len(set(shapes.blocks[epoch.first - 1 : epoch.last].sum(axis=1).tolist())) == 1


def test_one_token_needs_no_decode() -> None:
    assert make_epochs([(5, 1), (900, 1)]) == []
    assert demand_of([(5, 1), (17, 1)], []).final_blocks == 3


def test_scaled_demand_is_that_many_requests() -> None:
    epochs = make_epochs([(20, 9)])
    tripled, three = demand_of([(20, 9)], epochs).scaled(3), demand_of([(20, 9)] * 3, epochs)
    for name in ("rows", "cached_tokens", "blocks", "begun_blocks", "final_blocks", "prompt_blocks"):
        np.testing.assert_allclose(getattr(tripled, name), getattr(three, name))
