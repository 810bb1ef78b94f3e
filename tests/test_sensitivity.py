"""What is worth measuring: which numbers are in doubt, how far they move a prediction, and in which direction."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers import profile_dict, write_profile

import hwprofiles
from planner.costs import CostModel
from planner.efficiency import efficiencies
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.reference_job import JOBS, Job, reference, shorten
from planner.search import Options, Search
from planner.sensitivity import FACTORS, ends, worth_measuring
from planner.workload import Workload

NAME = "rtx4090-pcie4"


@pytest.fixture(scope="module")
def hardware() -> HardwareProfile:
    return load_hardware(NAME)


def test_ranked_by_effect(hardware: HardwareProfile) -> None:
    worth = worth_measuring(hardware)
    assert worth.job == JOBS[0]
    assert [d.most for d in worth.doubts] == sorted((d.most for d in worth.doubts), reverse=True)
    found = {doubt.key: doubt for doubt in worth.doubts}
    assert "gpu.achieved.gemm_flops_by_rows.float16" in found
    assert "gpu.achieved.gemm_flops_by_rows.bfloat16" not in found  # the job does not use it
    assert not any("pageable" in key or "datasheet" in key for key in found)
    assert all(doubt.kind in FACTORS for doubt in worth.doubts)
    assert worth.to_plain()["reference_job"] == {
        "model": "opt-30b", "requests": 128, "prompt_len": 1024, "gen_len": 128,
    }  # fmt: skip


def test_faster_never_takes_longer_and_slower_never_less(hardware: HardwareProfile) -> None:
    """A hair of tolerance: earlier transfers may fall together differently."""
    for doubt in worth_measuring(hardware).doubts:
        faster_when_high = "per_s" in doubt.key or "flops" in doubt.key or doubt.key.endswith("during_compute")
        slow, fast = doubt.low_fraction, doubt.high_fraction
        if not faster_when_high:
            slow, fast = fast, slow
        assert slow >= -2e-3, doubt
        assert fast <= 2e-3, doubt


def test_what_is_measured_is_not_doubted(tmp_path: Path) -> None:
    data = profile_dict(NAME)
    data["link"]["h2d_bytes_per_s"] |= {"kind": "measured", "date": "2026-01-31", "runs": 5, "spread": 0.01}
    found = {doubt.key for doubt in worth_measuring(load_hardware(write_profile(tmp_path, data))).doubts}
    assert "link.h2d_bytes_per_s" not in found
    assert "link.during_compute" in found


def test_the_range_follows_the_kind(hardware: HardwareProfile) -> None:
    low, high = ends(hardware, "link.h2d_bytes_per_s", hardware.link.h2d_bytes_per_s)
    given = hardware.link.h2d_bytes_per_s.value
    assert (low.link.h2d_bytes_per_s.value, high.link.h2d_bytes_per_s.value) == pytest.approx(
        (0.9 * given, 1.1 * given)
    )
    latency = hardware.link.latency_s
    low, high = ends(hardware, "link.latency_s", latency)
    assert (low.link.latency_s.value, high.link.latency_s.value) == (latency.value / 2, latency.value * 2)


def test_an_assumed_absence_is_doubted_too(hardware: HardwareProfile) -> None:
    lost = hardware.link.compute_s_lost_per_byte
    low, high = ends(hardware, "link.compute_s_lost_per_byte", lost)
    assert lost.value == low.link.compute_lost_to_h2d == 0
    assert high.link.compute_lost_to_h2d == pytest.approx(0.1)


def test_no_rate_exceeds_the_datasheet(hardware: HardwareProfile) -> None:
    achieved = hardware.gpu.achieved
    key = "gpu.achieved.gemm_flops_by_rows.float16"
    low, high = ends(hardware, key, achieved.gemm_flops_by_rows["float16"])
    assert high.gpu.gemm_rates("float16").best == hardware.gpu.datasheet.flops["float16"].value
    assert low.gpu.gemm_rates("float16").best == pytest.approx(0.9 * achieved.gemm_flops_by_rows["float16"].best)
    assert high.gpu.gemm_rates("bfloat16") == hardware.gpu.gemm_rates("bfloat16")
    _, high = ends(hardware, "gpu.achieved.elementwise_bytes_per_s", achieved.elementwise_bytes_per_s)
    assert hardware.gpu.datasheet.memory_bytes_per_s is not None
    assert high.gpu.achieved.elementwise_bytes_per_s.value == hardware.gpu.datasheet.memory_bytes_per_s.value


def test_the_short_version_predicts_the_whole_job(hardware: HardwareProfile) -> None:
    job, model = Job("opt-13b", 64, 512, 32), load_model("opt-13b")
    found = Search(CostModel(hardware, model), Workload.uniform(64, 512, 32), POLICIES["hybrid"].forms, Options()).run()
    assert found is not None
    whole = make_plan(hardware, model, Workload.uniform(64, 512, 32), POLICIES["hybrid"]).prediction.total_s
    assert shorten(job, model, found.decisions).total_s(hardware) == pytest.approx(whole, rel=0.1)


def test_a_small_machine_gets_a_small_job(hardware: HardwareProfile) -> None:
    small = hardware.with_values(**{"gpu.memory.usable_bytes": 2.5e9, "host.total_bytes": 1.8e10})
    found = reference(small)
    assert found is not None
    assert found.job in JOBS[1:]


def test_no_job_fits(hardware: HardwareProfile) -> None:
    tiny = hardware.with_values(
        **{"gpu.memory.context_reserve_bytes": 0.0, "gpu.memory.usable_bytes": 1e3, "host.reserve_bytes": 0.0,
           "host.total_bytes": 1e3}
    )  # fmt: skip
    assert worth_measuring(tiny).to_plain() == {"reference_job": None, "worth_measuring": []}


@pytest.mark.parametrize("name", hwprofiles.names())
def test_every_shipped_profile_is_answered_soon(name: str) -> None:
    started = time.process_time()
    worth = worth_measuring(load_hardware(name))
    assert worth.job is not None
    assert worth.doubts
    assert time.process_time() - started < 10  # about one second on a quiet machine


def test_efficiency(hardware: HardwareProfile) -> None:
    found = {one.key: one for one in efficiencies(hardware)}
    gemm = found["gpu.achieved.gemm_flops_by_rows.float16"]
    assert gemm.fraction == pytest.approx(1.645e14 / 1.652e14)
    assert found["gpu.achieved.memory_bytes_per_s"].fraction == pytest.approx(921 / 1008)
    bare = hardware.model_copy(update={"gpu": hardware.gpu.model_copy(
        update={"datasheet": hardware.gpu.datasheet.model_copy(update={"flops": {}, "memory_bytes_per_s": None})}
    )})  # fmt: skip
    assert efficiencies(bare) == []
