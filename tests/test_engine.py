"""The engine issues what was predicted, stays within its arenas, and fails with one message."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
import torch
from runtime_helpers import greedy, planned, ragged, reference_model

from planner.costs import CostModel
from planner.errors import InputError, RunError
from planner.model import load_model
from planner.simulator import simulate
from planner.workload import Workload
from runtime.arena import Arena
from runtime.cpu_device import CpuDevice, Pace
from runtime.engine import Engine, random_prompts
from runtime.execution import execute
from runtime.weights import RandomWeights

MODEL = load_model("opt-tiny")
JOB = ragged(5, gen_len=6)


def test_predicted_and_measured_timelines_are_the_same_operations() -> None:
    plan = planned(MODEL, JOB, act_share=0.5, max_resident_layers=1, mini_batches=2)
    predicted = simulate(CostModel(plan.hardware, plan.model), plan.decisions)
    measured = execute(plan, device=CpuDevice(None, None)).measured
    same = [(s.id, s.kind, s.stream, s.step, s.layer, s.part, s.nbytes) for s in predicted.spans]
    assert same == [(s.id, s.kind, s.stream, s.step, s.layer, s.part, s.nbytes) for s in measured.spans]
    assert measured.generated_tokens == predicted.generated_tokens == JOB.total_generated_tokens


def test_measured_operations_respect_streams_and_waits() -> None:
    from planner.schedule import Schedule  # noqa: PLC0415

    plan = planned(MODEL, JOB, act_share=0.5, max_resident_layers=0, mini_batches=3)
    spans = execute(plan, device=CpuDevice(None, None)).measured.spans
    last: dict[str, float] = {}
    for op, span in zip(Schedule(plan.model, plan.decisions), spans, strict=True):
        assert span.start_s >= last.get(op.stream, 0.0)
        assert all(span.start_s >= spans[w].end_s for w in op.waits)
        last[op.stream] = span.end_s


def test_the_link_is_never_faster_than_its_pace() -> None:
    plan = planned(MODEL, JOB, max_resident_layers=0, policy="kv-only")
    spans = execute(plan).measured.spans
    for span in spans:
        if span.stream != "compute":
            rate = plan.hardware.link.h2d_bytes_per_s if span.stream == "h2d" else plan.hardware.link.d2h_bytes_per_s
            assert span.end_s - span.start_s >= span.nbytes / rate.value * (1 - 1e-6)


def test_the_link_begins_what_is_queued_without_a_pause() -> None:
    """Else every transfer would lose the time in which a thread sleeps too long and wakes."""
    device, all_queued = CpuDevice(Pace(1e6, 1e-4), None), Event()
    before = device.launch("compute", lambda: all_queued.wait() and None, [])
    tickets = [device.launch("h2d", lambda: None, waits, 2000) for waits in ([before], [], [before], [])]
    all_queued.set()
    device.synchronize()
    device.close()
    spans = [device.span_s(ticket) for ticket in (before, *tickets)]
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]


def test_peaks_are_the_planned_bytes() -> None:
    plan = planned(MODEL, JOB, act_share=0.5, max_resident_layers=2)
    peaks = execute(plan, device=CpuDevice(None, None)).peak_bytes
    assert peaks == {name: record.planned_bytes for name, record in plan.memory.items()}


def test_arena_enforces_its_budget() -> None:
    arena = Arena("GPU", torch.empty(1024, dtype=torch.uint8))
    first = arena.carve("first", (100,), torch.float32)
    mark = arena.mark()
    arena.carve("second", (64,), torch.float32)
    with pytest.raises(RunError, match=r"'third'.*more than the budget of 1,024"):
        arena.carve("third", (100,), torch.float32)
    arena.rewind(mark)
    assert arena.carve("again", (128,), torch.float32).data_ptr() == first.data_ptr() + 512
    assert arena.peak_bytes == 1024


def test_a_failing_stream_ends_the_run_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(MODEL, JOB, max_resident_layers=0)
    device = CpuDevice(None, None)
    calls = 0

    def broken(target: torch.Tensor, source: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError("link is gone")
        target.copy_(source)

    monkeypatch.setattr(device, "copy", broken)
    with pytest.raises(RunError, match="link is gone"):
        Engine(plan, device, RandomWeights(0, torch.device("cpu"))).run(random_prompts(plan, 0))
    device.close()


@pytest.mark.parametrize("change, said", [
    (lambda p: p[:-1], "4 prompts for a plan of 5 requests"),
    (lambda p: [p[0][:-1] or [1, 2], *p[1:]], "planned for"),
    (lambda p: [[MODEL.vocab] * len(p[0]), *p[1:]], "outside the vocabulary"),
    (lambda p: [[-1] * len(p[0]), *p[1:]], "outside the vocabulary"),
])  # fmt: skip
def test_prompts_other_than_planned_are_refused(change, said: str) -> None:  # type: ignore[no-untyped-def]
    plan = planned(MODEL, JOB)
    device = CpuDevice(None, None)
    engine = Engine(plan, device, RandomWeights(0, torch.device("cpu")))
    with pytest.raises(InputError, match=said):
        engine.run(change(random_prompts(plan, 0)))
    device.close()


@pytest.mark.parametrize("shards", ["5GB", "60KB"])
def test_checkpoint_saved_by_transformers(tmp_path: Path, shards: str) -> None:
    job = Workload.uniform(2, 20, 16)
    reference = reference_model(MODEL, seed=3)
    reference.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shards == "5GB")
    model = load_model(str(tmp_path))
    plan = planned(model, job, act_share=0.5, max_resident_layers=2)
    prompts = random_prompts(plan, 0)
    done = execute(plan, prompts, checkpoint=tmp_path, device=CpuDevice(None, None))
    assert done.tokens == greedy(reference, prompts, job)


def test_an_activation_that_is_not_executed_is_refused() -> None:
    plan = planned(load_model("llama-tiny").model_copy(update={"activation": "gelu"}), Workload.uniform(2, 8, 4))
    with pytest.raises(RunError, match="executes llama with activation 'silu'"):
        execute(plan)


def test_cuda_plan_without_cuda_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    plan = planned(MODEL, JOB, device="cuda")
    with pytest.raises(RunError, match="no CUDA device"):
        execute(plan)
