"""Every picture is drawn, says its units, and holds what it should."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from cli_helpers import write_small_profile
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import hybridserve as hs
from planner.operation import KINDS
from planner.peers.catalogue import PEERS
from planner.policies import POLICIES
from runtime.plots import style
from runtime.plots.placement import form_counts
from runtime.plots.runs import scatter_figure
from runtime.plots.timelines import Window


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> hs.Plan:
    machine = write_small_profile(tmp_path_factory.mktemp("plots") / "small.yaml")
    return hs.plan(model="opt-tiny", hardware=machine, dtype="float32", requests=8, prompt_len=64, gen_len=8)


def ink(figure: Figure, path: Path) -> float:
    """Share of the pixels that are darker than light grey, in grey."""
    style.save(figure, path)
    pixels = matplotlib.image.imread(path)[..., :3]
    return float(np.mean(pixels.mean(axis=-1) < 0.7))


def luminance(colour: str) -> float:
    return float(np.dot(matplotlib.colors.to_rgb(colour), (0.299, 0.587, 0.114)))


def test_every_picture_of_a_plan_is_drawn_and_labelled(plan: hs.Plan, tmp_path: Path) -> None:
    explained = plan.explain()
    swept = plan.sweep({"link.h2d": [2, 4, 8]}, policies="kv-only", workers=1)
    figures = {
        "split": plan.plot_split(), "memory": plan.plot_memory(), "explain": explained.plot(),
        "timeline": plan.simulate().plot(), "prefill": plan.simulate().plot(step=0),
        "sweep": swept.plot("decode_step_s"), "tradeoff": swept.plot_tradeoff(),
        "compare": plan.compare("kv-only,act-only").plot(),
    }  # fmt: skip
    units = ("(ms)", "(s)", "(GB)", "(MB)", "(kB)", "tokens", "(GB/s)", "per second")
    for name, figure in figures.items():
        assert ink(figure, tmp_path / f"{name}.png") > 0.01, name
        labels = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.get_axes()]
        assert any(unit in label for unit in units for label in labels), name
        assert figure._repr_png_().startswith(b"\x89PNG"), name  # type: ignore[attr-defined]


def test_the_bars_of_a_step_are_its_busy_time(plan: hs.Plan) -> None:
    simulated = plan.simulate()
    axes = simulated.plot(step=3).get_axes()[0]
    window = Window.of(simulated.timeline, 3, None)
    drawn = sum(
        path.get_extents().width for bars in axes.collections for path in bars.get_paths() if len(path.vertices) >= 4
    )
    rows = simulated.timeline.rows
    inside = np.minimum(rows.end_s, window.end_s) - np.maximum(rows.start_s, window.begin_s)
    assert drawn / 1e3 == pytest.approx(float(inside[inside > 0].sum()), rel=1e-6)


def test_the_bars_of_an_explanation_are_its_busy_seconds(plan: hs.Plan) -> None:
    found = plan.explain()
    axes = found.plot().get_axes()[1]
    phase = found.attribution.phases["decode"]
    drawn = sum(bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle))
    assert drawn == pytest.approx(1e3 * sum(use.busy_s for use in phase.kinds.values()) / phase.steps)


def test_the_bars_of_a_budget_are_its_lines(plan: hs.Plan) -> None:
    host = plan.plot_memory().get_axes()[1]
    drawn = sum(bar.get_width() for bar in host.patches if isinstance(bar, Rectangle))
    scale = {"memory (MB)": 1e6, "memory (kB)": 1e3}[host.get_xlabel()]
    assert drawn * scale == pytest.approx(sum(line.bytes for line in plan.record.memory["host"].lines))


def test_the_split_counts_every_block(plan: hs.Plan) -> None:
    counts = form_counts(plan.record)
    assert counts.sum(axis=0).tolist() == [8] * 5  # 64 + 8 - 1 tokens are five blocks of each of eight requests


def test_what_is_not_there_cannot_be_drawn(plan: hs.Plan) -> None:
    simulated = plan.simulate()
    with pytest.raises(hs.InputError, match=r"step: there is no step 8. Give 0, which is prefill, to 7"):
        simulated.plot(step=8)
    with pytest.raises(hs.InputError, match=r"layers: no layer from 90 to 91 runs in step 1"):
        simulated.plot(step=1, layers=(90, 91))
    swept = plan.sweep({"link.h2d": [4]}, policies="kv-only", workers=1)
    with pytest.raises(hs.InputError, match=r"what: 'throughput' cannot be drawn. Did you mean"):
        swept.plot("throughput")
    with pytest.raises(hs.InputError, match="nothing to draw"):
        hs.plot_curve([])


def test_predicted_against_measured_has_a_panel_for_each_key(tmp_path: Path) -> None:
    points = [(policy, 1.1 * x, x) for policy in ("hybrid", "kv-only") for x in (0.1, 0.2, 0.4)]
    figure = scatter_figure({"decode_step_s": points, "prefill_s": points})
    assert [axes.get_title(loc="left") for axes in figure.get_axes()] == ["Decode step", "Prefill"]
    assert ink(figure, tmp_path / "scatter.png") > 0.005


def test_a_picture_leaves_the_settings_of_its_caller_alone(plan: hs.Plan) -> None:
    before = dict(matplotlib.rcParams)
    plan.plot_memory()
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs, "no figure stays behind in pyplot"


def test_everything_has_a_look_and_looks_differ_without_colour() -> None:
    assert set(style.POLICIES) == {*POLICIES, *PEERS}
    assert set(style.KINDS) == set(KINDS)
    for looks in (list(style.POLICIES.values()), list(style.OTHERS)):
        assert len({(look.mark, look.dash) for look in looks}) == len(looks)
    for stream in (("load_weights", "load_kv", "load_act"), ("prefill", "rebuild", "forward")):
        found = [style.KINDS[kind] for kind in stream]
        assert len({look.hatch for look in found}) > 1
        shades = sorted(luminance(look.colour) for look in found)
        assert min(b - a for a, b in pairwise(shades)) > 0.04
    assert luminance(style.PREDICTED.colour) - luminance(style.MEASURED.colour) > 0.3
