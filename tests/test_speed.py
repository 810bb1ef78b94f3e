"""How fast a machine is against its profile, and what follows from it."""

from __future__ import annotations

import pytest

from planner.costs import CostModel
from planner.hardware import load_hardware
from planner.model import load_model
from planner.speed import Check, Reading, Speed

HARDWARE = load_hardware("rtx4090-pcie4")


def reading(kind: str, slowdown: float, spread: float = 0.0) -> Reading:
    return Reading(f"{kind} {slowdown}", kind, 2.0, 2.0 * slowdown, spread)


def check(gemm: float, memory: float, spread: float = 0.0) -> Check:
    return Check(HARDWARE, [reading("gemm", gemm, spread), reading("memory", memory, spread)])


def test_the_median_of_each_kind_counts() -> None:
    found = [reading("gemm", x) for x in (1.0, 1.2, 9.0)] + [reading("memory", x) for x in (0.5, 0.9, 1.0)]
    assert Speed.of(found) == Speed(1.2, 0.9)


def test_a_slower_machine_is_predicted_slower() -> None:
    """Products and overheads by one factor, everything else by the other, the link by none."""
    slow = Speed(1.25, 2.0).applied(HARDWARE)
    model = load_model("opt-6.7b")
    before, after = CostModel(HARDWARE, model), CostModel(slow, model)
    assert after.rebuild(64).seconds == pytest.approx(1.25 * before.rebuild(64).seconds)
    assert after.decode_attention(8, 512.0).seconds == pytest.approx(2 * before.decode_attention(8, 512.0).seconds)
    assert after.prefill_attention(512).seconds == pytest.approx(2 * before.prefill_attention(512).seconds)
    assert after.h2d(1e9) == before.h2d(1e9)
    assert Speed(1.0, 1.0).applied(HARDWARE) == HARDWARE


def test_verdicts() -> None:
    assert check(1.05, 0.95).speed.describes and "describes this machine" in check(1.05, 0.95).verdict
    assert "does not describe" in check(1.2, 1.0).verdict and not check(1.2, 1.0).speed.describes
    assert "does not describe" in check(1.0, 0.8).verdict
    for gemm in (1.0, 1.2):  # noise neither condemns nor acquits
        noisy = check(gemm, 1.0, spread=0.4)
        assert "Too noisy to tell: readings scatter by 40%" in noisy.verdict
        assert not noisy.describes and noisy.result()["too_noisy"]


def test_the_result_holds_every_reading() -> None:
    found = check(1.2, 1.0).result()
    assert found["describes"] is False and found["gemm_slowdown"] == pytest.approx(1.2)
    assert [one["slowdown"] for one in found["readings"]] == pytest.approx([1.2, 1.0])


def test_the_typical_speed_is_the_median_of_each_kind() -> None:
    assert Speed.typical([Speed(1.0, 3.0), Speed(1.2, 1.0), Speed(5.0, 2.0)]) == Speed(1.2, 2.0)
