"""What every result of the Python API can do: print itself, show itself in a notebook, become data or a data frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from planner.errors import InputError
from planner.html import as_html, as_text

if TYPE_CHECKING:
    import pandas as pd


class Result(ABC):
    """`print(found)` gives the report of the command line, and a notebook shows the same as tables."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Plain data: what the command prints with `--json`. SI units in the keys."""

    @abstractmethod
    def report(self) -> RenderableType:
        """What the command prints for people, as a rich renderable."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """The same as flat records, the rows of `to_frame`."""

    def to_frame(self) -> pd.DataFrame:
        """`rows` as a pandas DataFrame; InputError where pandas, which is optional, is missing."""
        try:
            import pandas  # noqa: PLC0415
        except ImportError:
            cure = "pip install 'hybridserve[notebooks]', or use rows(), which needs nothing"
            raise InputError("a data frame needs pandas", where="to_frame", cure=cure) from None
        return pandas.DataFrame(self.rows())

    def __str__(self) -> str:
        return as_text(self.report())

    def _repr_html_(self) -> str:
        return as_html(self.report())
