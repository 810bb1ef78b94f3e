"""The profiler writes a profile that loads, with provenance, and whose tables are usable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime_helpers import small_profile

from planner.errors import InputError
from planner.files import dump_yaml, validate
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Workload
from runtime import kernels, profiler
from runtime.calibration import COLD_REQUESTS, _slowdowns, job_plan, probe_jobs
from runtime.gauge import Gauge
from runtime.profile_link import PacedLink, fitted
from runtime.timing import Operands, Round, Series, Timer

STAGES_SEEN: list[tuple[int, int, str]] = []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile measured in two rounds over small tables: what is measured is real, how well does not matter here."""
    path = tmp_path_factory.mktemp("profile") / "here.yaml"
    request = profiler.Request("cpu", hidden=128, heads=2, link_bytes_per_s=3e8, gpu_bytes=10**8, profile_id="here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler, "ROUNDS", 2)
        patch.setattr(profiler.Profiler, "STAGES", 3)
        patch.setattr(kernels, "GEMM_ROWS", (1, 16, 256))
        patch.setattr(kernels, "NARROW_ROWS", (256,))
        patch.setattr(kernels, "CONTEXTS", (16, 256, 512))
        patch.setattr(kernels, "REQUESTS", (1, 4, 16))
        patch.setattr(kernels, "PROMPTS", (32, 256))
        profile = profiler.Profiler(request, lambda done, of, text: STAGES_SEEN.append((done, of, text))).run()
    path.write_text(dump_yaml(profile.to_plain()))
    return path


def test_the_written_profile_loads_and_plans(written: Path) -> None:
    hardware = load_hardware(str(written))
    assert hardware.id == "here" and hardware.gpu.device == "cpu"
    assert hardware.gpu.budget_bytes == 10**8
    assert hardware.link.h2d_bytes_per_s.value == 3e8
    plan = make_plan(hardware, load_model("opt-tiny"), Workload.uniform(2, 20, 4), POLICIES["hybrid"])
    assert plan.prediction.total_s > 0


def test_measured_numbers_say_when_and_how_often(written: Path) -> None:
    achieved = load_hardware(str(written)).gpu.achieved
    for number in (achieved.memory_bytes_per_s, achieved.op_overhead_s, achieved.gemm_flops_by_rows["float32"]):
        assert number.kind == "measured" and number.date and number.runs and number.spread is not None
    assert load_hardware(str(written)).machine["torch"] == torch.__version__


def test_gemm_rates_rise_with_rows(written: Path) -> None:
    for one in load_hardware(str(written)).gpu.achieved.gemm_flops_by_rows["float32"].slices:
        rates = [rate for _, rate in one.points]
        assert rates == sorted(rates) and [size for size, _ in one.points] == [1, 16, 256]


def test_progress_reaches_every_stage(written: Path) -> None:
    assert [done for done, _, _ in STAGES_SEEN] == [0, 1, 2]
    assert {of for _, of, _ in STAGES_SEEN} == {3}


def test_rounds_end_when_the_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the fewest that are worth anything."""
    clock = iter((30.0, 60.0))
    monkeypatch.setattr(profiler.time, "perf_counter", lambda: next(clock))
    assert profiler.enough(4, 0.0, "cpu") is False
    assert profiler.enough(profiler.FEWEST_ROUNDS, 0.0, "cpu") is False
    assert profiler.enough(profiler.FEWEST_ROUNDS, 0.0, "cpu") is True


def test_a_link_faster_than_a_copy_is_not_promised() -> None:
    link = PacedLink(1e15, kernels.Kernels(64, Operands(torch.device("cpu"), torch.float32)))
    with torch.inference_mode():
        link.run()
    numbers = link.numbers()
    assert numbers["h2d_bytes_per_s"]["value"] < 1e13
    assert "half the speed of a copy" in numbers["h2d_bytes_per_s"]["source"]
    assert numbers["compute_s_lost_per_byte"]["value"] >= 0


def test_what_the_engine_adds_is_recovered() -> None:
    """From kernels that take known times: slowdowns 1.2 and 1.5, and 40 microseconds each."""
    kernels_s = [1e-3, 5e-3, 2e-2]
    known = {"embed": 1.2, "rebuild": 1.5}
    rows = {name: [(k, factor * k + 4e-5) for k in kernels_s] for name, factor in known.items()}
    slowdowns, overhead = _slowdowns(rows)
    assert slowdowns == pytest.approx(known, rel=1e-6) and overhead == pytest.approx(4e-5, rel=1e-6)


def test_nothing_that_the_engine_adds_is_negative() -> None:
    slowdowns, overhead = _slowdowns({"embed": [(1e-3, 0.8e-3), (1e-2, 1e-2)]})
    assert overhead == 0 and 0.7 < slowdowns["embed"] < 1


def test_the_largest_operations_tell_the_slowdown() -> None:
    """Small ones that run 30 % faster than their kernels alone, their data in the caches, change next to nothing."""
    slowdowns, _ = _slowdowns({"prefill": [(2e-3, 1.4e-3), (1e-3, 0.7e-3), (8e-2, 8e-2)]})
    assert 0.98 < slowdowns["prefill"] < 1


def test_latency_and_rate_of_a_link_are_recovered() -> None:
    timings = [(2**n, 7e-6 + 2**n / 24e9) for n in range(12, 27, 2)]
    latency, rate, worst = fitted(timings)
    assert latency == pytest.approx(7e-6, rel=1e-6) and rate == pytest.approx(24e9, rel=1e-6) and worst < 1e-9


def test_repeatability_sees_a_drift() -> None:
    one = Round(Timer(torch.device("cpu")))
    one.series = {"gemm": {(1, 1): Series(1.0, [1.0, 1.0, 1.0, 1.1, 1.1, 1.1])}}
    assert one.repeatability == pytest.approx(1 - 1 / 1.1)
    one.series = {"gemm": {(1, 1): Series(1.0, [1.0])}}
    assert one.repeatability == 0


def test_a_gauge_reads_every_kind_of_kernel(written: Path) -> None:
    readings = Gauge(load_hardware(str(written))).read(turns=1)
    assert {reading.kind for reading in readings} == {"gemm", "memory"}
    assert all(reading.profile_s > 0 and reading.measured_s > 0 for reading in readings)


def test_a_table_too_wide_to_be_timed_is_checked_where_it_can_be() -> None:
    data = small_profile("cpu", 1e8).to_plain()
    tables = data["gpu"]["achieved"]["gemm_flops_by_rows"]
    tables["float32"]["slices"][0]["second"] = 1e8
    data["gpu"]["achieved"]["gemm_flops_by_rows"] = {"float32": tables["float32"]}
    gauge = Gauge(validate(HardwareProfile, data, "wide"))
    assert gauge.kernels.hidden == kernels.widest(torch.float32) == 2048
    gauge.kernels.attend(*kernels.GROUP_AT[0], gauge.kernels.heads, 1)  # what did not fit the operands


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(InputError, match="no CUDA device"):
        profiler.Profiler(profiler.Request("cuda"), lambda *_: None)


def test_operands_are_ever_new_memory() -> None:
    operands = Operands(torch.device("cpu"), torch.float32)
    seen = {operands.take(1024, 1024).data_ptr() for _ in range(Operands.BYTES // 2**22)}
    assert len(seen) == Operands.BYTES // 2**22
    assert operands.result(8, 8).data_ptr() == operands.result(4, 4).data_ptr()


def test_spread_is_the_interquartile_range() -> None:
    assert Series(1.0, [1.0, 1.0, 1.0, 1.0, 1.0]).spread == 0
    assert Series(2.0, [2.0, 1.2, 1.5, 1.0, 9.0]).rate == pytest.approx(2.0 / 1.2)  # the lower quartile


@pytest.mark.parametrize("hidden", [64, 256, 1024])
def test_the_engines_jobs_run_whatever_memory_the_profile_shall_have(hidden: int) -> None:
    """On the CPU device that is only a figure, and one of the jobs has more K and V than caches hold."""
    jobs = probe_jobs(hidden, "float32")
    hardware = small_profile("cpu", 2e7)
    plans = [job_plan(hardware, hidden, "float32", job) for job in jobs]
    assert {plan.prediction.act_share > 0.1 for plan in plans[:-1]} == {True}
    cold = plans[-1]
    assert cold.prediction.act_share == 0
    held = cold.workload.total_prompt_tokens * cold.model.kv_bytes_per_token_layer
    assert held > 30e6 or len(cold.workload) == COLD_REQUESTS[1]
