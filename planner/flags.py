"""The flags that commands share, with their limits. The commands' own flags are in `hybridserve.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from planner.given import LIMITS, flag

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]
ModelName = Annotated[str, typer.Option("--model", help="A bundled name, or a folder or file with a config.json.")]
Hardware = Annotated[str, typer.Option("--hardware", help="A shipped profile, or a YAML file.")]
WorkloadFile = Annotated[
    Path | None, typer.Option("--workload", help='JSON lines: {"id", "prompt_len", "gen_len"}, or prompts.')
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float16, bfloat16 or float32, instead of the config's.")]
Trace = Annotated[Path | None, typer.Option("--trace", help="Write a trace for ui.perfetto.dev.")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A file that `hybridserve plan -o` wrote.")]


def _number(name: str, said: str) -> Any:
    limits = LIMITS[name]
    return typer.Option(flag(name), min=limits.low, max=limits.high, help=said)


Requests = Annotated[int | None, _number("requests", "Equal requests.")]
PromptLen = Annotated[int | None, _number("prompt_len", "Tokens of each prompt.")]
GenLen = Annotated[int | None, _number("gen_len", "Tokens each request generates.")]
ActShare = Annotated[float | None, _number("act_share", "Force this share of ACT blocks.")]
MiniBatches = Annotated[int | None, _number("mini_batches", "Force this many mini-batches.")]
Waves = Annotated[int | None, _number("waves", "Run the job in this many parts, one by one.")]
GpuGb = Annotated[float | None, _number("gpu_memory_gb", "Cap GPU memory (GB = 10^9 bytes).")]
