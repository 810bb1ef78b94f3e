"""The flags that commands share, with their limits. The commands' own flags are in `hybridserve.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]
ModelName = Annotated[str, typer.Option("--model", help="A bundled name, or a folder or file with a config.json.")]
Hardware = Annotated[str, typer.Option("--hardware", help="A shipped profile, or a YAML file.")]
Requests = Annotated[int | None, typer.Option("--requests", min=1, max=10**6, help="Equal requests.")]
PromptLen = Annotated[int | None, typer.Option("--prompt-len", min=1, max=10**7, help="Tokens of each prompt.")]
GenLen = Annotated[int | None, typer.Option("--gen-len", min=1, max=10**7, help="Tokens each request generates.")]
WorkloadFile = Annotated[
    Path | None, typer.Option("--workload", help='JSON lines: {"id", "prompt_len", "gen_len"}, or prompts.')
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float16, bfloat16 or float32, instead of the config's.")]
ActShare = Annotated[float | None, typer.Option("--act-share", min=0, max=1, help="Force this share of ACT blocks.")]
MiniBatches = Annotated[int | None, typer.Option("--mini-batches", min=1, help="Force this many mini-batches.")]
Waves = Annotated[int | None, typer.Option("--waves", min=1, help="Run the job in this many parts, one by one.")]
GpuGb = Annotated[
    float | None, typer.Option("--gpu-memory-gb", min=0.001, max=10**6, help="Cap GPU memory (GB = 10^9 bytes).")
]
Trace = Annotated[Path | None, typer.Option("--trace", help="Write a trace for ui.perfetto.dev.")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A file that `hybridserve plan -o` wrote.")]
