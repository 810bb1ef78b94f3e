"""Plans edited by hand: refused in one message that names the key, or the same plan in all that matters."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import small_model

from planner.errors import InputError
from planner.hardware import load_hardware
from planner.plan import read_plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.search import Options
from planner.verification import predicted_timeline
from planner.workload import Request, Workload

Data = dict[str, Any]
NOT_VERIFIED = ("solve_s", "solver", "why", "what_if", "bound_total_s", "gap", "objective_total_s")
"""What proving again would be planning again; their limits are checked, see docs/command-line.md."""


def small_plan() -> Data:
    hardware = load_hardware("rtx4090-pcie4").with_values(
        **{"gpu.memory.usable_bytes": 1.24e9 + 11e6, "gpu.memory.nominal_bytes": 2e9}
    )
    work = Workload((Request("a", 200, 20), Request("b", 40, 9), Request("c", 200, 20), Request("d", 77, 1)))
    options = Options(mini_batches=2, max_resident_layers=2, act_share=0.4)
    plan = make_plan(hardware, small_model(layers=4), work, POLICIES["hybrid"], options)
    data: Data = yaml.safe_load(plan.to_yaml())
    return data


GOOD = small_plan()


def read(folder: Path, data: Data | bytes) -> Data:
    """The plan as the commands take it, as plain data again."""
    path = folder / "plan.yaml"
    path.write_bytes(data if isinstance(data, bytes) else yaml.safe_dump(data, sort_keys=False).encode())
    plan = read_plan(path)
    predicted_timeline(plan, path)
    found: Data = yaml.safe_load(plan.to_yaml())
    return found


def test_the_plan_reads_back(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == GOOD


def times(data: Data, factor: float) -> Data:
    """Every time of the plan, and what follows from times, `factor` times as long: consistent, and false."""
    said = data["prediction"]
    for key in ("total_s", "prefill_s", "decode_s", "decode_step_s"):
        said[key] *= factor
    said["throughput_tokens_per_s"] /= factor
    for stream in said["streams"].values():
        stream["bytes_per_s"] /= factor
    data["bound_total_s"] *= factor
    data["objective_total_s"] = said["total_s"]
    data["why"] = [why for why in data["why"] if not why.startswith("The simulation takes")]
    for one in data["what_if"]:
        one["tokens_per_s"] /= factor
        one["at_first_tokens_per_s"] /= factor
    return data


@pytest.mark.parametrize("factor", [0.01, 0.999, 1.001, 100.0])
def test_a_plan_whose_times_all_agree_and_are_false_is_refused(tmp_path: Path, factor: float) -> None:
    with pytest.raises(InputError, match="is not what this version predicts") as caught:
        read(tmp_path, times(copy.deepcopy(GOOD), factor))
    assert "prediction." in caught.value.where
    assert "Plan again" in caught.value.cure


def test_a_stream_that_is_busy_at_will_is_refused(tmp_path: Path) -> None:
    data = copy.deepcopy(GOOD)
    data["prediction"]["streams"]["d2h"]["busy_fraction"] /= 2
    with pytest.raises(InputError, match=r"streams\.d2h\.busy_fraction"):
        read(tmp_path, data)


def test_a_bound_above_the_plan_is_refused(tmp_path: Path) -> None:
    data = copy.deepcopy(GOOD)
    data["bound_total_s"] = 1.2 * data["prediction"]["total_s"]
    data["gap"] = 1 - 1.2
    with pytest.raises(InputError, match="above the plan"):
        read(tmp_path, data)


@pytest.mark.parametrize("cut", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_plan_is_refused(tmp_path: Path, cut: float) -> None:
    text = yaml.safe_dump(GOOD, sort_keys=False).encode()
    with pytest.raises(InputError):
        read(tmp_path, text[: int(len(text) * cut)])


@pytest.mark.parametrize(
    "text", [b"\xff\xfe" + "a: 1\n".encode("utf-16-le"), b"", b"[]", b"a: [" * 3000, b"\x00" * 100, b"{" * 10**5]
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(InputError):
        read(tmp_path, text)


# ---- mutations ---------------------------------------------------------------------------------------


def nodes(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """(path, container) of every value."""
    pairs = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [((*at, k), data) for k, _ in pairs] + [one for k, below in pairs for one in nodes(below, (*at, k))]


def mutate(data: Data, draw: random.Random) -> tuple[Any, ...]:
    path, container = draw.choice(nodes(data))
    key, value = path[-1], container[path[-1]]
    odd = [None, True, -1, 0, 1, "", "1e9", [], {}, float("nan"), 10**30]
    ways: list[Callable[[], Any]] = [
        lambda: container.pop(key),
        lambda: container.__setitem__(key, draw.choice(odd)),
        lambda: container.__setitem__(key, [value, value]),
        lambda: container.__setitem__(key, {"value": value}),
    ]
    if isinstance(value, float | int) and not isinstance(value, bool):
        factor = draw.choice([-1, 1e-20, 1e-3, 0.5, 0.99, 1.01, 2, 1e3, 1e20])
        ways += [lambda: container.__setitem__(key, type(value)(value * factor))] * 6
    if isinstance(value, list):
        ways += [value.reverse, lambda: value.extend(value[:1])]
    draw.choice(ways)()
    return path


@pytest.mark.parametrize("seed", range(200))
def test_a_mutated_plan_is_refused_or_the_same(tmp_path: Path, seed: int) -> None:
    data = copy.deepcopy(GOOD)
    path = mutate(data, random.Random(seed))
    try:
        found = read(tmp_path, data)
    except InputError as error:
        assert error.where
        assert len(str(error)) < 5000
        return
    for key, value in GOOD.items():
        assert key in NOT_VERIFIED or found[key] == value, f"{path} was believed"
