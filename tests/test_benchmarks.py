"""README's figures are those of the committed record."""

from __future__ import annotations

from benchmarks.demo import ROOT, load, table, with_table


def test_readme_shows_the_record() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, load()) == readme, "run: python -m benchmarks.demo --readme-only"
    assert table(load()).splitlines()[2] in readme


def test_the_record_holds_what_the_project_promises() -> None:
    record = load()
    assert record["mean_decode_step_error"] <= 0.10
    assert record["order_holds"]
    assert {run["policy"] for run in record["policies"]} == {"hybrid", "kv-only", "act-only"}
