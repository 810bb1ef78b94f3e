"""`python -m benchmarks.demo`: runs the demo, keeps its record, and writes README's figures and picture from it."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, between_marks, write

ROOT = Path(__file__).parent.parent
RECORD = "demo.json"
METHOD = (
    "Predicted before each run, from a profile measured before and a gauge of the machine's speed; of three runs each, "
    "the one in the middle by predicted over measured."
)
PICTURE = ROOT / "docs" / "images" / "demo.png"


def main() -> None:
    """Measure (unless --readme-only), then bring README up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme-only", action="store_true", help="only write README again from the record")
    if not parser.parse_args().readme_only:
        measure()
    text = (ROOT / "README.md").read_text()
    (ROOT / "README.md").write_text(with_table(text, load()))


def measure() -> None:
    """Run the demo here and keep its record and its picture."""
    from runtime.demo import run_demo  # noqa: PLC0415  (torch is not needed to write README)

    with tempfile.TemporaryDirectory() as folder:
        shown = run_demo(Path(folder), lambda done, of, text: print(f"{done}/{of} {text}", flush=True))
        record = {k: v for k, v in shown.result().items() if k != "files"}
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        PICTURE.write_bytes((Path(folder) / "demo.png").read_bytes())
    for run in record["policies"]:
        run.pop("why")
        run["split"] = "validate"
    record["method"] = METHOD
    write(RECORD, record)


def load() -> dict[str, Any]:
    """The committed record."""
    record: dict[str, Any] = json.loads((RESULTS / RECORD).read_text())
    return record


def table(record: dict[str, Any]) -> str:
    """The figures of a record as Markdown."""
    machine = record["machine"]
    rows = [
        "| policy | tokens/s, predicted | measured | decode step, predicted | measured | error |",
        "|---|---|---|---|---|---|",
    ]
    for run in sorted(record["policies"], key=lambda r: -r["measured"]["throughput_tokens_per_s"]):
        found = run["measured"]
        rows.append(
            f"| {run['policy']} | {run['throughput_tokens_per_s']:.1f} | {found['throughput_tokens_per_s']:.1f} "
            f"| {1e3 * run['decode_step_s']:.0f} ms | {1e3 * found['decode_step_s']:.0f} ms "
            f"| {run['error']['decode_step_s']:+.1%} |"
        )
    errors = [abs(run["error"]["decode_step_s"]) for run in record["policies"]]
    curve = [abs(p["predicted_decode_step_s"] / p["measured_decode_step_s"] - 1) for p in record["curve"]]
    rows += [
        "",
        f"Scale model of {record['scale_model_of']}, fp32 on one core of an {machine['processor']} "
        f"({machine['cores']} cores), torch {machine['torch']}. "
        f"Decode step: mean error {sum(errors) / len(errors):.1%}, "
        f"worst {max(errors):.1%} (n = {len(errors)} policies); over the ACT curve mean {sum(curve) / len(curve):.1%}, "
        f"worst {max(curve):.1%} (n = {len(curve)}). "
        f"{record.get('method', 'Predicted before each run, from a profile of kernels and engine overhead.')}",
    ]
    return "\n".join(rows)


def with_table(readme: str, record: dict[str, Any]) -> str:
    """`readme` with the demo's figures replaced."""
    return between_marks(readme, "demo", table(record))


if __name__ == "__main__":
    main()
