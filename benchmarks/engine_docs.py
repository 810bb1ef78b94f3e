"""`python -m benchmarks.engine_docs`: the figures of docs/engine.md, from the records of three benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import crashes, efficiency
from benchmarks.records import RESULTS, between_marks

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "engine.md"
PEERS = "peer-runs.json"
MISSING = "Not measured yet."


def main() -> None:
    """Bring the document up to date."""
    DOCUMENT.write_text(with_figures(DOCUMENT.read_text()))
    print(f"written: {DOCUMENT}")


def with_figures(text: str) -> str:
    """`text` with the figures of the records that there are."""
    text = between_marks(text, "efficiency", _efficiency(_load(efficiency.RECORD)))
    text = between_marks(text, "peers", _peers(_load(PEERS)))
    return between_marks(text, "crashes", _crashes(_load(crashes.RECORD)))


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def _efficiency(record: dict[str, Any] | None) -> str:
    if record is None:
        return MISSING
    machine = record["machine"]
    setting = (
        f"{len(record['points'])} plans, each run {record['rounds']} times in rounds over all of them, on "
        f"{record['date']}: one core of an {machine['processor']} ({machine['cores']} cores), fp32, torch "
        f"{machine['torch']}. It took {record['took_s'] / 60:.0f} minutes."
    )
    return f"{setting}\n\n{efficiency.summary(record)}"


def _peers(record: dict[str, Any] | None) -> str:
    from benchmarks import peer_runs  # noqa: PLC0415  (it loads transformers)

    return MISSING if record is None else peer_runs.summary(record)


def _crashes(record: dict[str, Any] | None) -> str:
    return MISSING if record is None else crashes.summary(record)


if __name__ == "__main__":
    main()
