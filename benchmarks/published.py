"""`python -m benchmarks.published`: figures that others published, beside what this project predicts for them.

Predictions come from the shipped profiles and the cost model; nothing is fitted. Loads no torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from benchmarks.figures import FIGURES, Row, load_rows
from benchmarks.predictions import Prediction, predict
from benchmarks.records import RESULTS, write
from planner.errors import InputError
from planner.hardware import load_hardware
from planner.terminal import fail, show, written

RECORD = "published.json"
DIGITS = 6
"""Significant digits of a record: more would only differ between machines."""


def main(argv: list[str] | None = None) -> int:
    """Predict every row, print it, and with --write keep the record. Exit code 2 for a bad file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else there")
    parser.add_argument("--write", action="store_true", help=f"keep the record: benchmarks/results/{RECORD}")
    parser.add_argument("--data", type=Path, default=FIGURES, metavar="FILE", help="another file of figures")
    args = parser.parse_args(argv)
    try:
        record = make_record(load_rows(args.data))
        show(args.json, record, report(record))
        if args.write:
            written(write(RECORD, record))
    except InputError as error:
        fail(str(error))
        return error.exit_code
    return 0


def load() -> dict[str, Any]:
    """The committed record."""
    record: dict[str, Any] = json.loads((RESULTS / RECORD).read_text())
    return record


# ---- the record ----------------------------------------------------------------------------------


def make_record(rows: list[Row]) -> dict[str, Any]:
    """Plain data, the same on every machine: no times, no dates."""
    return {"schema_version": 1, "split": "validate", "rows": [row_record(row) for row in rows]}


def row_record(row: Row) -> dict[str, Any]:
    """One published figure, its prediction, and what that rests on."""
    found = predict(row)
    return {
        "id": row.id,
        "system": row.system,
        "hardware": row.hardware,
        "models": row.models,
        "batch": row.batch,
        "prompt_len": row.prompt_len,
        "gen_len": row.gen_len,
        "setting": row.setting,
        "published": row.published.value,
        "unit": row.published.unit,
        "source": row.published.source,
        "prediction": {"kind": found.kind, "low": _short(found.low), "high": _short(found.high)},
        "ratio": _ratio(found, row.published.value),
        "target": row.target.model_dump(exclude_none=True) if row.target else None,
        "holds": _holds(row, found),
        "caveat": row.caveat,
        "parts": {name: _short(value) for name, value in found.parts.items()},
        "rates": _provenance(row, found),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _ratio(found: Prediction, published: float) -> dict[str, float | None]:
    low = None if found.low is None else _short(found.low / published)
    return {"low": low, "high": _short(found.high / published)}


def _holds(row: Row, found: Prediction) -> bool:
    """A point within its target, a range around the published figure, a bound not below it."""
    published = row.published.value
    if found.kind == "point":
        return row.target is None or row.target.met(found.high, published)
    return (found.low or 0.0) <= published <= found.high


def _provenance(row: Row, found: Prediction) -> list[dict[str, Any]]:
    """Value, kind and source of every rate that decides the prediction, from the profile itself."""
    profile = load_hardware(row.hardware).to_plain()
    rates = []
    for key in found.rates:
        node = profile
        for part in key.split("."):
            node = node[part]
        value = node["value"] if "value" in node else max(rate for s in node["slices"] for _, rate in s["points"])
        rates.append({"key": key, "value": value, "kind": node["kind"], "source": node["source"]})
    host = row.host_memory_bytes_per_s
    if host is not None:
        rates.append({"key": "host_memory_bytes_per_s", "value": host.value, "kind": host.kind, "source": host.source})
    return rates


# ---- for people ----------------------------------------------------------------------------------


def report(record: dict[str, Any]) -> RenderableType:
    """The table in 80 columns, then what each row leaves open and what its rates rest on."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("figure", "published", "predicted", "ratio", "holds"):
        table.add_column(name, no_wrap=True)
    for row in record["rows"]:
        table.add_row(row["id"], _published(row), _predicted(row), _ratios(row), "yes" if row["holds"] else "NO")
    caveats = [f"- {row['id']}: {row['caveat']}." for row in record["rows"] if row["caveat"]]
    rates = [f"- {row['id']}: {_kinds(row)}" for row in record["rows"]]
    return Group(table, "Why a row is no point", *caveats, "", "What the rates of the shipped profiles rest on", *rates)


def markdown_table(record: dict[str, Any]) -> str:
    """The rows of a record as Markdown, caveats below the table."""
    lines = ["| figure | published | predicted | predicted / published | holds | rates |", "|---|---|---|---|---|---|"]
    for row in record["rows"]:
        cells = (f"`{row['id']}`", _published(row), _predicted(row), _ratios(row), _verdict(row), _kinds(row))
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- `{row['id']}`: {row['caveat']}." for row in record["rows"] if row["caveat"]]
    return "\n".join([*lines, "", *notes])


def _figure(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "saved" else f"{value:.2f}"


def _published(row: dict[str, Any]) -> str:
    unit = "tok/s" if row["unit"] == "tokens/s" else row["unit"]  # the table has 80 columns
    return f"{_figure(row['published'], row['unit'])} {unit}"


def _predicted(row: dict[str, Any]) -> str:
    found, unit = row["prediction"], row["unit"]
    high = _figure(found["high"], unit)
    if found["kind"] == "range":
        return f"{_figure(found['low'], unit)} to {high}"
    return f"at most {high}" if found["kind"] == "at most" else high


def _ratios(row: dict[str, Any]) -> str:
    low, high = row["ratio"]["low"], row["ratio"]["high"]
    if row["prediction"]["kind"] == "range":
        return f"{low:.2f} to {high:.2f}"
    return f"<= {high:.2f}" if row["prediction"]["kind"] == "at most" else f"{high:.2f}"


def _verdict(row: dict[str, Any]) -> str:
    """Whether the prediction holds, and against what."""
    target, answer = row["target"] or {}, "yes" if row["holds"] else "NO"
    if row["prediction"]["kind"] == "range":
        return f"{answer}, in range"
    if row["prediction"]["kind"] == "at most":
        return f"{answer}, below"
    if "within_points" in target:
        return f"{answer}, +-{100 * target['within_points']:g} points"
    return f"{answer}, x{target['within_factor']:g}" if "within_factor" in target else answer


def _kinds(row: dict[str, Any]) -> str:
    """`pinned link published, ...`: the provenance of each rate, in a few words."""
    names = {
        "link.h2d_bytes_per_s": "pinned link", "link.pageable_h2d_bytes_per_s": "pageable link",
        "gpu.achieved.gemm_flops_by_rows.float16": "GEMM", "gpu.achieved.memory_bytes_per_s": "GPU memory",
        "host_memory_bytes_per_s": "host memory",
    }  # fmt: skip
    by_kind: dict[str, list[str]] = {}
    for rate in row["rates"]:
        by_kind.setdefault(rate["kind"], []).append(names[rate["key"]])
    return "; ".join(f"{kind}: {', '.join(what)}" for kind, what in by_kind.items())


if __name__ == "__main__":
    raise SystemExit(main())
