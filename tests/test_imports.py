"""The arrows of the architecture never point back."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"hwprofiles", "planner", "runtime", "commands", "hybridserve", "benchmarks", "notebooks", "tests"}
MAY_IMPORT = {
    "hwprofiles": set[str](), "planner": {"planner", "hwprofiles"}, "runtime": OURS - {"hybridserve", "commands"},
    "commands": {"commands", "planner", "runtime", "hwprofiles"},
}  # fmt: skip
HEAVY = ("torch", "transformers", "matplotlib", "safetensors")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("package", ["hwprofiles", "planner", "runtime", "commands"])
def test_packages_import_only_what_they_may(package: str) -> None:
    assert files(package)
    for path in files(package):
        front_door = {"hybridserve"} if path.name == "entry.py" else set()  # what it is there to import
        wrong = imported(path) & (OURS - MAY_IMPORT[package] - front_door)
        assert not wrong, f"{path.name} imports {wrong}"


def test_planner_names_no_heavy_package() -> None:
    for path in files("planner") + files("hwprofiles"):
        assert not imported(path) & set(HEAVY), path.name


def test_planner_loads_no_heavy_package() -> None:
    """Not even through what it depends on: planning must work where only the light dependencies are."""
    modules = ["hwprofiles"] + [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files("planner")
    ]
    assert {"planner.planning", "planner.simulator", "planner.schedule"} <= set(modules)
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {(*HEAVY, 'runtime', 'hybridserve')!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
