"""Schedules: hazard-free for any decisions, every layer whole before its use, and the bytes of the step shapes."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from helpers import WHOLE, decisions_of, random_decisions, small_model, uniform_batches
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.checker import check_budget, check_hazards, check_slots
from planner.decisions import Decisions
from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, FORMS, KV_GPU, KV_HOST
from planner.memory import ALIGNMENT, Sizes, gpu_lines, planned_bytes, streamed_bytes
from planner.operation import KINDS, STREAMS, Operation
from planner.placement import FORM_INDEX
from planner.schedule import Schedule

LAYERS = 5  # divided by no slot count but 1
MODEL = small_model(layers=LAYERS)
EXAMPLES = settings(deadline=None, max_examples=60)
ANY = random_decisions(layers=LAYERS)

ENDS_EARLY = decisions_of(uniform_batches([2], 20, 2, KV_HOST) + uniform_batches([0, 0, 2], 30, 9, ACT_HOST)[2:])
FIRST_RESIDENT = decisions_of(uniform_batches([1, 1, 1], 20, 4, KV_HOST), [WHOLE, 1, WHOLE, 0, 0], weight_slots=3)
ONE_STREAMED = decisions_of(uniform_batches([1, 1], 20, 4, KV_HOST), [WHOLE, WHOLE, 1, WHOLE, WHOLE], weight_slots=2)
ONE_SLOT = decisions_of(uniform_batches([1, 1], 20, 4, KV_HOST), weight_slots=1, cache_slots=1, store_slots=1)
MANY_PASSES = decisions_of(uniform_batches([3, 3], 20, 3, KV_HOST), chunk_tokens=20, pass_tokens=40, weight_slots=3)


def operations(decisions: Decisions) -> list[Operation]:
    return list(Schedule(MODEL, decisions))


@given(ANY)
@example(ENDS_EARLY)
@example(FIRST_RESIDENT)
@example(ONE_STREAMED)
@example(ONE_SLOT)
@example(MANY_PASSES)
@EXAMPLES
def test_no_hazards(decisions: Decisions) -> None:
    ops = operations(decisions)
    assert check_hazards(ops) == len(ops)
    assert {op.kind for op in ops} <= set(KINDS)
    assert {op.stream for op in ops} <= set(STREAMS)


@given(ANY)
@example(ENDS_EARLY)
@example(FIRST_RESIDENT)
@example(ONE_STREAMED)
@example(ONE_SLOT)
@EXAMPLES
def test_every_streamed_layer_is_whole_before_its_first_use(decisions: Decisions) -> None:
    """Per visit the pieces cover every part that streams, each in order and in one slot, and the first compute waits
    for the last of them."""
    sizes = np.diff(MODEL.prefix_bytes)
    streamed = [layer for layer in range(LAYERS) if decisions.parts_of(layer) < WHOLE]
    arrived: dict[tuple[int, int], tuple[int, int, int]] = {}  # part and slot -> layer, bytes so far, last piece
    visits: list[int] = []
    computing = (-1, -1, -1)
    for op in operations(decisions):
        if op.kind == "load_weights":
            assert op.part >= decisions.parts_of(op.layer)
            if op.offset:
                layer, so_far, _ = arrived[op.part, op.slot]
                assert (layer, so_far) == (op.layer, op.offset)
            assert op.offset % ALIGNMENT == 0
            assert op.nbytes > 0
            arrived[op.part, op.slot] = (op.layer, op.offset + op.nbytes, op.id)
        elif op.kind in ("prefill", "rebuild", "forward"):
            parts = range(decisions.parts_of(op.layer), WHOLE)
            assert len(op.weights) == len(parts)
            if not parts:
                continue
            held = {part: arrived[part, slot] for part, slot in zip(parts, op.weights, strict=True)}
            assert {part: (layer, so_far) for part, (layer, so_far, _) in held.items()} == {
                part: (op.layer, sizes[part]) for part in parts
            }
            assert max(last for _, _, last in held.values()) in op.waits
            key = (op.step, op.offset if op.kind == "prefill" else 0, op.layer)
            if key != computing:
                computing = key
                visits.append(op.layer)
    assert visits == streamed * (len(decisions.prefill_passes) + decisions.decode_steps)


@given(ANY)
@EXAMPLES
def test_weights_cross_once_per_sweep(decisions: Decisions) -> None:
    ops = operations(decisions)
    sweeps = len(decisions.prefill_passes) + decisions.decode_steps
    once = sum(streamed_bytes(MODEL, decisions))
    assert sum(op.nbytes for op in ops if op.kind == "load_weights") == sweeps * once


@given(ANY)
@example(ENDS_EARLY)
@EXAMPLES
def test_bytes_are_those_of_the_step_shapes(decisions: Decisions) -> None:
    loaded: dict[tuple[str, int, int], int] = defaultdict(int)
    stored: dict[tuple[int, int], int] = defaultdict(int)
    for op in operations(decisions):
        if op.kind in ("load_act", "load_kv"):
            loaded[op.kind, op.step, op.part] += op.nbytes
        elif op.kind == "store" and op.step:
            stored[op.step, op.part] += op.nbytes
    for m, batch in enumerate(decisions.mini_batches):
        for step in range(1, batch.decode_steps + 1):
            for kind, form in (("load_act", ACT_HOST), ("load_kv", KV_HOST)):
                blocks = int(batch.shapes.blocks[step - 1, FORM_INDEX[form.name]])
                assert loaded[kind, step, m] == LAYERS * blocks * BLOCK_TOKENS * form.token_bytes(MODEL)
            new = batch.shapes.new_tokens[step - 1]
            sizes = [0 if form.on_gpu else form.token_bytes(MODEL) for form in FORMS]
            assert stored[step, m] == LAYERS * sum(int(n) * size for n, size in zip(new, sizes, strict=True))
    assert all(step <= decisions.mini_batches[m].decode_steps for _, step, m in loaded)


@given(ANY)
@EXAMPLES
def test_prefill_stores_the_prompts(decisions: Decisions) -> None:
    stored = sum(op.nbytes for op in operations(decisions) if op.kind == "store" and op.step == 0)
    expected = 0
    for batch in decisions.mini_batches:
        for group in batch.groups:
            for position in range(group.prompt_len):
                form = group.blocks[position // BLOCK_TOKENS]
                expected += 0 if form.on_gpu else len(group.requests) * form.token_bytes(MODEL)
    assert stored == LAYERS * expected


@given(ANY)
@EXAMPLES
def test_every_transfer_fits_the_budgeted_slot(decisions: Decisions) -> None:
    sizes, element = Sizes.of(MODEL, decisions), MODEL.element_bytes
    slot_bytes = {
        **{f"weights.{part}": int(nbytes) for part, nbytes in enumerate(np.diff(MODEL.prefix_bytes))},
        "kv": sizes.kv_slot_blocks * BLOCK_TOKENS * KV_HOST.token_bytes(MODEL),
        "act": sizes.act_slot_blocks * BLOCK_TOKENS * ACT_HOST.token_bytes(MODEL),
        "store": max(sizes.prefill_store_elements, sizes.decode_store_elements) * element,
    }
    ops = operations(decisions)
    check_slots(ops, slot_bytes)
    slots = {f"weights.{part}": decisions.weight_slots for part in range(WHOLE)}
    slots |= {"kv": decisions.cache_slots, "act": decisions.cache_slots}
    slots["store"] = decisions.store_slots
    for op in ops:
        for name, slot in (*op.reads, *op.writes):
            assert slot < slots.get(name, 10**9)
    lines = gpu_lines(MODEL, decisions)
    check_budget("GPU", lines, planned_bytes(lines))


@given(ANY)
@EXAMPLES
def test_every_part_of_every_layer_runs_once(decisions: Decisions) -> None:
    ops = operations(decisions)
    forwards = [(op.step, op.layer, op.part) for op in ops if op.kind == "forward"]
    assert forwards == [
        (step, layer, m)
        for step in range(1, decisions.decode_steps + 1)
        for layer in range(LAYERS)
        for m, batch in enumerate(decisions.mini_batches)
        if batch.decode_steps >= step
    ]
    prefills = [(op.offset, op.layer, op.part) for op in ops if op.kind == "prefill"]
    assert prefills == [
        (index, layer, part)
        for index, chunks in enumerate(decisions.prefill_passes)
        for layer in range(LAYERS)
        for part in range(len(chunks))
    ]
    samples = [op for op in ops if op.kind == "sample"]
    assert len(samples) == len([op for op in ops if op.kind == "embed"])
    rebuilds = {(op.step, op.layer, op.part) for op in ops if op.kind == "rebuild"}
    act = [FORM_INDEX[form.name] for form in (ACT_HOST, ACT_GPU)]
    for step, layer, m in forwards:
        held = decisions.mini_batches[m].shapes.blocks[step - 1, act].sum()
        assert ((step, layer, m) in rebuilds) == bool(held)


def test_all_on_the_gpu_touches_no_link() -> None:
    batches = uniform_batches([2, 2], 20, 5, KV_GPU)
    ops = operations(decisions_of(batches, [WHOLE] * LAYERS, weight_slots=0))
    assert {op.stream for op in ops} == {"compute"}
    assert {op.weights for op in ops} == {()}


def test_one_token_each_is_prefill_only() -> None:
    ops = operations(decisions_of(uniform_batches([2], 20, 1, KV_GPU)))
    assert {op.step for op in ops} == {0}
    assert "begin_decode" not in {op.kind for op in ops}


def test_weights_fill_the_gaps_between_mini_batches() -> None:
    """With four mini-batches a quarter of the next layer follows each one's cache."""
    ops = operations(decisions_of(uniform_batches([1, 1, 1, 1], 20, 3, KV_HOST)))
    carried = [0]
    for op in (op for op in ops if op.stream == "h2d" and op.step == 1):
        if op.kind == "load_kv":
            carried.append(0)
        else:
            carried[-1] += op.nbytes
    even = MODEL.layer_bytes / 4
    assert all(abs(nbytes - even) <= 2 * ALIGNMENT for nbytes in carried[1:])
    assert len(carried) == 1 + 4 * LAYERS


@given(st.integers(1, 4))
@settings(deadline=None, max_examples=4)
def test_a_layer_is_read_while_the_next_one_loads(slots: int) -> None:
    """With two slots or more, the next layer's first piece waits for nothing that runs on the current layer."""
    ops = operations(decisions_of(uniform_batches([1, 1], 20, 4, KV_HOST), weight_slots=slots))
    for op in ops:
        if op.kind == "load_weights" and op.offset == 0 and op.step > 1 and op.layer:
            readers = [w for w in op.waits if ops[w].layer == op.layer - 1 and ops[w].step == op.step]
            assert bool(readers) == (slots == 1)
