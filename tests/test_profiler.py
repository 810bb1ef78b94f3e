"""The profiler writes a profile that loads, with provenance, and whose tables are usable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planner.errors import InputError
from planner.files import dump_yaml
from planner.hardware import load_hardware
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Workload
from runtime import profiler
from runtime.profile_link import measure_link
from runtime.timing import Operands, Series

STAGES_SEEN: list[tuple[int, int, str]] = []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "here.yaml"
    request = profiler.Request("cpu", hidden=128, heads=2, link_bytes_per_s=3e8, gpu_bytes=10**8, profile_id="here")
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
    rates = [rate for _, rate in load_hardware(str(written)).gpu.achieved.gemm_flops_by_rows["float32"].points]
    assert rates == sorted(rates)


def test_progress_reaches_every_stage(written: Path) -> None:
    assert [done for done, _, _ in STAGES_SEEN] == list(range(profiler.Profiler.STAGES))


def test_a_link_faster_than_a_copy_is_not_promised() -> None:
    link = measure_link(torch.device("cpu"), 1e15)
    assert link.numbers["h2d_bytes_per_s"]["value"] < 1e13
    assert "half the speed of a copy" in link.numbers["h2d_bytes_per_s"]["source"]


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
    assert Series(2.0, [2.0, 1.0, 1.5, 1.0, 9.0]).rate == pytest.approx(2.0 / 1.5)
