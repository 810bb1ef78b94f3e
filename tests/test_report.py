"""What people read: units, precision and provenance."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from planner import report, tables
from planner.files import validate
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.results import streams_result
from planner.timeline import Span, Timeline


def shown(part: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False)
    console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 us"), (4.2e-5, "42 us"), (0.0123, "12.3 ms"), (2.345, "2.35 s"), (12345.6, "12,346 s")],
)
def test_seconds(value: float, text: str) -> None:
    assert tables.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.4e10, "24 GB"), (1.5e12, "1.5 TB"), (2e16, "20 PB")],
)
def test_size(value: float, text: str) -> None:
    assert tables.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(13.719, "13.72 tokens/s"), (13140.2, "13,140 tokens/s")])
def test_rate(value: float, text: str) -> None:
    assert tables.rate(value) == text


def test_every_number_of_a_profile_has_unit_and_source() -> None:
    text = shown(report.hardware_report(load_hardware("rtx4090-pcie4")))
    for line in (
        "  usable_bytes           25.25 GB", "  gemm_flops_by_rows.float16               49 to 164.5 TFLOP/s",
        "      published, 4 points at 64 to 512 rows: ", "  latency_s                   10 us", "      assumed: ",
    ):  # fmt: skip
        assert line in text


def test_a_measured_number_says_when_how_often_and_how_steadily() -> None:
    data = load_hardware("rtx4090-pcie4").to_plain()
    record = {"kind": "measured", "source": "here", "date": "2026-11-25", "runs": 9, "spread": 0.021}
    data["link"]["latency_s"] = {"value": 1e-5, **record}
    text = shown(report.hardware_report(validate(HardwareProfile, data, "test")), width=120)
    assert "measured 2026-11-25, 9 runs, spread 2.1%: here" in text


def test_model_report() -> None:
    text = shown(report.model_report(load_model("llama-3-8b")))
    assert "8.03 billion" in text
    assert "32 of 128, 8 for K and V" in text


def test_streams_without_decode_show_prefill() -> None:
    timeline = Timeline(
        [Span(0, "prefill", "compute", 0, 0, 0, 0.0, 1.0, 0), Span(1, "sample", "compute", 0, -1, 0, 1, 2, 0)], 1
    )
    text = shown(report.streams_report("hybrid", timeline, timeline, load_hardware("rtx4090-pcie4").link))
    assert "streams in prefill" in text
    assert "+0.0%" in text


def test_links_are_laid_beside_their_profile() -> None:
    link = load_hardware("rtx4090-pcie4").link
    half = Span(1, "load_kv", "h2d", 1, 0, 0, 1.0, 3.0, int(link.h2d_bytes_per_s.value))
    ends = [Span(0, "sample", "compute", 0, -1, 0, 0.0, 1.0, 0), half, Span(2, "sample", "compute", 1, -1, 0, 3, 4, 0)]
    timeline = Timeline(ends, 2)
    assert "50.0%" in shown(report.streams_report("hybrid", timeline, timeline, link))
    found = streams_result(link, timeline)
    assert found["h2d"] == {
        "busy_s": 2.0, "busy_fraction": 2 / 3, "bytes": half.nbytes, "bytes_per_s": half.nbytes / 2,
        "of_profile": pytest.approx(0.5),
    }  # fmt: skip
    assert found["compute"]["of_profile"] is None and found["d2h"]["of_profile"] is None


def test_a_pace_that_is_not_reached_and_noise_are_said() -> None:
    profile = load_hardware("rtx4090-pcie4")
    assert report.pace_warning(profile, None) is None and report.pace_warning(profile, 24.45) is None
    assert "--link-gbps 10000: the link of this profile has 24.4 GB/s" in str(report.pace_warning(profile, 10_000.0))
    assert report.noise_warning(0.0) is None and "too noisy" in str(report.noise_warning(1.0))
