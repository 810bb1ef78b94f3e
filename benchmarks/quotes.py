"""`python -m benchmarks.quotes`: figures that sentences of the documents quote from records, and which are stale.

Tables are written from the records whole (`benchmarks.accuracy_docs`, `benchmarks.demo`, `benchmarks.paper`). What a
sentence quotes is listed here with the words around it: a document that says anything else is named.

"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paper_points import FREE, TOGETHER, speed
from benchmarks.records import RESULTS

ROOT = Path(__file__).parent.parent


class Quote(NamedTuple):
    """Words that a document must have, however its lines are broken."""

    document: str
    record: str
    words: str

    @property
    def holds(self) -> bool:
        text = " ".join((ROOT / self.document).read_text(encoding="utf-8").split())
        return self.words in text


def quotes() -> Iterator[Quote]:
    """Every quoted figure, as its record has it now."""
    yield from _paper()
    yield from _accuracy()
    yield from _simulator()


def main() -> int:
    """Names every stale sentence; 1 if there is one."""
    stale = [quote for quote in quotes() if not quote.holds]
    for quote in stale:
        print(f"{quote.document} does not say, as {quote.record} does: {quote.words}")
    return 1 if stale else 0


def _load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def _paper() -> Iterator[Quote]:
    name = "paper.json"
    if not (RESULTS / name).exists():  # not computed yet, as the page says
        return
    points = {(p["model"], p["prompt_len"]): p for p in _load(name)["points"]}
    one = points["opt-30b", 1024]
    kv, act, ours = (f"{speed(one, policy):.2f}" for policy in ("kv-only", "act-only", FREE[1]))
    yield Quote(
        "README.md", name, f"{kv} tokens/s with K and V only, {act} with activations only, {ours} mixed."
    )  # fmt: skip
    yield Quote("README.md", name, f"The paper's own heuristic comes to {speed(one, 'hybridserve'):.2f}")
    as_it_runs, pinned = speed(one, "flexgen"), one["stages"]["pinned"]
    yield Quote(
        "README.md", name,
        f"FlexGen is predicted at {as_it_runs:.2f} as it runs, and at {pinned:.2f} if its cache were in pinned memory",
    )  # fmt: skip

    for policy in TOGETHER:
        yield Quote("docs/command-line.md", name, f" {policy} {speed(one, policy):.4g} ")


def _accuracy() -> Iterator[Quote]:
    record, reruns = _load("accuracy.json"), _load("accuracy-reruns.json")
    yield Quote("README.md", "accuracy.json", f"{len(record['points'])} small jobs, executed on one CPU core")
    means = sorted(100 * one["decode_step_s"]["mean"] for one in reruns)
    words = (
        f"{len(means)} earlier runs of the grid came out at {means[0]:.1f} % to {means[-1]:.1f} % for the decode step"
    )
    yield Quote("README.md", "accuracy-reruns.json", words)


def _simulator() -> Iterator[Quote]:
    record = _load("simulator.json")
    large, grid = record["large"], record["grid"]
    operations = f"{large['operations']:,}".replace(",", " ")
    yield Quote(
        "docs/architecture.md", "simulator.json",
        f"{operations} operations, is simulated in {large['simulate_s']:.2f} s and explained in "
        f"{large['explain_s']:.1f} s",
    )  # fmt: skip
    feasible = sum("plan_s" in one for one in grid)
    yield Quote(
        "docs/architecture.md", "simulator.json",
        f"{feasible} of {len(grid)} jobs are feasible; {record['processes']} processes planned and simulated all in "
        f"{record['grid_s']:.0f} s",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
