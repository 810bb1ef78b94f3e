"""Requests that end early leave the run at once, and the tokens of the others stay what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from runtime_helpers import planned, ragged, with_random_forms

from planner.forms import BLOCK_TOKENS, KV_HOST, blocks_for
from planner.model import load_model
from planner.plan import Plan
from planner.workload import Workload
from runtime.completions import completion
from runtime.cpu_device import CpuDevice
from runtime.ending import endings
from runtime.engine import Engine, Result, random_prompts
from runtime.issuing import Issuer
from runtime.live import Live
from runtime.prompts import Prompt, Text
from runtime.weights import RandomWeights

MODEL = load_model("opt-tiny")
ALIKE = Workload.uniform(6, 20, 24)
SCARCE = 1.2e6
"""GPU bytes that hold slots and little more: the cache is on the host."""
LENGTHS = (24, 3, 9, 24, 1, 9)
"""Where the requests end: neighbours of a group go at different steps, the first token of one is its last."""


class RaggedCpu(CpuDevice):
    """The CPU, run as a device whose kernels take sequences of many lengths."""

    ragged = True


def run(plan: Plan, lengths: Sequence[int] | None = None, kind: type[CpuDevice] = CpuDevice) -> Result:
    def ends(request: int, made: Sequence[int]) -> bool:
        return lengths is not None and len(made) >= lengths[request]

    device = kind(None, None)
    try:
        engine = Engine(plan, device, RandomWeights(0, torch.device("cpu")))
        return engine.run(random_prompts(plan, 0), ends=ends if lengths else None)
    finally:
        device.close()


def cut(result: Result, lengths: Sequence[int]) -> list[list[int]]:
    return [tokens[:n] for tokens, n in zip(result.tokens, lengths, strict=True)]


@pytest.mark.parametrize("seed, kind", [(0, CpuDevice), (1, RaggedCpu), (2, CpuDevice)])
def test_tokens_are_those_of_a_run_to_the_planned_end(seed: int, kind: type[CpuDevice]) -> None:
    """Every form of every block, in groups of one, and in groups whose neighbours go."""
    plan = planned(MODEL, ALIKE, mini_batches=1 + seed, max_resident_layers=seed, act_share=0.5)
    for one in (plan, with_random_forms(plan, seed)):
        assert run(one, LENGTHS, kind).tokens == cut(run(one, kind=kind), LENGTHS)


@pytest.mark.parametrize("gpu_bytes", [SCARCE, 2.6e6])
def test_wherever_the_cache_lies(gpu_bytes: float) -> None:
    for policy in ("kv-only", "act-only"):
        plan = planned(MODEL, ALIKE, policy=policy, gpu_bytes=gpu_bytes)
        assert any(len(g.requests) > 1 for b in plan.decisions.mini_batches for g in b.groups)
        assert run(plan, LENGTHS).tokens == cut(run(plan), LENGTHS)


def test_planned_ends_and_early_ones_together_and_in_waves() -> None:
    job = ragged(7, gen_len=20)
    lengths = [30, 4, 30, 1, 12, 30, 7]
    plan = planned(MODEL, job, waves=3, act_share=0.5)
    found = run(plan, lengths)
    assert found.tokens == cut(run(plan), lengths)
    assert found.timeline.generated_tokens == sum(map(len, found.tokens))


def test_who_has_ended_is_neither_moved_nor_computed() -> None:
    """From the second step after his last token on. K and V of all others cross the link whole."""
    plan = planned(MODEL, ALIKE, policy="kv-only", mini_batches=1, max_resident_layers=0, gpu_bytes=SCARCE)
    groups = plan.decisions.mini_batches[0].groups
    loads = [span for span in run(plan, LENGTHS).timeline.spans if span.kind == "load_kv"]
    assert loads
    forms = {r: group for group in groups for r in group.requests}

    def least(step: int, late: int) -> int:
        cached = blocks_for(20 + step - 1)
        living = [r for r, n in enumerate(LENGTHS) if n + late > step]
        blocks = sum(forms[r].blocks[:cached].count(KV_HOST) for r in living)
        return blocks * BLOCK_TOKENS * KV_HOST.token_bytes(MODEL)

    for span in loads:
        assert least(span.step, 0) <= span.nbytes <= least(span.step, 1)
    assert least(20, 1) < least(20, 30), "the test would pass if nothing were left out"


def test_a_wave_is_over_when_all_have_ended() -> None:
    plan = planned(MODEL, ALIKE, mini_batches=2)
    spans = run(plan, [3, 5, 4, 2, 1, 5]).timeline.spans
    assert max(span.step for span in spans) in (4, 5)


def test_a_mini_batch_that_is_empty_costs_no_link_time() -> None:
    plan = planned(MODEL, ALIKE, policy="kv-only", mini_batches=3, max_resident_layers=0, gpu_bytes=SCARCE)
    gone = plan.decisions.mini_batches[1].requests
    spans = run(plan, [2 if r in gone else 24 for r in range(6)]).timeline.spans
    assert {span.nbytes for span in spans if span.part == 1 and span.step > 4 and span.kind != "load_weights"} == {0}
    assert any(span.nbytes for span in spans if span.part == 2 and span.step > 4 and span.kind == "load_kv")


def test_never_more_than_two_steps_are_issued_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ended with a step is known when the second one after it is laid out, however slow the device is."""
    plan = planned(MODEL, ALIKE, mini_batches=1)
    seen: list[tuple[int, int]] = []
    real = Issuer._make_room

    def spied(self: Issuer, step: int) -> None:
        real(self, step)
        seen.append((step, self._pending[0].op.step if self._pending else step))

    monkeypatch.setattr(Issuer, "_make_room", spied)
    run(plan, LENGTHS)
    assert all(oldest >= step - 1 for step, oldest in seen)


# ---- where a request ends ------------------------------------------------------------------------------


@dataclass
class Letters(Text):
    """A tokenizer of one letter each; 26 decodes to nothing."""

    def __init__(self) -> None:
        super().__init__(None)

    def decode(self, ids: Sequence[int]) -> str | None:
        return "".join("" if i == 26 else chr(ord("a") + i) for i in ids)


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("stops, ignores", [((), False), (("fg", "xyz"), False), (("cd",), True), (("h",), False)])
def test_a_request_ends_where_its_completion_ends(stops: tuple[str, ...], ignores: bool, before: int) -> None:
    tokens = [1, 2, 3, 4, 26, 5, 26, 6, 7, 8]
    prompt, end, text = Prompt("a", [0], stop=stops, ignore_eos=ignores), 8, Letters()
    ends = endings([prompt], [tokens[:before]], end, text)
    assert ends
    wanted = completion(prompt, tokens, end, text)
    first = next((n for n in range(before + 1, 11) if ends(0, tokens[before:n])), 10)
    if len(wanted.tokens) > before:
        assert first == len(wanted.tokens)


def test_without_ends_nobody_looks() -> None:
    plain, ignoring = Prompt("a", [0]), Prompt("b", [0], ignore_eos=True)
    assert endings([plain, ignoring], [[], []], None, Letters()) is None
    assert endings([ignoring], [[]], 3, Letters()) is None
    assert endings([plain, ignoring], [[], []], 3, Letters()) is not None


# ---- progress --------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_late_and_what_is_not_needed_is_not_waited_for() -> None:
    now, said = [0.0], []
    live = Live(100, lambda done, of, text: said.append((done, of, text)), lambda: now[0])
    for seconds, tokens in ((20.0, 10), (21.0, 5), (22.0, 5)):
        now[0] = seconds
        live.chosen(tokens)
    assert said[-1] == (20, 100, "5 tokens/s")
    live.not_needed(40)
    assert said[-1][:2] == (20, 60)
