"""Shipped hardware profiles: data only, and this finder."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The names `--hardware` accepts."""
    return sorted(p.stem for p in _HERE.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The YAML file of a shipped profile."""
    return _HERE / f"{name}.yaml"
