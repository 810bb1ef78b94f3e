"""The notebooks run as they are, use public names alone, and are committed with what they print."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

import hybridserve
from benchmarks.notebooks import FOLDER, execute, notebooks

MOST_LINES = 14
"""Of a cell."""
MAY_IMPORT = {"hybridserve", "pathlib"}


def named(path: Path) -> str:
    return path.stem


def cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def kinds(cell: Any) -> set[str]:
    """Of the outputs: mime types, names of streams, errors."""
    found: set[str] = set()
    for output in cell.outputs:
        found |= set(output.get("data", ())) | {output.output_type}
    return found


def test_there_are_four_and_each_is_introduced() -> None:
    assert [path.stem[:2] for path in notebooks()] == ["01", "02", "03", "04"]
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in said for path in notebooks())


@pytest.mark.parametrize("path", notebooks(), ids=named)
def test_it_uses_public_names_in_short_cells(path: Path) -> None:
    for cell in cells(path):
        assert len(cell.source.splitlines()) <= MOST_LINES
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert set(names) <= MAY_IMPORT
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hs":
                assert node.attr in hybridserve.__all__
            assert not (isinstance(node, ast.Attribute) and node.attr.startswith("_"))


@pytest.mark.parametrize("path", notebooks(), ids=named)
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    found = cells(path)
    assert [cell.execution_count for cell in found] == list(range(1, len(found) + 1)), (
        "run: python -m benchmarks.notebooks"
    )
    assert not any("error" in kinds(cell) for cell in found)
    assert any("image/png" in kinds(cell) for cell in found)
    assert "/tmp" not in path.read_text(encoding="utf-8"), "a path of the machine that executed it"


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks(), ids=named)
def test_it_runs(path: Path) -> None:
    """In a fresh kernel: each cell gives the kinds of output that the committed one shows, beside warnings."""
    again = [cell for cell in execute(path).cells if cell.cell_type == "code"]
    for new, old in zip(again, cells(path), strict=True):
        assert kinds(old) <= kinds(new), new.source
