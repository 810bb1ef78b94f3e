"""`hybridserve profile`: measure this machine, or say whether a profile still describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner import catalogue, flags, report, selection, terminal
from planner.errors import InputError, RunError
from planner.files import dump_yaml, write_whole
from planner.hardware import load_hardware
from planner.speed import Check
from runtime.commands.shared import need_runtime

CHECK_TURNS = 24
"""Readings of each kernel by `profile --check`: a second or two."""


def profile_command(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the profile here.")] = None,
    check: Annotated[
        str | None, typer.Option("--check", help="Measure a sample and say whether this profile still holds.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cuda or cpu.")] = "cpu",
    link_gbps: Annotated[
        float | None,
        typer.Option("--link-gbps", min=0.001, max=10_000, help="CPU: pace of the link, GB/s (10^9 bytes)."),
    ] = None,
    gpu_memory_gb: flags.GpuGb = None,
    hidden: Annotated[
        int, typer.Option("--hidden", min=64, max=2**16, help="Model width to measure kernels at.")
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
    selection.one_of("--device", device, ("cpu", "cuda"))
    kind = dtype or ("float16" if device == "cuda" else "float32")
    selection.one_of("--dtype", kind, ("float16", "bfloat16", "float32"))
    selection.check_profile(device, link_gbps, hidden)
    selection.check_files({"--output": output})
    need_runtime()
    from runtime.profiler import Profiler, Request  # noqa: PLC0415

    request = Request(
        device=device, hidden=hidden, heads=hidden // 64, dtype=kind, profile_id=selection.profile_id(output),
        link_bytes_per_s=link_gbps * 1e9 if link_gbps else None,
        gpu_bytes=int(gpu_memory_gb * 1e9) if gpu_memory_gb else None,
    )  # fmt: skip
    with terminal.steps("measuring", total=Profiler.STAGES) as advance:
        profiler = Profiler(request, advance)
        profile = profiler.run()
    write_whole(output, dump_yaml(profile.to_plain()))
    terminal.show(as_json, *catalogue.hardware(profile))
    terminal.written(output)
    for warning in (report.pace_warning(profile, link_gbps), report.noise_warning(profiler.repeatability)):
        if warning:
            terminal.err.print(warning, soft_wrap=True)


def _check_profile(name: str, output: Path | None, as_json: bool) -> None:
    """`profile --check`: exit code 1, with the verdict, where the profile does not hold."""
    if output is not None:
        raise InputError("--check writes nothing", where="--output", cure="Leave out one of them")
    hardware = load_hardware(name)
    need_runtime()
    from runtime.gauge import Gauge  # noqa: PLC0415

    with terminal.status(f"checking {hardware.id}"):
        found = Check(hardware, Gauge(hardware).read(CHECK_TURNS))
    terminal.show(as_json, found.result(), found.report())
    if not found.describes:
        raise RunError(found.verdict)
