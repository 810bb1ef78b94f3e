"""Costs: the formulas of the docs, and what must hold for any size."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from helpers import ideal_hardware, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.costs import CostModel, OpCost, extrapolations
from planner.errors import InputError
from planner.files import validate
from planner.forms import BLOCK_TOKENS
from planner.hardware import load_hardware
from planner.model import load_model

IDEAL = ideal_hardware()
SIZES = settings(deadline=None, max_examples=60)


def test_costs_add_up() -> None:
    a, b = OpCost(1.0, 2.0, 3.0), OpCost(0.5, 0.25, 4.0)
    assert a + b == OpCost(1.5, 2.25, 7.0)
    assert a + OpCost() == a


@pytest.mark.parametrize("name", ["opt-30b", "llama-2-7b", "llama-3-8b", "llama-2-70b", "qwen2.5-7b"])
def test_rebuilding_takes_4_d_d_kv(name: str) -> None:
    model = load_model(name)
    cost = CostModel(IDEAL, model).rebuild(7)
    tokens = 7 * BLOCK_TOKENS
    assert cost.flops == 4 * model.hidden * model.d_kv * tokens
    assert cost.memory_bytes == 2 * (
        model.hidden * 2 * model.d_kv + tokens * (model.hidden + 2 * model.d_kv)
        + 2 * bool(model.rope) * tokens * model.d_kv
    )  # fmt: skip  # W_K and W_V and the activations read, K and V written; keys turned in place


@pytest.mark.parametrize("name", ["opt-6.7b", "opt-13b", "opt-30b", "opt-66b"])
def test_rebuild_over_load_is_rho(name: str) -> None:
    """rho = d B / F for one K/V head per head, once the rows outweigh reading the weights."""
    model, costs = load_model(name), CostModel(IDEAL, load_model(name))
    blocks = 4096
    load = costs.h2d(blocks * BLOCK_TOKENS * model.kv_bytes_per_token_layer)
    assert costs.rebuild(blocks).seconds / load == pytest.approx(model.hidden * 25e9 / 165e12, rel=1e-9)


@pytest.mark.parametrize(("kv_heads", "gated"), [(4, False), (2, False), (1, True)])
def test_projections_count_every_matrix(kv_heads: int, gated: bool) -> None:
    model = small_model(kv_heads=kv_heads, gated=gated)
    d, d_kv, ffn = 256, kv_heads * 64, 1024
    matrices = d * (d + 2 * d_kv) + d * d + (3 if gated else 2) * d * ffn
    assert CostModel(IDEAL, model).projections(10).flops == 2 * 10 * matrices


def test_opt_forward_takes_24_d_squared_a_token() -> None:
    model = load_model("opt-13b")
    assert CostModel(IDEAL, model).projections(128).flops == 24 * model.hidden**2 * 128


@pytest.mark.parametrize("name", ["opt-6.7b", "llama-3-8b"])
def test_decode_attention_reads_k_and_v_once(name: str) -> None:
    model = load_model(name)
    cost = CostModel(IDEAL, model).decode_attention(10, 100.0)
    assert cost.memory_bytes == 1000 * model.kv_bytes_per_token_layer
    assert cost.seconds == pytest.approx(cost.memory_bytes / 1008e9)
    assert cost.flops == 4 * 1000 * model.hidden  # two products per head and token, grouped or not


def test_prefill_attention_counts_half_the_square() -> None:
    model = load_model("opt-6.7b")
    assert CostModel(IDEAL, model).prefill_attention(100).flops == pytest.approx(4 * 100 * 100 / 2 * model.hidden)


def _same(left: OpCost, right: OpCost) -> None:
    assert astuple(left) == pytest.approx(astuple(right), rel=1e-12)


def test_a_forward_is_its_parts() -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-13b"))
    achieved = costs.hardware.gpu.achieved
    overhead = OpCost(achieved.forward_overhead_s.value)
    row = costs.projections(64) + costs.elementwise(4 * 64 * costs.model.d_kv) + overhead
    # The new token is a part of its own: two parts of the output of each row.
    _same(costs.decode_forward(64, 6400), row + costs.decode_attention(64, 100.0) + costs.merge(2 * 64))
    two = costs.decode_segments(64, ((40, (30.0, 20.0)), (24, (90.0,))))
    attended = costs.decode_attention(40, 30.0) + costs.decode_attention(40, 20.0) + costs.decode_attention(24, 90.0)
    further = OpCost(2 * achieved.attention_call_s.value)  # one call takes requests of all lengths
    _same(two, row + attended + costs.merge(64 + 2 * 40 + 24) + further)


def test_merging_costs_the_bytes_of_its_parts() -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-13b"))
    nbytes = 10 * costs.model.hidden * 2
    assert costs.merge(10) == OpCost(nbytes / costs.hardware.gpu.achieved.merge_bytes_per_s.value, 0.0, nbytes)


def test_prompts_of_one_length_are_attended_in_one_call() -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-13b"))
    overhead = OpCost(costs.hardware.gpu.achieved.forward_overhead_s.value)
    row = costs.projections(40) + costs.elementwise(4 * 40 * costs.model.d_kv) + overhead
    _same(costs.prefill_forward((10, 20, 10)), row + costs.prefill_attention(10, 2) + costs.prefill_attention(20))
    assert costs.prefill_attention(10, 2).flops == 2 * costs.prefill_attention(10).flops


def test_embedding_is_a_gather() -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-13b"))
    achieved = costs.hardware.gpu.achieved
    nbytes = 4.0 * 7 * costs.model.hidden * 2
    seconds = nbytes / achieved.gather_bytes_per_s.value + achieved.op_overhead_s.value
    assert costs.embed(7).seconds == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("kind", ["embed", "prefill", "rebuild", "forward", "sample"])
def test_the_engine_slows_only_the_kernels_of_its_kind(kind: str) -> None:
    model = small_model()
    slow = CostModel(IDEAL.with_values(**{f"gpu.achieved.engine_slowdown.{kind}": 1.5}), model)
    base = CostModel(IDEAL, model)
    for name, one, other in (
        ("embed", slow.embed(64), base.embed(64)),
        ("sample", slow.sample(8), base.sample(8)),
        ("prefill", slow.prefill_forward((64,)), base.prefill_forward((64,))),
        ("rebuild", slow.rebuild(4), base.rebuild(4)),
        ("forward", slow.decode_forward(8, 800), base.decode_forward(8, 800)),
    ):
        assert one.seconds == pytest.approx(other.seconds * (1.5 if name == kind else 1.0))
        assert one.flops == other.flops


def test_heads_that_share_k_and_v_cost_extra_only_where_the_profile_says_so() -> None:
    model = small_model(kv_heads=1)
    dearer = CostModel(IDEAL.with_values(**{"gpu.achieved.attention_group_cost": 0.25}), model)
    base = CostModel(IDEAL, model)
    assert dearer.decode_attention(4, 100.0).seconds == pytest.approx(1.75 * base.decode_attention(4, 100.0).seconds)


def test_nothing_costs_nothing() -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-13b"))
    assert costs.rebuild(0) == costs.decode_attention(3, 0.0) == OpCost()
    assert costs.h2d(0) == costs.d2h(0) == 0.0


@given(rows=st.integers(1, 4000), more=st.integers(1, 500), tokens=st.integers(0, 10**6))
@SIZES
def test_more_rows_never_cost_less(rows: int, more: int, tokens: int) -> None:
    costs = CostModel(IDEAL, small_model())
    assert costs.decode_forward(rows + more, tokens).seconds >= costs.decode_forward(rows, tokens).seconds
    assert costs.rebuild(rows + more).seconds >= costs.rebuild(rows).seconds
    assert costs.embed(rows + more).seconds > costs.embed(rows).seconds
    assert costs.sample(rows + more).seconds >= costs.sample(rows).seconds
    assert costs.prefill_forward((rows + more,)).seconds > costs.prefill_forward((rows,)).seconds


@given(rows=st.integers(1, 500), tokens=st.integers(0, 10**6), more=st.integers(1, 10**5))
@SIZES
def test_more_tokens_cost_more(rows: int, tokens: int, more: int) -> None:
    costs = CostModel(IDEAL, small_model())
    assert costs.decode_forward(rows, tokens + more).seconds > costs.decode_forward(rows, tokens).seconds
    assert costs.h2d(tokens + more) > costs.h2d(tokens)
    assert costs.d2h(tokens + more) > costs.d2h(tokens)


def test_latency_and_overhead_are_charged_once_each() -> None:
    model = small_model()
    changes = {"link.latency_s": 0.5, "gpu.achieved.op_overhead_s": 0.25, "gpu.achieved.forward_overhead_s": 0.75}
    slow = IDEAL.with_values(**changes)
    ideal, costs = CostModel(IDEAL, model), CostModel(slow, model)
    for found, base, extra in (
        (costs.h2d(100), ideal.h2d(100), 0.5),
        (costs.d2h(100), ideal.d2h(100), 0.5),
        (costs.rebuild(3).seconds, ideal.rebuild(3).seconds, 0.25),
        (costs.decode_forward(3, 9).seconds, ideal.decode_forward(3, 9).seconds, 0.75),
        (costs.prefill_forward((3, 4)).seconds, ideal.prefill_forward((3, 4)).seconds, 0.75),
        (costs.embed(3).seconds, ideal.embed(3).seconds, 0.25),
        (costs.sample(3).seconds, ideal.sample(3).seconds, 0.25),
    ):
        assert found - base == pytest.approx(extra)


def test_a_dtype_without_a_rate_is_refused_before_anything_is_planned() -> None:
    with pytest.raises(InputError, match="float32"):
        CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-13b", "float32"))


def test_extrapolation_is_said_with_its_range() -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-13b"))
    assert extrapolations(costs, [64, 512], [2048, 16384]) == []
    notes = extrapolations(costs, [8, 16, 64], [100])
    assert notes == [
        "GEMM rate extrapolated at 8 to 16 (table 64 to 512): the end value is held",
        "decode attention rate extrapolated at 100 (table 2048 to 16384): the end value is held",
    ]


def test_narrow_products_take_longer_for_each_column() -> None:
    """Affine in columns: the measured time at the table's own, and the same input to read at any."""
    rates = {"gemm_columns": 896.0, "gemm_input_bytes_per_s": 8e9}
    plain = ideal_hardware(gemm_flops=1e12).gpu
    data = plain.model_dump(mode="json", exclude_none=True)
    for key, value in rates.items():
        data["achieved"][key] = {"value": value, "kind": "assumed", "source": "a guess"}
    gpu = type(plain).model_validate(data)
    at = {columns: gpu.gemm_time(512, 448, columns, "float16", 2) for columns in (224, 896, 1792)}
    assert at[896] == pytest.approx(plain.gemm_time(512, 448, 896, "float16", 2))
    fixed = min(512 * 448 * 2 / 8e9, at[896])
    assert at[224] == pytest.approx(fixed + (at[896] - fixed) / 4)
    assert at[1792] == pytest.approx(fixed + (at[896] - fixed) * 2)
    for columns, read in ((1e-300, 8e9), (1.0, 8e9), (896.0, 1e3), (9e17, 1e3)):
        wrong = {"gemm_columns": columns, "gemm_input_bytes_per_s": read}
        numbers = {key: {"value": value, "kind": "assumed", "source": "a guess"} for key, value in wrong.items()}
        with pytest.raises(InputError, match="leave no time for a product"):
            validate(type(plain), {**data, "achieved": {**data["achieved"], **numbers}}, "gpu")
    del data["achieved"]["gemm_columns"]
    with pytest.raises(InputError, match="gemm_columns: is missing beside gemm_input_bytes_per_s"):
        validate(type(plain), data, "gpu")
