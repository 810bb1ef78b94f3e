"""Where a plan keeps things as pictures: the form of the cache over the context, and both memory budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from planner.forms import BLOCK_TOKENS, FORMS
from planner.plan import MemoryRecord, Plan
from planner.tables import size
from runtime.plots.style import FORMS as LOOKS
from runtime.plots.style import INK, SOFT, Look, figure_of, filled, in_style, legend_entry, one_panel, panels

FORM_NAMES = {
    "kv@gpu": "K and V on the GPU", "kv@host": "K and V on the host",
    "act@gpu": "activations on the GPU", "act@host": "activations on the host",
}  # fmt: skip
BELOW = 4.5
"""A legend below a panel begins so many of its letters under it."""
LEAST_SHOWN = 0.02
"""Of a budget: smaller lines are drawn as one."""
FAR = 0.05
"""Of the limit: a budget that takes less is drawn without it, or nothing of it could be seen."""
LINES = {
    "embedding, head and final norm": Look("#525252"), "resident weights": Look("#252525"),
    "weight slots": Look("#969696", "///"), "streamed weights": Look("#969696", "///"),
    "act@gpu blocks": LOOKS["act@gpu"], "kv@gpu blocks": LOOKS["kv@gpu"],
    "act@host blocks": LOOKS["act@host"], "kv@host blocks": LOOKS["kv@host"],
    "kv slots": Look("#6baed6", "xxx"), "act slots": Look("#fdae6b", "xxx"),
    "rebuilt K and V": Look("#c6dbef", "+++"),
    "hidden state (prefill)": Look("#a1d99b"), "hidden state": Look("#a1d99b"),
    "workspace (prefill)": Look("#41ab5d", "\\\\\\"), "workspace": Look("#41ab5d", "\\\\\\"),
    "store slots (prefill)": Look("#bcbddc", "xxx"), "store slots": Look("#bcbddc", "xxx"),
}  # fmt: skip
"""Lines of a budget that have a look of their own: what holds cache as the cache, weights in greys."""
OTHER, SMALL = "all smaller lines", Look("#e0e0e0", "...")


@in_style
def split_figure(plan: Plan, axes: Axes | None = None) -> Figure:
    """For every place in the context, how many requests keep the token there in which form, once all are generated."""
    panel = one_panel(axes, 6.2, 3.2)
    counts = form_counts(plan)
    places = BLOCK_TOKENS * np.arange(counts.shape[1] + 1)
    below = np.zeros(counts.shape[1])
    order = sorted(range(len(FORMS)), key=lambda i: -float(counts[i].sum()))
    handles: list[Artist] = []
    for i in order:
        if not counts[i].any():
            continue
        look, top = LOOKS[FORMS[i].name], below + counts[i]
        panel.fill_between(places, np.append(below, below[-1]), np.append(top, top[-1]), step="post", **filled(look))
        handles.append(legend_entry(look, FORM_NAMES[FORMS[i].name]))
        below = top
    prompts = {request.prompt_len for request in plan.workload.requests}
    if len(prompts) == 1:
        end = prompts.pop()
        panel.axvline(end, color="white", linewidth=2.4)  # or it could not be seen on dark
        panel.axvline(end, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="end of the prompt")
        handles += panel.get_legend_handles_labels()[0]
    panel.set(xlim=(0, places[-1]), ylim=(0, float(below.max())), xlabel="place in the context (tokens)")
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("requests")
    panel.set_title(f"Form of the cache over the context: {plan.prediction.act_share:.0%} activations")
    panel.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=BELOW, ncols=2)
    return figure_of(panel)


def form_counts(plan: Plan) -> npt.NDArray[np.int64]:
    """[forms, blocks]: of all requests, how many keep their n-th block in each form."""
    seen: Counter[tuple[str, int]] = Counter()
    for wave in plan.waves:
        for mini_batch in wave.mini_batches:
            for group in mini_batch.groups:
                for block, form in enumerate(group.blocks):
                    seen[form.name, block] += len(group.requests)
    found = np.zeros((len(FORMS), 1 + max(block for _, block in seen)), np.int64)
    for (name, block), count in seen.items():
        found[[form.name for form in FORMS].index(name), block] = count
    return found


@in_style
def memory_figure(plan: Plan) -> Figure:
    """Both budgets as bars: on the GPU one for prefill and one for decode, which share bytes; the line is the limit."""
    both = panels(1, 2, 4.8, 3.0)
    gpu, host = plan.memory["gpu"], plan.memory["host"]
    _budget(both[0], "GPU", gpu, (("prefill", ("always", "prefill")), ("decode", ("always", "decode"))))
    _budget(both[1], "host", host, (("", ("always", "prefill", "decode")),))
    return figure_of(both[0])


def _budget(axes: Axes, name: str, record: MemoryRecord, bars: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    is_far = 0 < record.planned_bytes < FAR * record.capacity_bytes
    scale, unit = _unit(record.planned_bytes if is_far else record.capacity_bytes)
    shown: dict[str, tuple[Look, float]] = {}
    for lane, (_, phases) in enumerate(reversed(bars)):
        left = 0.0
        parts = [(line.name, line.bytes) for line in record.lines if line.phase in phases and line.bytes]
        large = [(line, n) for line, n in parts if n >= LEAST_SHOWN * record.planned_bytes]
        small = sum(n for line, n in parts if (line, n) not in large)
        for line, nbytes in [*large, *([(OTHER, small)] if small else [])]:
            look = LINES.get(line, SMALL)
            axes.barh(lane, nbytes / scale, left=left, height=0.62, **filled(look))
            left += nbytes / scale
            label = line.removesuffix(" (prefill)")
            shown[label] = (look, max(nbytes, shown.get(label, (look, 0.0))[1]))
    capacity = record.capacity_bytes / scale
    if not is_far:
        axes.axvline(capacity, color="black", linewidth=1.1, linestyle=(0, (4, 2)))
    axes.set_xlim(0, max(0.0 if is_far else capacity, record.planned_bytes / scale) * 1.03)
    axes.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)])
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"memory ({unit})")
    used = record.planned_bytes / record.capacity_bytes
    axes.set_title(f"{name}: {size(record.planned_bytes)} of {size(record.capacity_bytes)} ({used:.0%})")
    ordered = sorted(shown.items(), key=lambda one: one[0] == OTHER)
    handles = [legend_entry(look, f"{label}, {size(nbytes)}") for label, (look, nbytes) in ordered]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=BELOW, ncols=1)
    axes.spines["left"].set_color(SOFT)


def _unit(nbytes: float) -> tuple[float, str]:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= scale:
            return scale, unit
    return 1.0, "bytes"
