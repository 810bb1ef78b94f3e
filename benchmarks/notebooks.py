"""`python -m benchmarks.notebooks [NAME ...]`: executes the notebooks and keeps their outputs."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from planner.files import write_whole

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PATIENCE_S = 280
"""For one cell."""


def main() -> None:
    """Execute what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="how the names begin, like 03; default: all notebooks")
    parser.add_argument("--check", action="store_true", help="execute, and leave the files as they are")
    given = parser.parse_args()
    if any(not notebooks([name]) for name in given.names):
        parser.error(f"no notebook begins so; known: {', '.join(path.stem for path in notebooks())}")
    for path in notebooks(given.names):
        started = time.perf_counter()
        executed = execute(path)
        if not given.check:
            write_whole(path, nbformat.writes(executed) + "\n")
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)


def notebooks(names: list[str] | None = None) -> list[Path]:
    """Paths of all, or of those whose names begin so."""
    return sorted(path for path in FOLDER.glob("*.ipynb") if path.name.startswith(tuple(names or [""])))


def execute(path: Path) -> Any:
    """The notebook at `path` with the outputs of a fresh kernel, run in an empty folder; raises what a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        client = NotebookClient(
            notebook, timeout=PATIENCE_S, kernel_name=KERNEL["name"], record_timing=False,
            resources={"metadata": {"path": folder}},
        )  # fmt: skip
        client.execute(env=environment)
    return notebook


if __name__ == "__main__":
    main()
