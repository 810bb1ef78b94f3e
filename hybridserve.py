"""The front door: the `hybridserve` command, and the names that a notebook imports.

It parses, calls and prints; the work is in `planner` and `runtime`. Importing it loads neither torch nor matplotlib.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # no traceback of an interrupt while the rest is imported, see planner/entry.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from planner import flags, selection, terminal
from planner.errors import HybridserveError, InfeasibleError, InputError, RunError
from planner.given import Given
from planner.hardware import HardwareProfile, load_hardware
from planner.model import ModelSpec, load_model
from planner.peers.catalogue import PEERS, Peer
from planner.peers.forecast import Forecast, forecast_report, forecast_result
from planner.policies import POLICIES
from planner.workload import Request, Workload
from runtime.api.comparing import Comparison, compare, compared
from runtime.api.jobs import forecast_of, selected
from runtime.api.machines import Checked, Profiled, Shown, check, profile, show
from runtime.api.plans import Explanation, Plan, Simulation, plan, planned, read_plan
from runtime.api.running import Run, plot_accuracy, plot_curve
from runtime.api.scale import ScaleModel, scale_model
from runtime.api.sweeping import Sweep, sweep
from runtime.commands.profile import profile_command
from runtime.commands.run import run_command
from runtime.commands.shared import need_runtime
from runtime.commands.sweep import sweep_command

__all__ = [
    "Checked", "Comparison", "Explanation", "Forecast", "HardwareProfile", "HybridserveError", "InfeasibleError",
    "InputError", "ModelSpec", "Plan", "Profiled", "Request", "Run", "RunError", "ScaleModel", "Shown", "Simulation",
    "Sweep", "Workload", "check", "compare", "load_hardware", "load_model", "plan", "plot_accuracy", "plot_curve",
    "profile", "read_plan", "scale_model", "show", "sweep",
]  # fmt: skip

INTERRUPTED, PATIENCE_S = 130, 5.0

app = typer.Typer(
    add_completion=True,
    pretty_exceptions_enable=False,
    help="How fast can a model that does not fit run, what is the best way to run it, and was that true?",
)


@app.command("plan")
def plan_command(
    model: flags.ModelName, hardware: flags.Hardware, requests: flags.Requests = None,
    prompt_len: flags.PromptLen = None, gen_len: flags.GenLen = None, workload: flags.WorkloadFile = None,
    policy: Annotated[str, typer.Option("--policy", help=f"One of: {', '.join((*POLICIES, *PEERS))}.")] = "hybrid",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan here.")] = None,
    act_share: flags.ActShare = None, mini_batches: flags.MiniBatches = None, waves: flags.Waves = None,
    dtype: flags.Dtype = None, gpu_memory_gb: flags.GpuGb = None, as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Find the best plan, with its bound.

    Example: hybridserve plan --model opt-30b --hardware rtx4090-pcie4 --requests 128 --prompt-len 1024 --gen-len 128
    """
    chosen = selection.policy_named(policy, "--policy")
    if isinstance(chosen, Peer) and output:
        what = f"'{policy}' is another system: what it would do is predicted, there is no plan to write"
        raise InputError(what, where="--output", cure=f"Leave it out, or choose one of {', '.join(POLICIES)}")
    given = Given(
        model, hardware, workload, dtype, gpu_memory_gb, requests, prompt_len, gen_len, act_share, mini_batches, waves
    )
    selection.check_files({"--output": output}, given.files())
    if isinstance(chosen, Peer):
        what_is_given = selected(given, [chosen], "--policy")
        other = forecast_of(chosen, what_is_given)
        shown = forecast_report(other, what_is_given.hardware, what_is_given.model.name)
        return terminal.show(as_json, forecast_result(other, what_is_given.hardware), shown)
    with terminal.status(f"planning {chosen.name}"):
        found = planned(given, chosen)
    if output:
        found.record.write(output)
    terminal.show(as_json, found.result(), found.report())
    terminal.written(output)


@app.command("simulate")
def simulate_command(plan: flags.PlanFile, trace: flags.Trace = None, as_json: flags.Json = False) -> None:
    """Predict the timeline of a plan again, and write it as a trace.

    Example: hybridserve simulate plan.yaml --trace predicted.json
    """
    selection.check_files({"--trace": trace}, [plan])
    with terminal.status("reading and simulating"):
        found = read_plan(plan).simulate()
    if trace:
        found.write_trace(trace)
    terminal.show(as_json, found.result(), found.report())
    terminal.written(trace)


@app.command("explain")
def explain_command(plan: flags.PlanFile, as_json: flags.Json = False) -> None:
    """Account for the predicted time of a plan: what takes it, how much is exposed, what binds.

    Example: hybridserve explain plan.yaml
    """
    with terminal.status("reading and simulating"):
        where = read_plan(plan).explain()
    terminal.show(as_json, where.result(), where.report())


app.command("run")(run_command)
app.command("profile")(profile_command)


@app.command("compare")
def compare_command(
    model: flags.ModelName, hardware: flags.Hardware, requests: flags.Requests = None,
    prompt_len: flags.PromptLen = None, gen_len: flags.GenLen = None, workload: flags.WorkloadFile = None,
    policies: Annotated[
        str | None, typer.Option("--policies", help="Names, separated by commas. Default: all that can be shown.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Run each plan and show the measurement.")] = False,
    act_share: flags.ActShare = None, mini_batches: flags.MiniBatches = None, waves: flags.Waves = None,
    dtype: flags.Dtype = None, gpu_memory_gb: flags.GpuGb = None, as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Plan the same job with several policies, side by side, and with --execute run them.

    Example: hybridserve compare --model opt-30b --hardware rtx4090-pcie4 --requests 64 --prompt-len 512 --gen-len 64
    """
    given = Given(
        model, hardware, workload, dtype, gpu_memory_gb, requests, prompt_len, gen_len, act_share, mini_batches, waves
    )
    found = compared(given, policies, execute, planning=terminal.status, running=terminal.steps)
    terminal.show(as_json, found.result(), found.report())


app.command("sweep")(sweep_command)


@app.command("show")
def show_command(
    what: Annotated[str, typer.Argument(help="hardware, models, or a name or file of either.")],
    name: Annotated[str | None, typer.Argument(help="A name, after 'hardware' or 'models'.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Print known hardware or models, or one of them: where its numbers come from, which to measure first.

    Example: hybridserve show rtx4090-pcie4
    """
    with terminal.status("looking up"):
        found = show(what, name)
    terminal.show(as_json, found.result(), found.report())


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", help="Folder for plans, plot and trace.")] = Path("out/demo"),
    as_json: flags.Json = False,
) -> None:
    """Plan, execute and compare three policies on a scale model of OPT-30B on an RTX 4090, here on the CPU.

    Example: hybridserve demo --output out/demo
    """
    selection.check_files({"--output": output / "results.json"})
    need_runtime()
    from runtime.demo import run_demo  # noqa: PLC0415

    with terminal.steps("demo") as advance:
        shown = run_demo(output, advance)
    terminal.show(as_json, shown.result(), shown.report())


def main() -> None:
    """The `hybridserve` command. Exit codes: 0 done, 1 infeasible or failed, 2 bad usage or bad input."""
    terminal.prepare()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="hybridserve", standalone_mode=False)
        if isinstance(code, int) and code:  # an interrupt comes back as a code, not as an exception
            terminal.fail("stopped")
            sys.exit(code)
    except HybridserveError as error:
        terminal.fail(str(error))
        sys.exit(error.exit_code)
    except terminal.UsageError as error:
        terminal.fail(terminal.usage_message(error))
        sys.exit(2)
    except MemoryError:
        terminal.fail("this machine has not enough memory. Choose a smaller job")
        sys.exit(1)
    except OSError as error:  # what help and usage print; results are guarded where they are shown
        terminal.fail(f"the system refused: {error.strerror or error}")
        terminal.discard_stdout()
        sys.exit(1)
    except (typer.Abort, KeyboardInterrupt):
        terminal.fail("stopped")
        sys.exit(INTERRUPTED)


def run_and_leave() -> None:
    """`main` as a process of its own: after an interrupt it waits for threads that watch workers, but not for long."""
    try:
        main()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            impatient = threading.Timer(PATIENCE_S, os._exit, (INTERRUPTED,))
            impatient.daemon = True
            impatient.start()
        raise


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_and_leave()
