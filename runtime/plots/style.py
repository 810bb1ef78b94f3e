"""How every picture looks: told apart in grey and by colour-blind readers, and made without touching pyplot.

Colours differ in lightness, too; and whatever a colour says, a mark, a dash or a hatching says again.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from planner.files import write_whole

P = ParamSpec("P")
T = TypeVar("T")

INK, SOFT, FAINT = "#222222", "#6e6e6e", "#d0d0d0"
DPI = 110
WIDTH, HEIGHT = 5.5, 3.6
"""Inches of one panel."""
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 9, "axes.labelcolor": INK, "axes.edgecolor": SOFT, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
    "grid.color": FAINT, "grid.linewidth": 0.6, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False,
    "lines.linewidth": 1.6, "lines.markersize": 5.5, "hatch.linewidth": 0.6,
    "figure.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "hybridserve",
}  # fmt: skip
"""matplotlib's settings for every picture, set only while one is made."""


@dataclass(frozen=True)
class Look:
    """How one thing is drawn, wherever it is."""

    colour: str
    hatch: str = ""
    mark: str = "o"
    dash: str = "-"


PREDICTED, MEASURED = Look("#9ecae1", "///", "o", "--"), Look("#08519c", "", "s", "-")

POLICIES = {
    "hybrid": Look("#08519c", "", "o", "-"),
    "hybridserve": Look("#6baed6", "...", "D", "-."),
    "act-only": Look("#e69f00", "\\\\\\", "^", ":"),
    "kv-only": Look("#d95f02", "///", "s", "--"),
    "resident": Look("#1b9e77", "|||", "v", "-"),
    "flexgen": Look("#969696", "xxx", "X", "--"),
    "kvpr": Look("#cc79a7", "+++", "P", ":"),
    "hcache": Look("#7fbf7b", "ooo", "<", "-."),
    "deepspeed": Look("#b5b5b5", "---", ">", "--"),
    "accelerate": Look("#525252", "***", "*", ":"),
}
"""Every policy, ours and of other systems."""
OTHERS = (
    Look("#08519c", "", "o", "-"), Look("#d95f02", "///", "s", "--"), Look("#222222", "...", "^", ":"),
    Look("#7570b3", "xxx", "D", "-."), Look("#1b9e77", "\\\\\\", "v", "-"), Look("#cc79a7", "+++", "P", "--"),
    Look("#8c6d31", "|||", "X", ":"), Look("#6baed6", "---", "<", "-."),
)  # fmt: skip
"""What has no look of its own, in turn."""

KINDS = {
    "load_weights": Look("#4d4d4d"),
    "load_kv": Look("#3182bd", "///"),
    "load_act": Look("#fdbf6f", "..."),
    "embed": Look("#bdbdbd"),
    "prefill": Look("#74c476"),
    "rebuild": Look("#e6550d", "\\\\\\"),
    "forward": Look("#a6dba0"),
    "sample": Look("#737373"),
    "begin_decode": Look("#222222"),
    "store": Look("#756bb1", "xxx"),
}
"""Kinds of operations; loading and rebuilding activations are of one family of colours."""
FORMS = {
    "kv@gpu": Look("#08519c"), "kv@host": Look("#9ecae1", "///"),
    "act@gpu": Look("#e6550d", "\\\\\\"), "act@host": Look("#fdd0a2", "..."),
}  # fmt: skip
"""Cache forms: dark on the GPU, light on the host."""
STREAM_NAMES = {"h2d": "link to GPU", "compute": "compute", "d2h": "link to host"}


class Picture(Figure):
    """A figure of its own, unknown to pyplot, that a notebook shows as it is."""

    def _repr_png_(self) -> bytes:
        return content(self, "png")


def in_style(draw: Callable[P, T]) -> Callable[P, T]:
    """`draw` under `STYLE`, whatever the caller has set; his settings are untouched."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(cast(Any, STYLE)):
            return draw(*args, **kwargs)

    return styled


def panels(rows: int = 1, columns: int = 1, width: float = WIDTH, height: float = HEIGHT, **shared: Any) -> list[Axes]:
    """Empty panels of a new picture, row by row; `width` and `height` in inches of each."""
    picture = Picture(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    found = picture.subplots(rows, columns, squeeze=False, **shared)
    return [cast(Axes, one) for line in found for one in line]


def one_panel(axes: Axes | None, width: float = WIDTH, height: float = HEIGHT) -> Axes:
    """`axes`, or the only panel of a new picture."""
    return axes if axes is not None else panels(width=width, height=height)[0]


def figure_of(axes: Axes) -> Figure:
    """The figure that a panel is in."""
    found = axes.get_figure(root=True)
    assert isinstance(found, Figure)
    return found


def look_of(name: str, index: int = 0) -> Look:
    """Of a policy by its name, else one of the others in turn."""
    return POLICIES.get(name, OTHERS[index % len(OTHERS)])


def filled(look: Look) -> dict[str, Any]:
    """Arguments of bars and areas: light hatching on dark, dark on light."""
    red, green, blue = to_rgb(look.colour)
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    return {"facecolor": look.colour, "hatch": look.hatch, "edgecolor": "white" if is_dark else SOFT, "linewidth": 0.4}


def legend_entry(look: Look, label: str) -> Patch:
    """What a legend shows for bars and areas that look so."""
    return Patch(label=label, **filled(look))


def content(figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    """`figure` as a file of `kind`: png, svg or pdf."""
    found = io.BytesIO()
    with mpl.rc_context(cast(Any, STYLE)):
        figure.savefig(found, dpi=dpi, format=kind)
    return found.getvalue()


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a picture, whole or not at all; its kind is that of `path`. InputError where it cannot be written."""
    write_whole(path, content(figure, path.suffix.removeprefix("."), dpi))
