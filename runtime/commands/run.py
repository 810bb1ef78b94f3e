"""`hybridserve run`: execute a plan, keep what is finished, and lay the measurement beside its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from planner import flags, report, selection, terminal
from planner.errors import InputError, UnansweredError
from planner.plan import Plan, read_plan
from planner.trace import write_trace
from planner.verification import predicted_timeline
from runtime.commands.shared import need_runtime
from runtime.completions import write_completions
from runtime.continuation import Rest, job_of, rest_of
from runtime.ending import Ends, endings
from runtime.journal import Journal
from runtime.prompt_file import PromptFile, as_planned, read_prompts
from runtime.prompts import Text


def run_command(
    plan: flags.PlanFile,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="A Hugging Face folder.")] = None,
    random_weights: Annotated[
        int | None, typer.Option("--random-weights", min=0, max=2**63 - 1, help="Seed; default 0.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option("--input", help="Prompts as JSON lines.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Completions as JSON lines.")] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="Refuse unless the plan was made for this hardware.")
    ] = None,
    trace: flags.Trace = None, as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Execute a plan and lay the measurement beside its prediction.

    With --output, what is finished is kept in a journal: the same command goes on after a crash. Exit code 3 where
    lines of --input could not be run and the others were.

    Example: hybridserve run plan.yaml --random-weights 0 --trace both.json
    """
    if checkpoint and random_weights is not None:
        raise InputError("--checkpoint and --random-weights exclude each other", where="run", cure="Give one")
    if output and not prompts:
        raise InputError("--output needs --input", where="run", cure="Give the prompts to complete")
    selection.check_files({"--output": output, "--trace": trace}, [plan, prompts], checkpoint)
    with terminal.status("reading and simulating"):
        found = read_plan(plan)
        selection.check_made_for(found, hardware, plan)
        predicted_timeline(found, plan)
    need_runtime()
    text = Text(checkpoint)
    if prompts is None:
        return _run(found, None, None, None, checkpoint, random_weights or 0, trace, as_json)
    asked = as_planned(read_prompts(prompts, text), found)
    weights = str(checkpoint.resolve()) if checkpoint else f"random {random_weights or 0}"
    journal = Journal(output, job_of(found, asked.good, weights)) if output else None
    rest = rest_of(found, asked.good, journal, text)
    _say_how_it_begins(found, asked, journal, rest)
    if rest:
        ends = endings(rest.prompts, rest.before, found.model.eos_token_id, text)
        _run(rest.plan, rest, asked, journal, checkpoint, random_weights or 0, trace, as_json, ends)
    if output and journal:
        write_completions(output, asked, journal.tokens, found.model.eos_token_id, text)
        journal.remove()
        terminal.written(output)
    if asked.bad:
        what = f"{len(asked.bad)} of {len(asked)} lines of {prompts} could not be run, the others were"
        raise UnansweredError(f"{what}. {'Their entries in the output say why' if output else 'See above'}")


def _say_how_it_begins(plan: Plan, asked: PromptFile, journal: Journal | None, rest: Rest | None) -> None:
    """What is not run, and why: before hours of work, so that it can be mended meanwhile, or first."""
    said = []
    if asked.bad:
        said.append(f"left out, of {len(asked)} lines: {asked.mistakes}")
    if journal and journal.tokens:
        begun = len(journal.tokens.keys() - journal.ended)
        said.append(f"going on: {len(journal.ended)} of {len(asked.good)} requests were finished, {begun} begun")
    if rest and rest.plan is not plan:
        said.append(f"planned again for the {len(rest.plan.workload)} requests that are left")
    for line in said:
        terminal.err.print(line, soft_wrap=True, highlight=False)


def _run(
    plan: Plan, rest: Rest | None, asked: PromptFile | None, journal: Journal | None, checkpoint: Path | None,
    seed: int, trace: Path | None, as_json: bool, ends: Ends | None = None,
) -> None:  # fmt: skip
    """Run, and show how it went."""
    from runtime.execution import execute  # noqa: PLC0415  (torch is imported only where something runs)

    def keep(made: Mapping[int, list[int]], ended: bool) -> None:
        assert rest and journal
        journal.write(rest.whole(made), ended)

    with terminal.steps("running") as advance:
        done = execute(
            plan, rest.given if rest else None, checkpoint, seed, advance, ways=rest.ways if rest else None,
            keep=keep if journal else None, ends=ends,
        )  # fmt: skip
    if trace:
        write_trace(trace, plan, {"predicted": done.predicted, "measured": done.measured})
    result = done.result()
    if asked is not None:
        result["bad_lines"] = [{"line": one.number, "id": one.id, "error": str(one.mistake)} for one in asked.bad]
    terminal.show(
        as_json, result, report.streams_report(plan.policy, done.predicted, done.measured, plan.hardware.link),
        report.kinds_report(plan.policy, done.predicted, done.measured), report.errors_report([(plan.policy, result)]),
        *report.early_report(plan, done.measured, done.ended_early),
    )  # fmt: skip
    terminal.written(trace)
