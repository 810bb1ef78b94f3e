"""`hybridserve sweep`: one plan for each combination of values, on several cores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from planner import flags, selection, sweep_report, terminal
from planner.errors import InputError
from planner.files import write_whole
from planner.given import Given
from planner.policies import CACHES
from planner.sweep import MOST_WORKERS
from planner.sweep_axes import Axis, read_axes
from runtime.api.sweeping import swept_axes
from runtime.commands.shared import need_plots

PICTURES = (".png", ".svg", ".pdf")
MOST_DRAWN = 2
"""Keys in one picture."""

Model = Annotated[str | None, typer.Option("--model", help="As of plan, unless --set model=A,B says it.")]
Hardware = Annotated[str | None, typer.Option("--hardware", help="As of plan, unless --set hardware=A,B says it.")]
Set = Annotated[
    list[str], typer.Option("--set", help="KEY=VALUES, like link.h2d=16,25,32 or requests=8..64*2; repeat for a grid.")
]


def sweep_command(
    to_set: Set, model: Model = None, hardware: Hardware = None, requests: flags.Requests = None,
    prompt_len: flags.PromptLen = None, gen_len: flags.GenLen = None, workload: flags.WorkloadFile = None,
    policies: Annotated[str, typer.Option("--policies", help="Names, separated by commas.")] = ",".join(CACHES),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write all rows here, as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw one or two keys here: .png, .svg or .pdf.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=MOST_WORKERS, help="Processes; default one a core.")
    ] = None,
    act_share: flags.ActShare = None, mini_batches: flags.MiniBatches = None, waves: flags.Waves = None,
    dtype: flags.Dtype = None, gpu_memory_gb: flags.GpuGb = None, as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Plan a job over values of anything: links, memories, rates, models, lengths. Exit code 1 if none is feasible.

    Example: hybridserve sweep --model opt-6.7b --hardware rtx4090-pcie4 --requests 64 --prompt-len 512 --gen-len 32
    --set link.h2d=16,25,32,50 --policies hybrid,kv-only -o sweep.csv
    """
    given = Given(
        model, hardware, workload, dtype, gpu_memory_gb, requests, prompt_len, gen_len, act_share, mini_batches, waves
    )
    axes = read_axes(to_set, hardware)
    _check_outputs(output, plot, given, axes)
    with terminal.steps("sweeping") as advance:
        found = swept_axes(given, axes, policies, workers, advance)
    if output:
        write_whole(output, sweep_report.sweep_csv(axes, found.plans))
    if plot:
        from runtime.plots.sweeps import sweep_figure  # noqa: PLC0415  (matplotlib is optional)

        sweep_figure(axes, found.plans, plot)
    terminal.show(as_json, found.result(), found.report())
    terminal.written(output, plot)


def _check_outputs(output: Path | None, plot: Path | None, given: Given, axes: Sequence[Axis]) -> None:
    """Both can be written, over nothing that is read; and a picture can show what is swept."""
    if plot is not None:
        selection.one_of("--plot", plot.suffix, PICTURES, "kind of picture")
        if len(axes) > MOST_DRAWN:
            what = f"a picture shows one or two keys, not {len(axes)}"
            raise InputError(what, where="--plot", cure="Leave it out, or sweep fewer keys at once")
        need_plots("--plot", ", or leave it out: -o writes the same as CSV")
    read = given.files()
    for axis in axes:
        if axis.key.name in ("model", "hardware"):
            read += [file for value in axis.values for file in selection.model_files(str(value))]
    selection.check_files({"--output": output, "--plot": plot}, read)
