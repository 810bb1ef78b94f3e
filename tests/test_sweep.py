"""Sweeps: what keys and values mean, what they change, and that rows depend on nothing else."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import small_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runtime_helpers import small_profile

from planner.costs import CostModel
from planner.errors import InputError, RunError
from planner.given import Given
from planner.hardware import HardwareProfile, load_hardware
from planner.policies import POLICIES
from planner.sweep import FIGURES, Row, sweep
from planner.sweep_axes import Axis, read_axes
from planner.sweep_keys import ALIASES, FASTEST, Setting, changed_hardware, changed_model, find_key
from planner.sweep_points import Point, grid
from planner.sweep_report import doubts, flips, sweep_csv, sweep_result
from planner.what_if import with_more
from planner.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
MACHINE = "rtx4090-pcie4"
JOB: dict[str, Any] = {"model": "opt-tiny", "hardware": MACHINE, "dtype": "float16"}
LENGTHS = {"requests": 8, "prompt_len": 64, "gen_len": 8}
CHOSEN = [POLICIES["hybrid"], POLICIES["kv-only"]]


def job(requests: int | None, prompt_len: int | None, gen_len: int | None, _: str) -> Workload:
    assert requests and prompt_len and gen_len
    return Workload.uniform(requests, prompt_len, gen_len)


def values(text: str) -> tuple[Any, ...]:
    (axis,) = read_axes([text], MACHINE)
    return axis.values


def machine(*texts: str) -> HardwareProfile:
    """The machine with what each of `texts` sets, one value each."""
    axes = read_axes(texts, MACHINE)
    return changed_hardware(load_hardware(MACHINE), [Setting(one.key, one.values[0], one.relative) for one in axes])


def points(*texts: str, policies: Any = CHOSEN, **changes: Any) -> list[Point]:
    return grid(Given(**(JOB | LENGTHS | changes)), read_axes(texts, MACHINE), policies, job)


def nothing(*_: object) -> None:
    """No progress."""


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("link.h2d=16,25,32,50", (16, 25, 32, 50)),
        (" link.h2d = 16 , 2.5e1 ", (16, 25)),
        ("requests=8..64:8", (8, 16, 24, 32, 40, 48, 56, 64)),
        ("requests=8..64*2", (8, 16, 32, 64)),
        ("requests=8..63*2,100", (8, 16, 32, 100)),
        ("act_share=0..0.3:0.1", (0, 0.1, 0.2, 0.3)),
        ("link.h2d=0.1..0.8*2", (0.1, 0.2, 0.4, 0.8)),
        ("requests=5..5:1", (5,)),
        ("link=x0.5..2*2", (0.5, 1, 2)),
        ("link.latency_s=1e-6..1e-3*10", (1e-6, 1e-5, 1e-4, 1e-3)),
        ("model=opt-6.7b,opt-13b", ("opt-6.7b", "opt-13b")),
    ],
)
def test_values(text: str, found: tuple[Any, ...]) -> None:
    assert values(text) == found


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 40))
def test_a_range_has_both_ends_and_equal_steps(low: int, step: int, count: int) -> None:
    assert values(f"requests={low}..{low + count * step}:{step}") == tuple(low + i * step for i in range(count + 1))


@given(st.floats(0.001, 1000), st.floats(1.1, 10), st.integers(0, 20))
def test_a_range_with_a_factor_has_both_ends(low: float, factor: float, count: int) -> None:
    high = low * factor**count
    assume(high <= FASTEST)
    found = values(f"link.h2d={low!r}..{high!r}*{factor!r}")
    assert len(found) == count + 1
    assert found[0] == pytest.approx(low, rel=1e-11)
    assert found[-1] == pytest.approx(high, rel=1e-11)


# ---- keys ----------------------------------------------------------------------------------------


def test_every_number_of_a_profile_is_a_key_but_not_its_peaks() -> None:
    hardware = load_hardware(MACHINE)
    for name in (
        "link.h2d_bytes_per_s", "gpu.memory.usable_bytes", "host.total_bytes", "link.during_compute", "model.layers",
        "gpu.achieved.memory_bytes_per_s", "gpu.achieved.engine_slowdown.prefill",
    ):  # fmt: skip
        assert find_key(name, hardware).name == name
    assert find_key("gpu.achieved.gemm_flops_by_rows.float16", hardware).kind == "factor"
    with pytest.raises(InputError, match="unknown key"):
        find_key("gpu.datasheet.memory_bytes_per_s", hardware)


def test_a_link_keeps_its_proportions() -> None:
    before, after = load_hardware(MACHINE).link, machine("link.h2d=50").link
    assert after.h2d_bytes_per_s.value == pytest.approx(50e9)
    assert after.beside_d2h == pytest.approx(before.beside_d2h)
    assert after.d2h_bytes_per_s == before.d2h_bytes_per_s
    both = machine("link=50").link
    assert both.h2d_bytes_per_s.value == pytest.approx(50e9)
    assert both.d2h_bytes_per_s.value == pytest.approx(50e9)
    assert both.beside_h2d == pytest.approx(before.beside_h2d)


@pytest.mark.parametrize(("key", "resource"), [("link", "link"), ("compute", "compute")])
def test_a_factor_is_what_the_what_ifs_of_a_plan_mean(key: str, resource: Any) -> None:
    """The same costs as `what_if` uses, for a step that the datasheet allows."""
    wanted, found = with_more(load_hardware(MACHINE), resource, 0.01), machine(f"{key}=x1.01")
    assert found.link.h2d_bytes_per_s.value == pytest.approx(wanted.link.h2d_bytes_per_s.value)
    model = small_model()
    for rows in (8, 64, 1000):
        assert CostModel(found, model).projections(rows).seconds == pytest.approx(
            CostModel(wanted, model).projections(rows).seconds
        )


def test_compute_may_be_faster_than_any_datasheet() -> None:
    gpu, faster = load_hardware(MACHINE).gpu, machine("gemm=x10").gpu
    assert faster.gemm_rates("float16").at(100, 1) == pytest.approx(10 * gpu.gemm_rates("float16").at(100, 1))
    assert faster.achieved.memory_bytes_per_s == gpu.achieved.memory_bytes_per_s
    assert machine("compute=x10").gpu.achieved.memory_bytes_per_s.value == pytest.approx(
        10 * gpu.achieved.memory_bytes_per_s.value
    )
    one = machine("gpu.achieved.gemm_flops_by_rows.float16=x3").gpu
    assert one.gemm_rates("float16").best == pytest.approx(3 * gpu.gemm_rates("float16").best)
    assert one.gemm_rates("bfloat16") == gpu.gemm_rates("bfloat16")
    assert machine("gpu.achieved.memory_bytes_per_s=x4").gpu.achieved.memory_bytes_per_s.value == pytest.approx(
        4 * gpu.achieved.memory_bytes_per_s.value
    )


def test_memories_are_in_gb_and_may_exceed_the_card() -> None:
    assert machine("gpu.memory=12").gpu.memory.usable_bytes.value == pytest.approx(12e9)
    assert machine("gpu.memory=48").gpu.memory.usable_bytes.value == pytest.approx(48e9)
    assert machine("gpu.memory=x0.5").gpu.memory.usable_bytes.value == pytest.approx(25250627584 / 2)
    assert machine("host.memory=256").host.total_bytes.value == pytest.approx(256e9)


def test_numbers_that_depend_on_each_other_are_judged_together() -> None:
    """Either alone contradicts the profile."""
    found = machine(
        "link.h2d_bytes_per_s=4e9", "link.h2d_during_d2h_bytes_per_s=3e9", "link.pageable_h2d_bytes_per_s=2e9"
    )
    assert found.link.h2d_bytes_per_s.value == 4e9
    with pytest.raises(InputError, match="faster than"):
        machine("link.h2d_bytes_per_s=4e9")


def test_a_model_of_another_shape() -> None:
    (axis,) = read_axes(["model.layers=6"], MACHINE)
    assert changed_model(small_model(), [Setting(axis.key, 6.0)]).layers == 6
    assert changed_model(small_model(), [Setting(axis.key, 2.0, relative=True)]).layers == 6
    with pytest.raises(InputError, match=r"4\.5 is not a whole number"):
        changed_model(small_model(), [Setting(axis.key, 1.5, relative=True)])


def test_every_short_name_is_documented() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = text.partition("## hybridserve sweep")[2].partition("\n## ")[0]
    for name in [*ALIASES, *FIGURES]:
        assert f"`{name}`" in section, name


def test_keys_of_the_result_are_documented() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = text.partition("## hybridserve sweep")[2].partition("\n## ")[0]
    axes, rows = read_axes(["link.h2d=16,32"], MACHINE), [_row(16.0, "link"), _row(32.0, "compute")]
    found = sweep_result(axes, rows)
    for key in {*found, *found["axes"][0], *found["rows"][0], *found["flips"][0]}:
        assert f"`{key}`" in section, key


# ---- points --------------------------------------------------------------------------------------


def test_a_grid_is_the_product_and_the_last_key_varies_fastest() -> None:
    found = points("link.h2d=16,32", "requests=2..8*2", requests=None)
    assert [tuple(one.settings.values()) for one in found] == [(a, b) for a in (16, 32) for b in (2, 4, 8)]
    assert [len(one.workload) for one in found] == [2, 4, 8] * 2
    assert {one.hardware.link.h2d_bytes_per_s.value for one in found[:3]} == {16e9}


def test_names_choose_models_machines_and_types() -> None:
    found = points("model=opt-tiny,opt-125m", "hardware=t4,l4", "dtype=float16", model=None, hardware=None, dtype=None)
    assert [(one.model.name, one.hardware.id) for one in found] == [
        ("opt-tiny", "t4"), ("opt-tiny", "l4"), ("opt-125m", "t4"), ("opt-125m", "l4")
    ]  # fmt: skip
    assert {one.model.dtype for one in found} == {"float16"}


def test_options_reach_the_solver() -> None:
    found = points("act_share=0,0.5", "mini_batches=1,2", policies=[POLICIES["hybrid"]])
    assert [(one.options.act_share, one.options.mini_batches) for one in found] == [(0, 1), (0, 2), (0.5, 1), (0.5, 2)]


# ---- rows ----------------------------------------------------------------------------------------


def small_points(*rates: float, gpu_bytes: float = 1.6e6) -> list[Point]:
    """opt-tiny where its weights and cache do not fit."""
    found = points(f"link.h2d={','.join(map(repr, rates))}")
    small = small_profile("cpu", gpu_bytes)
    axes = read_axes([f"link.h2d={','.join(map(repr, rates))}"], MACHINE)
    return [
        Point(
            one.settings, changed_hardware(small, [Setting(axes[0].key, value)]), one.model, one.workload, one.options
        )
        for one, value in zip(found, axes[0].values, strict=True)
    ]


def test_rows_do_not_depend_on_the_number_of_workers() -> None:
    found = small_points(0.5, 4.0, 32.0)
    seen: list[tuple[int, int]] = []
    alone = sweep(found, CHOSEN, 1, lambda done, of: seen.append((done, of)))
    assert seen == [(i, 6) for i in range(1, 7)]
    assert [(row.settings["link.h2d"], row.policy) for row in alone] == [
        (rate, policy.name) for rate in (0.5, 4.0, 32.0) for policy in CHOSEN
    ]
    assert sweep(found, CHOSEN, 3, nothing) == alone


def test_a_faster_link_is_not_slower() -> None:
    """Beyond what rounding to whole blocks may cost; of a job whose plans are proven to be near the best."""
    job = {"model": "opt-1.3b", "gpu_memory_gb": 3.0, "requests": 32, "prompt_len": 256}
    rows = sweep(points("link.h2d=8..64*2", **job), CHOSEN, 1, nothing)
    for policy in CHOSEN:
        times = [row.figures["total_s"] for row in rows if row.policy == policy.name and row.figures]
        assert len(times) == 4
        assert all(later <= earlier * 1.005 for earlier, later in pairwise(times))
        assert times[-1] < 0.5 * times[0]  # or it would show nothing


def test_no_bound_exceeds_what_a_slower_link_reaches() -> None:
    """However far a plan is from its bound: what runs over a slow link runs no slower over a fast one."""
    rows = sweep(small_points(0.25, 0.5, 1.0, 4.0), CHOSEN, 1, nothing)
    for policy in CHOSEN:
        found = [row.figures for row in rows if row.policy == policy.name and row.figures]
        for slow, fast in combinations(found, 2):
            assert fast["bound_total_s"] <= slow["total_s"]


def test_what_is_infeasible_is_a_row_with_its_reason() -> None:
    """The weights of opt-tiny's layers do not fit in a few kilobytes."""
    good, bad = small_points(4.0)[0], small_points(4.0, gpu_bytes=2e4)[0]
    first, second = sweep([bad, good], [POLICIES["kv-only"]], 2, nothing)
    assert first.figures is None
    assert first.infeasible is not None
    assert first.infeasible.startswith("infeasible (gpu_memory): kv-only of opt-tiny")
    assert second.infeasible is None
    assert second.figures is not None
    assert tuple(second.figures) == FIGURES


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_of_the_planner_comes_back_as_one(workers: int) -> None:
    """Also from a worker, whose exceptions are pickled: a request too long for its model is refused by the planner."""
    point = small_points(4.0)[0]
    broken = Point(point.settings, point.hardware, point.model, Workload.uniform(1, 10**5, 1), point.options)
    with pytest.raises(RunError, match="positions"):
        sweep([broken, broken], CHOSEN, workers, nothing)


def test_an_error_in_the_caller_ends_the_workers() -> None:
    import multiprocessing  # noqa: PLC0415

    pids: list[int] = []

    def stop(*_: object) -> None:
        pids.extend(child.pid or 0 for child in multiprocessing.active_children())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(small_points(*(float(i) for i in range(1, 9))), CHOSEN, 2, stop)
    assert len(pids) >= 2
    _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_an_interrupt_stops_without_a_traceback(tmp_path: Path) -> None:
    """Only the parent is told, as by a supervisor; its workers end with it and no file is written."""
    command = [
        sys.executable, str(ROOT / "hybridserve.py"), "sweep", "--model", "opt-30b", "--hardware", MACHINE,
        "--prompt-len", "1024", "--gen-len", "128", "--set", "requests=32..64:1", "--workers", "2",
        "-o", str(tmp_path / "out.csv"),
    ]  # fmt: skip
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    group = running.pid
    time.sleep(3)  # however slow the machine is, this job takes a minute
    assert running.poll() is None
    os.kill(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err.startswith("error: stopped\n") and "Traceback" not in err
    assert not list(tmp_path.iterdir())
    _wait_until(lambda: not _group_lives(group))


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(done: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.05)


# ---- reports -------------------------------------------------------------------------------------


def _row(rate: float | str, binding: str, policy: str = "hybrid", **others: Any) -> Row:
    """Only what reports of flips read; a stream that binds is full, the other half busy."""
    figures = dict.fromkeys(FIGURES, 1.0) | {"binding": binding}
    figures |= {f"{one}_busy_fraction": 1.0 if one == binding else 0.5 for one in ("link", "compute")}
    if binding == "both":
        figures |= {"binding": "link", "link_busy_fraction": 0.99, "compute_busy_fraction": 0.98}
    plan = binding != "no plan"
    return Row({"link.h2d": rate, **others}, policy, figures if plan else None, None if plan else "infeasible: x")


def test_flips() -> None:
    axes = read_axes(["link.h2d=1,2,4,8"], MACHINE)
    rows = [
        _row(rate, what) for rate, what in zip((1.0, 2.0, 4.0, 8.0), ("no plan", "link", "link", "both"), strict=True)
    ]
    assert [(one.before, one.after, one.was, one.becomes) for one in flips(axes, rows)] == [
        (1, 2, "no plan", "link"), (4, 8, "link", "both")
    ]  # fmt: skip
    assert not flips(axes, rows[1:3])


def test_flips_are_between_neighbours_along_one_key() -> None:
    axes = read_axes(["link.h2d=1,2", "requests=4,8"], MACHINE)
    kinds = {(1.0, 4.0): "link", (1.0, 8.0): "compute", (2.0, 4.0): "link", (2.0, 8.0): "link"}
    rows = [
        _row(rate, what if policy == "hybrid" else "link", policy, requests=count)
        for (rate, count), what in kinds.items() for policy in ("hybrid", "kv-only")
    ]  # fmt: skip
    assert [(one.policy, one.key, one.before, one.after, one.others) for one in flips(axes, rows)] == [
        ("hybrid", "requests", 4, 8, {"link.h2d": 1}), ("hybrid", "link.h2d", 1, 2, {"requests": 8})
    ]  # fmt: skip


@settings(max_examples=50)
@given(
    st.lists(st.floats(1e-12, 1e15), min_size=len(FIGURES), max_size=len(FIGURES)),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
)
def test_csv_round_trip(numbers: list[float], reason: str) -> None:
    """To the bit, whatever commas, quotes and letters a reason has."""
    axes = (Axis(ALIASES["link.h2d"], (16.0, 0.1)), Axis(ALIASES["compute"], (0.5,), relative=True))
    figures: dict[str, Any] = {**dict(zip(FIGURES, numbers, strict=True)), "binding": "link"}
    rows = [
        Row({"link.h2d": 16.0, "compute": "x0.5"}, "hybrid", figures),
        Row({"link.h2d": 0.1, "compute": "x0.5"}, "kv-only", None, f"infeasible: {reason}"),
    ]  # fmt: skip
    first, second = csv.DictReader(io.StringIO(sweep_csv(axes, rows)))
    for key, number in figures.items():
        assert first[key] == "link" if key == "binding" else float(first[key]) == number
    assert (float(first["set.link.h2d"]), first["set.compute"], first["infeasible"]) == (16.0, "x0.5", "")
    assert (float(second["set.link.h2d"]), second["policy"], second["total_s"]) == (0.1, "kv-only", "")
    assert (second["binds"], second["infeasible"]) == ("no plan", f"infeasible: {reason}")


def test_doubts_name_wide_gaps_and_broken_bounds() -> None:
    def with_gap(gap: float) -> Row:
        return Row({"link.h2d": 1.0}, "hybrid", dict.fromkeys(FIGURES, 1.0) | {"gap": gap})

    assert not doubts([with_gap(0.01), with_gap(-1e-9), _row(1.0, "no plan")])
    first, second = doubts([with_gap(0.2), with_gap(0.01), with_gap(-0.03)])
    assert first.startswith("1 of 3 plans are proven only to within 20% of the best")
    assert second == "1 of 3 plans are up to 3.0% below their bound: it does not hold"
