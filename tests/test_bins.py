"""The relaxation's bin is no dearer than the bins of mini-batches that there are."""

from __future__ import annotations

import numpy as np
from helpers import ragged, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.bins import MAX_BINS, Attention, AverageBin, exact_bins
from planner.composition import compose
from planner.costs import CostModel
from planner.epochs import Classes, make_epochs
from planner.forms import blocks_for
from planner.hardware import load_hardware
from planner.model import load_model

LENGTHS = st.lists(st.tuples(st.integers(1, 300), st.integers(2, 60)), min_size=1, max_size=12)
CARD = load_hardware("rtx4090-pcie4")
COSTS = CostModel(CARD, small_model())
EQUAL_ONLY = CostModel(CARD.model_copy(update={"gpu": CARD.gpu.model_copy(update={"device": "cpu"})}), small_model())
NEARLY = 1 + 1e-9


@given(LENGTHS, st.sampled_from([COSTS, EQUAL_ONLY]), st.data())
@settings(deadline=None, max_examples=80)
def test_no_composition_computes_less(lengths: list[tuple[int, int]], costs: CostModel, data: st.DataObject) -> None:
    epochs, requests = make_epochs(lengths), ragged(lengths).requests
    count = data.draw(st.integers(1, len(lengths)))
    low, high = data.draw(st.integers(1, count)), data.draw(st.integers(count, len(lengths)))
    bound = AverageBin(costs, Classes.of(lengths), epochs).at(low, high)
    sizes = [blocks_for(r.positions) for r in requests]
    batches = compose(sizes, count)
    bins, indices = exact_bins(costs, requests, epochs, batches)
    assert sorted(i for some in indices for i in some) == list(range(count))
    assert len(bins) <= MAX_BINS and sum(part.count for part in bins) == count
    assert (bound.compute_s <= NEARLY * np.sum([part.compute_s for part in bins], axis=0)).all()
    assert all(bound.rebuild_s_per_block <= NEARLY * part.rebuild_s_per_block for part in bins)
    assert bound.slot_share <= NEARLY * sum(part.largest for part in bins) / bound.demand.final_blocks
    blocks = np.sum([part.demand.blocks for part in bins], axis=0)
    assert np.allclose(blocks, bound.demand.blocks)


def test_few_rebuilt_blocks_cost_what_some_do() -> None:
    """The floors meet what the cost model says for as many blocks as they were drawn through, and nearly so between."""
    for name, within in (("t4", 0.1), ("a100-40gb", 0.2)):
        costs = CostModel(load_hardware(name), load_model("opt-13b"))
        epochs, requests = make_epochs([(800, 40)] * 4), ragged([(800, 40)] * 4).requests
        (one,), _ = exact_bins(costs, requests, epochs, [[0, 1], [2, 3]])
        blocks = one.demand.final_blocks / 2
        layers = costs.model.layers
        lines = [(0.0, one.rebuild_s_per_block), *one.rebuild_floors]
        for n in (4, 8, 12, 24, int(blocks)):
            said = max(fixed + slope * 2 * n for fixed, slope in lines)
            true = 2 * layers * costs.rebuild(n).seconds
            assert (1 - within) * true <= said <= (1 + within) * true, (name, n)


def test_requests_of_other_lengths_are_attended_in_calls_of_their_own() -> None:
    """Three classes in one mini-batch: two further calls in each step; one has ended after the first epoch."""
    lengths = [(16, 40), (32, 40), (32, 40), (16, 5)]
    epochs = make_epochs(lengths)
    attention = Attention(EQUAL_ONLY, Classes.of(lengths), epochs)
    achieved = COSTS.hardware.gpu.achieved
    each = achieved.attention_group_s.value + achieved.attention_call_s.value
    alive = [2 + max(min(epoch.last, 4) - epoch.first + 1, 0) / epoch.steps for epoch in epochs]
    assert np.allclose(attention.further_s(1), [each * (classes - 1) for classes in alive])
    assert np.allclose(attention.further_s(2), [each * (classes - 2) for classes in alive])
    assert not attention.further_s(3).any()
    assert not Attention(COSTS, Classes.of(lengths), epochs).further_s(1).any()
