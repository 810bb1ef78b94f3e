"""`hybridserve profile`: measure this machine, or say whether a profile still describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner import flags, selection, terminal
from planner.errors import InputError
from planner.hardware import load_hardware
from runtime.api.machines import HIDDEN, LINK_GBPS, check, checked_dtype, measured, refuse_if_outdated
from runtime.commands.shared import need_runtime


def profile_command(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the profile here.")] = None,
    check: Annotated[
        str | None, typer.Option("--check", help="Measure a sample and say whether this profile still holds.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cuda or cpu.")] = "cpu",
    link_gbps: Annotated[
        float | None,
        typer.Option("--link-gbps", min=LINK_GBPS.low, max=LINK_GBPS.high, help="CPU: pace of the link, 10^9 bytes/s."),
    ] = None,
    gpu_memory_gb: flags.GpuGb = None,
    hidden: Annotated[
        int, typer.Option("--hidden", min=int(HIDDEN.low), max=int(HIDDEN.high), help="Model width to measure at.")
    ] = 512,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Default: float32 on cpu, float16 on cuda.")] = None,
    as_json: flags.Json = False, context: typer.Context = None,  # type: ignore[assignment]
) -> None:  # fmt: skip
    """Measure this machine and write a hardware profile, or check one. Exit code 1 where a profile no longer holds.

    Example: hybridserve profile --device cpu --link-gbps 0.4 -o here.yaml
    """
    if check is not None:
        selection.check_alone(context, "--check", ("device", "link_gbps", "gpu_memory_gb", "hidden", "dtype"))
        return _check_profile(check, output, as_json)
    if output is None:
        raise InputError("no file to write", where="profile", cure="Give -o FILE.yaml, or --check FILE.yaml")
    kind = checked_dtype(device, dtype, link_gbps, hidden)
    selection.check_files({"--output": output})
    need_runtime()
    with terminal.steps("measuring", total=None) as advance:
        name = selection.profile_id(output)
        found = measured(device, kind, hidden, link_gbps, gpu_memory_gb, name, advance=advance)
    found.write(output)
    terminal.show(as_json, found.result(), found.report())
    terminal.written(output)
    for warning in found.warnings:
        terminal.err.print(warning, soft_wrap=True)


def _check_profile(name: str, output: Path | None, as_json: bool) -> None:
    """`profile --check`: exit code 1, with the verdict, where the profile does not hold."""
    if output is not None:
        raise InputError("--check writes nothing", where="--output", cure="Leave out one of them")
    load_hardware(name)  # a mistake in it is found before anything else
    need_runtime()
    with terminal.status(f"checking {name}"):
        found = check(name)
    terminal.show(as_json, found.result(), found.report())
    refuse_if_outdated(found)
