"""Parts of layers: how many stay on the GPU, where they end, and how evenly the others cross the link."""

from __future__ import annotations

from itertools import accumulate
from math import prod

import numpy as np
import pytest
from helpers import WHOLE, decisions_of, ideal_hardware, small_model, uniform_batches, wide_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from planner.costs import CostModel
from planner.decisions import kept_layers, spread_parts
from planner.forms import KV_HOST
from planner.memory import gpu_lines, host_lines, resident_layers
from planner.model import known_models, load_model
from planner.simulator import simulate
from planner.taut_string import taut_string
from planner.weight_units import WeightUnits
from runtime.layers.base import layers_for

MODEL = wide_model(9)


@pytest.mark.parametrize("name", known_models())
def test_parts_end_where_tensors_end(name: str) -> None:
    model = load_model(name)
    ends = set(accumulate(prod(shape) * model.element_bytes for shape in layers_for(model).layer_shapes().values()))
    assert set(model.prefix_bytes[1:]) <= ends
    assert model.prefix_bytes[0] == 0 and model.prefix_bytes[-1] == model.layer_bytes
    assert list(model.prefix_bytes) == sorted(model.prefix_bytes)


@given(st.floats(0, 9))
@settings(deadline=None)
def test_parts_are_spread_and_no_more_than_asked_for(layers: float) -> None:
    parts = spread_parts(MODEL, layers)
    kept = kept_layers(MODEL, parts)
    largest = float(np.diff(MODEL.prefix_bytes).max()) / MODEL.layer_bytes
    assert layers - largest - 1e-6 <= kept <= layers * (1 + 1e-6)
    assert parts == () or (len(parts) == MODEL.layers and max(parts) - min(parts) <= 1)
    assert parts == () or parts[0] == min(parts)  # the layer that a job begins with is the one that slots are made for


def test_the_budget_counts_parts_and_the_slots_that_they_leave() -> None:
    decisions = decisions_of(uniform_batches([1], 20, 4, KV_HOST), spread_parts(MODEL, 4.0))
    assert set(decisions.resident_parts) == {1, 2}
    gpu = {line.name: line.nbytes for line in gpu_lines(MODEL, decisions)}
    host = {line.name: line.nbytes for line in host_lines(MODEL, decisions)}
    assert gpu["resident weights"] + host["streamed weights"] == MODEL.layers * MODEL.layer_bytes
    assert gpu["resident weights"] == pytest.approx(resident_layers(MODEL, decisions) * MODEL.layer_bytes)
    assert gpu["weight slots"] == 2 * (MODEL.layer_bytes - MODEL.prefix_bytes[1])


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1.5)), min_size=3, max_size=9), st.floats(0, 1), st.floats(0, 1)
)
@settings(deadline=None, max_examples=60)
def test_no_path_between_the_stairs_is_shorter(steps: list[tuple[float, float]], begin: float, end: float) -> None:
    low = np.cumsum([rise for rise, _ in steps])
    high = low + [room for _, room in steps]
    ends = low[0] + begin * (high[0] - low[0]), low[-1] + end * (high[-1] - low[-1])
    found = np.array(taut_string(*ends, list(low), list(high)))
    assert np.all(found[1:-1] >= low[1:-1] - 1e-9) and np.all(found[1:-1] <= high[1:-1] + 1e-9)

    def length(inner: np.ndarray) -> float:
        return float(np.sqrt(1 + np.diff([ends[0], *inner, ends[1]]) ** 2).sum())

    best = minimize(length, (low + high)[1:-1] / 2, bounds=list(zip(low[1:-1], high[1:-1], strict=True)))
    assert length(found[1:-1]) <= best.fun + 1e-6


@pytest.mark.parametrize("layers", [0.0, 2.2, 4.0, 6.5])
def test_every_unit_has_a_slot_before_it_is_due(layers: float) -> None:
    decisions = decisions_of(uniform_batches([1], 20, 4, KV_HOST), spread_parts(MODEL, layers))
    units = WeightUnits(MODEL, decisions)
    assert units.ends[-1] == sum(line.nbytes for line in host_lines(MODEL, decisions) if "weights" in line.name)
    for layer in range(2 * MODEL.layers):
        assert units.due(layer) <= units.room(layer)
        assert units.room(layer) <= units.room(layer + 1)


@pytest.mark.parametrize("layers", [2.0, 3.4, 5.0])
def test_link_and_compute_that_balance_are_both_busy(layers: float) -> None:
    """Whole layers that are resident here and there would leave the link idle beside them."""
    parts = spread_parts(MODEL, layers)
    batches = uniform_batches([8, 8], 1600, 65, KV_HOST)
    for h2d in (2e9, 5e9, 1.2e10):
        costs = CostModel(ideal_hardware(gemm_flops=1e12, h2d_bytes_per_s=h2d), MODEL)
        use = simulate(costs, decisions_of(batches, parts)).use("decode")
        assert max(use["h2d"].busy_fraction, use["compute"].busy_fraction) > 0.97


def test_all_parts_of_all_layers_are_all_layers() -> None:
    assert spread_parts(MODEL, 9.0) == (WHOLE,) * 9
    assert spread_parts(small_model(), 0.0) == ()
