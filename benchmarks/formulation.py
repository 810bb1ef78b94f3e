"""`python -m benchmarks.formulation`: docs/formulation.md, from the code of the split problem and a model it built.

The words are in `formulation_template.md`. Algebra, constants, counts and rows come from the code: docstrings of the
families, constants of the search, a tiny model as `build` makes it. A family or variable without words is an error.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from string import Template
from typing import Any

from benchmarks import shadow_prices
from benchmarks.records import RESULTS
from planner import (
    best,
    bins,
    deciding,
    epochs,
    estimate,
    few,
    ilp,
    prefill_sizing,
    rounding,
    search,
    split_solver,
    waves,
)
from planner import shadow_prices as prices
from planner.composition import compose
from planner.costs import CostModel
from planner.hardware import load_hardware
from planner.ilp import build
from planner.model import load_model
from planner.policies import POLICIES
from planner.search import Options, Search
from planner.split_problem import SplitProblem
from planner.workload import Request, Workload

DOCUMENT = Path(__file__).parent.parent / "docs" / "formulation.md"
TEMPLATE = Path(__file__).parent / "formulation_template.md"

VARIABLES = {
    "n": ("n[b,g,f,e]", "blocks", "of bin `b`, lifetime `g` in form `f` during epoch `e`, requests still generating"),
    "final": ("final[b,g,f]", "blocks", "in form `f` in the end: what memory must hold"),
    "used": ("used[f,s]", "0 or 1", "whether form `f` is in use throughout run `s` of epochs"),
    "rebuilds": ("rebuilds[s]", "0 or 1", "whether any block is rebuilt in run `s`; for decided mini-batches only"),
    "rebuilt_t": (
        "rebuilt_t[b,e]",
        "time",
        "of rebuilding in one step of epoch `e`, all mini-batches; for decided ones only",
    ),
    "further": ("further[b,s]", "calls", "of attention in a layer and step beyond those counted in compute"),
    "resident_layers": ("resident", "layers", "that the weights on the GPU come to"),
    "kept_parts": (
        "kept_parts[k]",
        "0 or 1",
        "whether of every layer `k` parts are resident, and not of all one more",
    ),
    "t": ("t[b,e]", "time", "of bin `b` in one step of epoch `e`, all its mini-batches"),
    "weights_t": ("weights_t[b]", "time", "of weight transfers in one step that fall to bin `b`"),
    "early": ("early[b,e]", "time", "of the link in epoch `e` that falls into an earlier step; in the relaxation only"),
    "kv_slot_gib": ("kv_slot", "GiB", "of one staging buffer for K and V of a mini-batch and layer"),
    "act_slot_gib": ("act_slot", "GiB", "of one staging buffer for activations of a mini-batch and layer"),
    "rebuilt_gib": ("rebuilt", "GiB", "of the buffer for rebuilt K and V of a mini-batch and layer"),
    "overlay_gib": ("overlay", "GiB", "that the buffers of prefill and those of decode share"),
    "prefill_t": ("prefill", "time", "of prefill"),
    "prefill": ("chosen[k]", "0 or 1", "whether chunks and passes have size `k`"),
    "kept": ("kept[k]", "layers", "resident where size `k` is chosen, else 0"),
}
"""By the start of the built name: symbol, unit, meaning."""

FAMILY_WORDS = {
    "cover_every_block": "Every block has a form, and what is held is held to the end.",
    "append_only": (
        "A block never changes its form. In the epoch in which a lifetime ends, the relaxation lets its requests end "
        "in any order; a plan deals them the same mix."
    ),
    "forced_act_share": "Only with `--act-share`.",
    "slots_hold_a_mini_batch": "Buffers hold what the largest mini-batch of each bin has in one layer.",
    "gpu_memory": (
        "Prefill and decode lie on the same bytes, the overlay. `outer` are embeddings and final norm, `capacity` is "
        "the usable memory less its reserve."
    ),
    "host_memory": "Streamed weights and host blocks. The margin is what rounding to pinned slabs may add.",
    "attention_calls": "Blocks in another form are attended in a call of their own.",
    "rebuild_floors": (
        "Of decided mini-batches only: few blocks take as long to rebuild as some do, since a product of few rows is "
        "all latency. Lines through the lower hull of what the cost model says for "
        f"{', '.join(map(str, bins.REBUILT))} and all blocks."
    ),
    "step_time": "A step is no shorter than either stream.",
    "prefill_time": "The same for prefill, with both directions of the link, at one of the sizes.",
    "link_time": "In the relaxation only: what runs ahead of its step is still carried by the one link.",
}
"""What each family says, in a sentence or two. Its docstring is the algebra."""
INDEXED = re.compile(
    r"^(n|final|t|weights_t|early|used|rebuilds|rebuilt_t|further|prefill|kept|kept_parts)((?:_\d+)+)$"
)


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(document())
    print(f"written: {DOCUMENT}")


def document() -> str:
    """docs/formulation.md."""
    relaxed, exact = example()
    model, forms = build(relaxed), [form.name for form in relaxed.forms]
    return Template(TEMPLATE.read_text()).substitute(
        variables=variables_table(build(exact), model),
        data=data_table(),
        families="\n\n".join(family_text(family) for family in ilp.FAMILIES),
        link_use=doc(ilp.link_use), host_use=doc(ilp.host_use),
        counts=counts_table(model, build(exact)),
        objective=in_symbols(model.problem.objective, forms),
        rows=rows_text(model, forms),
        prices=shadow_prices.table(price_record()["summary"]), price_notes=_price_notes(price_record()),
        **constants(),
    )  # fmt: skip


def constants() -> dict[str, str]:
    """Numbers of the code that the words name."""
    return {
        "tie_break": f"{ilp.TIE_BREAK:g}", "both_ties": f"{2 * ilp.TIE_BREAK:g}", "epochs": str(epochs.MAX_EPOCHS),
        "tolerance": f"{search.TOLERANCE:.1%}",
        "simplicity": f"{Options().simplicity:.2%}",
        "chunks": f"{prefill_sizing.SMALL_CHUNK} (or the two longest prompts) or {prefill_sizing.CHUNK_TOKENS[-1]}",
        "stretches": str(ilp.STRETCHES),
        "dealt": " or ".join(f"{share:.0%}" for share in sorted({share for shares in waves.DEALT for share in shares})),
        "every_way": f"{best.EVERY_WAY_GAP:.0%}", "one_ratio": str(few.MOST_OF_ONE_RATIO),
        "few_requests": str(few.FEW_REQUESTS), "few_alike": str(few.FEW_ALIKE),
        "second_look": f"{best.DOMINANCE_GAP:.2%}", "drift": f"{rounding.STICK:.0%}",
        "max_bins": str(bins.MAX_BINS), "few": f"{split_solver.FEW:.0%}", "some": f"{split_solver.SOME:.0%}",
        "roundings": str(deciding.MAX_ROUNDINGS), "nodes": str(search.MAX_NODES),
        "solves": str(search.MAX_EXACT_SOLVES),
        "cache_slots": str(search.MOST_CACHE_SLOTS), "sampled": str(estimate.SAMPLED_STEPS),
        "price_step": f"{prices.SMALL_STEP:.0%}", "price_holds": f"{prices.PRICE_HOLDS_UP_TO:.0%}",
        "price_agrees": f"{prices.AGREE:.0%}",
    }  # fmt: skip


def example() -> tuple[SplitProblem, SplitProblem]:
    """A job small enough to read: its relaxation for one or two mini-batches, and the problem of two unlike ones."""
    work = Workload(tuple(Request(str(i), prompt, 18) for i, prompt in enumerate((32, 32, 32, 48))))
    costs = CostModel(load_hardware("t4"), load_model("opt-6.7b"))
    mine = Search(costs, work, POLICIES["hybrid"].forms, Options())
    relaxed = mine.relaxed(1, 2)
    batches = compose([4, 4, 4, 5], 2)
    exact, _ = bins.exact_bins(costs, work.requests, mine.epochs, batches)
    return relaxed, replace(mine.relaxed(2, 2), bins=exact, decided=True, head_start=0)


def doc(function: Any) -> str:
    return inspect.getdoc(function) or ""


def family_text(family: Any) -> str:
    """Name, words, algebra."""
    return f"### `{family.__name__}`\n\n{FAMILY_WORDS[family.__name__]}\n\n```text\n{doc(family)}\n```"


def variables_table(*models: Any) -> str:
    """Every variable of built models; KeyError for one without words."""
    kinds = {_kind(variable.name): variable for model in models for variable in model.problem.variables()}
    lines = ["| Variable | Unit | Range | Meaning |", "|---|---|---|---|"]
    for kind, (symbol, unit, meaning) in VARIABLES.items():
        variable = kinds.pop(kind)
        whole = ", whole" if variable.cat == "Integer" else ""
        top = "" if variable.upBound is None else "L" if kind == "resident_layers" else f"{variable.upBound:g}"
        span = f"{variable.lowBound:g} to {top}" if top else f">= {variable.lowBound:g}"
        lines.append(f"| `{symbol}` | {unit} | {span}{whole} | {meaning} |")
    if kinds:
        raise KeyError(f"variables without words: {', '.join(kinds)}")
    return "\n".join(lines)


def data_table() -> str:
    """Fields of the split problem that the code itself explains."""
    source = inspect.getsource(SplitProblem)
    lines = ["| Field | Meaning |", "|---|---|"]
    for field in fields(SplitProblem):
        found = re.search(rf'^    {field.name}: [^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
        if found:
            lines.append(f"| `{field.name}` | {' '.join(found[1].split())} |")
    return "\n".join(lines)


def counts_table(relaxed: Any, exact: Any) -> str:
    """Rows of each family, and columns, of both models."""
    lines = ["| Family | Rows, relaxation | Rows, two unlike mini-batches |", "|---|---|---|"]
    for name in relaxed.rows:
        lines.append(f"| `{name}` | {len(relaxed.rows[name])} | {len(exact.rows[name])} |")
    sizes = [(len(m.problem.constraints()), len(m.problem.variables())) for m in (relaxed, exact)]
    lines.append(f"| rows in all | {sizes[0][0]} | {sizes[1][0]} |")
    return "\n".join([*lines, f"| columns | {sizes[0][1]} | {sizes[1][1]} |"])


def rows_text(model: Any, forms: list[str]) -> str:
    """Every row of a built model, by family; numbers on the right-hand side."""
    parts = []
    for family, found in model.rows.items():
        if not found:
            continue
        rows = [_row(row, forms) for row in found]
        parts.append("\n".join([f"{family}:", *(f"    {row}" for row in rows)]))
    return "\n\n".join(parts)


def _row(row: Any, forms: list[str]) -> str:
    sense = {-1: "<=", 0: "=", 1: ">="}[row.sense]
    return f"{in_symbols(row, forms)} {sense} {_number(-row.constant)}"


def in_symbols(expression: Any, forms: list[str]) -> str:
    """Sum of the terms of a PuLP expression, constants left out."""
    said = ""
    for variable, factor in expression.items():
        if not factor:
            continue
        size = "" if abs(factor) == 1 else f"{_number(abs(factor))} "
        sign = ("-" if factor < 0 else "") if not said else " - " if factor < 0 else " + "
        said += f"{sign}{size}{_symbol(variable.name, forms)}"
    return said or "0"


def _symbol(name: str, forms: list[str]) -> str:
    kind, indices = _kind(name), name.removeprefix(_kind(name)).split("_")[1:]
    place = {"n": 2, "final": 2, "used": 0}.get(kind)
    if place is not None:
        indices[place] = forms[int(indices[place])]
    symbol = VARIABLES[kind][0].partition("[")[0]
    return f"{symbol}[{','.join(indices)}]" if indices else symbol


def _kind(name: str) -> str:
    found = INDEXED.match(name)
    return found[1] if found else name


def _number(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def price_record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / shadow_prices.RECORD).read_text())
    return found


def _price_notes(record: dict[str, Any]) -> str:
    """What the table leaves out: prices of nothing, and every case that the bound or the objective contradicts."""
    found = record["summary"]
    how = ", ".join(f"{count} {name}" for name, count in found["how"].items())
    lines = [
        f"{found['cases']} cases ({how}). In {found['worth_nothing']} a resource was said to be worth nothing, "
        f"and the LP solved again gained {found['worth_nothing_gained_at_most']:.1e} of its optimum at most. Errors "
        "are over the larger of the two gains. More than 10 % apart, of bound and objective:",
        "",
    ]
    for case in filter(shadow_prices.counts, record["cases"]):
        job, of = case["job"], case["resource"].replace("_", " ")
        for name in ("bound", "objective"):
            if shadow_prices.error_of(case, name) > 0.1:
                ragged = ", ragged" if job["ragged"] else ""
                lines.append(
                    f"- {job['model']} on {job['hardware']}{ragged}, +{case['share']:.0%} {of}: predicted "
                    f"{case['predicted_s']:.3g} s of {case['total_s']:.3g} s, {name} {case['gained_s'][name]:.3g} s"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
