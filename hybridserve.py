"""The front door: the `hybridserve` command. It parses, calls and prints; the work is in `planner` and `runtime`."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import hwprofiles
from planner import report
from planner.costs import CostModel
from planner.errors import HybridserveError, InfeasibleError, InputError, nearest
from planner.files import dump_yaml, write_whole
from planner.hardware import HardwareProfile, load_hardware
from planner.model import known_models, load_model
from planner.plan import Plan, read_plan
from planner.planning import make_plan
from planner.policies import POLICIES, policy_named
from planner.results import plan_result, times
from planner.search import Options
from planner.simulator import simulate
from planner.trace import write_trace
from planner.workload import Workload

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="How fast can a model that does not fit run, what is the best way to run it, and was that true?",
)
out = Console()
err = Console(stderr=True)

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
GpuGb = Annotated[float | None, typer.Option("--gpu-memory-gb", min=0.001, help="Cap GPU memory (GB = 10^9 bytes).")]
Trace = Annotated[Path | None, typer.Option("--trace", help="Write a trace for ui.perfetto.dev.")]


@app.command("plan")
def plan_command(
    model: ModelName, hardware: Hardware, requests: Requests = None, prompt_len: PromptLen = None,
    gen_len: GenLen = None, workload: WorkloadFile = None,
    policy: Annotated[str, typer.Option("--policy", help=f"One of: {', '.join(POLICIES)}.")] = "hybrid",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan here.")] = None,
    act_share: ActShare = None, mini_batches: MiniBatches = None, dtype: Dtype = None, gpu_memory_gb: GpuGb = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Find the best plan, with its bound.

    Example: hybridserve plan --model opt-30b --hardware rtx4090-pcie4 --requests 128 --prompt-len 1024 --gen-len 128
    """
    chosen = policy_named(policy)
    spec, profile = load_model(model, dtype), _capped(load_hardware(hardware), gpu_memory_gb)
    job = _workload(requests, prompt_len, gen_len, workload, model)
    with _status(f"planning {chosen.name}"):
        found = make_plan(profile, spec, job, chosen, _options(act_share, mini_batches, job))
    if output:
        found.write(output)
    _print(as_json, plan_result(found), report.plan_report(found))
    if output:
        err.print(f"written: {output}")


@app.command("simulate")
def simulate_command(plan: Path, trace: Trace = None, as_json: Json = False) -> None:
    """Predict the timeline of a plan again, and write it as a trace.

    Example: hybridserve simulate plan.yaml --trace predicted.json
    """
    found = read_plan(plan)
    timeline = simulate(CostModel(found.hardware, found.model), found.decisions)
    if trace:
        write_trace(trace, {"predicted": timeline})
    _print(as_json, {**plan_result(found), **times(timeline)}, report.plan_report(found))
    if trace:
        err.print(f"written: {trace}")


@app.command("run")
def run_command(
    plan: Path,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="A Hugging Face folder.")] = None,
    random_weights: Annotated[int | None, typer.Option("--random-weights", help="Seed; default 0.")] = None,
    prompts: Annotated[Path | None, typer.Option("--input", help="Prompts as JSON lines.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Completions as JSON lines.")] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="Refuse unless the plan was made for this hardware.")
    ] = None,
    trace: Trace = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Execute a plan and lay the measurement beside its prediction.

    Example: hybridserve run plan.yaml --random-weights 0 --trace both.json
    """
    found = read_plan(plan)
    _check_hardware(found, hardware, plan)
    if checkpoint and random_weights is not None:
        raise InputError("--checkpoint and --random-weights exclude each other", where="run", cure="Give one")
    if output and not prompts:
        raise InputError("--output needs --input", where="run", cure="Give the prompts to complete")
    _need_runtime()
    from runtime import prompts as lines  # noqa: PLC0415  (torch is imported only where something runs)
    from runtime.execution import execute  # noqa: PLC0415

    tokenizer = lines.load_tokenizer(checkpoint) if checkpoint and prompts and lines.needs_text(prompts) else None
    asked = lines.read_prompts(prompts, tokenizer) if prompts else None
    with _steps("running") as progress:
        done = execute(
            found, [p.tokens for p in asked] if asked else None, checkpoint, random_weights or 0, progress
        )
    if output and asked:
        lines.write_completions(output, asked, done.tokens, tokenizer)
    if trace:
        write_trace(trace, {"predicted": done.predicted, "measured": done.measured})
    result = done.result()
    if not as_json:
        out.print(report.streams_report(found.policy, done.predicted, done.measured))
        out.print(report.kinds_report(found.policy, done.predicted, done.measured))
    _print(as_json, result, report.errors_report([(found.policy, result)]))
    for path in filter(None, (output, trace)):
        err.print(f"written: {path}")


@app.command("profile")
def profile_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Write the profile here.")],
    device: Annotated[str, typer.Option("--device", help="cuda or cpu.")] = "cpu",
    link_gbps: Annotated[
        float | None, typer.Option("--link-gbps", min=0.001, help="CPU: pace of the link, GB/s (10^9 bytes).")
    ] = None,
    gpu_memory_gb: GpuGb = None,
    hidden: Annotated[int, typer.Option("--hidden", min=64, help="Model width to measure kernels at.")] = 512,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Default: float32 on cpu, float16 on cuda.")] = None,
) -> None:
    """Measure this machine and write a hardware profile.

    Example: hybridserve profile --device cpu --link-gbps 0.4 -o here.yaml
    """
    _one_of("--device", device, ("cpu", "cuda"))
    kind = dtype or ("float16" if device == "cuda" else "float32")
    _one_of("--dtype", kind, ("float16", "bfloat16", "float32"))
    if device == "cuda" and link_gbps:
        raise InputError("the link of a CUDA device is measured, not set", where="--link-gbps", cure="Leave it out")
    if hidden % 64:
        raise InputError(f"{hidden} is no multiple of the head size 64", where="--hidden")
    if output.exists() and output.is_dir():
        raise InputError("this is a folder", where=str(output), cure="Give a file name ending in .yaml")
    _need_runtime()
    from runtime.profiler import Profiler, Request  # noqa: PLC0415

    request = Request(
        device=device, hidden=hidden, heads=hidden // 64, dtype=kind, profile_id=_as_id(output.stem),
        link_bytes_per_s=link_gbps * 1e9 if link_gbps else None,
        gpu_bytes=int(gpu_memory_gb * 1e9) if gpu_memory_gb else None,
    )  # fmt: skip
    with _steps("measuring", total=Profiler.STAGES) as progress:
        profile = Profiler(request, progress).run()
    write_whole(output, dump_yaml(profile.to_plain()))
    out.print(report.hardware_report(profile))
    err.print(f"written: {output}")


@app.command("compare")
def compare_command(
    model: ModelName, hardware: Hardware, requests: Requests = None, prompt_len: PromptLen = None,
    gen_len: GenLen = None, workload: WorkloadFile = None,
    policies: Annotated[str, typer.Option("--policies", help="Names, separated by commas.")] = ",".join(POLICIES),
    execute: Annotated[bool, typer.Option("--execute", help="Run each plan and show the measurement.")] = False,
    act_share: ActShare = None, mini_batches: MiniBatches = None, dtype: Dtype = None, gpu_memory_gb: GpuGb = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Plan the same job with several policies, side by side, and with --execute run them.

    Example: hybridserve compare --model opt-30b --hardware rtx4090-pcie4 --requests 64 --prompt-len 512 --gen-len 64
    """
    chosen = [policy_named(name.strip()) for name in policies.split(",") if name.strip()]
    if not chosen:
        raise InputError("no policy given", where="--policies", cure=nearest("", POLICIES))
    spec, profile = load_model(model, dtype), _capped(load_hardware(hardware), gpu_memory_gb)
    job = _workload(requests, prompt_len, gen_len, workload, model)
    plans: list[Plan] = []
    refused: dict[str, str] = {}
    for policy in chosen:
        try:
            with _status(f"planning {policy.name}"):
                plans.append(make_plan(profile, spec, job, policy, _options(act_share, mini_batches, job)))
        except InfeasibleError as error:
            refused[policy.name] = str(error)
    if not plans:
        raise InfeasibleErrors(refused)
    results = [plan_result(plan) for plan in plans]
    if execute:
        _need_runtime()
        from runtime.execution import execute as run  # noqa: PLC0415

        for i, plan in enumerate(plans):
            with _steps(f"running {plan.policy}") as progress:
                results[i] = run(plan, progress=progress).result()
    if not as_json:
        out.print(report.policies_report(plans))
        for name, reason in refused.items():
            out.print(f"{name}: {reason}")
    shown = report.errors_report([(r["policy"], r) for r in results]) if execute else None
    _print(as_json, {"policies": results, "infeasible": refused}, shown)


@app.command("show")
def show_command(
    what: Annotated[str, typer.Argument(help="hardware, models, or a name or file of either.")],
    name: Annotated[str | None, typer.Argument(help="A name, after 'hardware' or 'models'.")] = None,
    as_json: Json = False,
) -> None:
    """Print known hardware or models, or one of them with where its numbers come from.

    Example: hybridserve show rtx4090-pcie4
    """
    lists = {"hardware": hwprofiles.names(), "models": known_models()}
    if what in lists and name is None:
        _print(as_json, {what: lists[what]}, report.names_report(what, lists[what]))
        return
    wanted = name or what
    if what not in lists and name is not None:
        raise InputError(f"'{what}' is neither 'hardware' nor 'models'", where="show", cure=nearest(what, lists))
    if what == "models" or (what != "hardware" and (wanted in lists["models"] or _is_config(wanted))):
        model = load_model(wanted)
        _print(as_json, model.model_dump(), report.model_report(model))
    elif what == "hardware" or wanted in lists["hardware"] or wanted.endswith((".yaml", ".yml")):
        profile = load_hardware(wanted)
        _print(as_json, profile.to_plain(), report.hardware_report(profile))
    else:
        known = [*lists["hardware"], *lists["models"], "hardware", "models"]
        raise InputError(f"nothing known as '{wanted}'", where="show", cure=nearest(wanted, known))


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", help="Folder for plans, plot and trace.")] = Path("out/demo"),
    as_json: Json = False,
) -> None:
    """Plan, execute and compare three policies on a scale model of OPT-30B on an RTX 4090, here on the CPU.

    Example: hybridserve demo --output out/demo
    """
    _need_runtime()
    from runtime.demo import run_demo  # noqa: PLC0415

    with _steps("demo") as progress:
        shown = run_demo(output, progress)
    _print(as_json, shown.result(), shown.report())


# ---- what the commands share -----------------------------------------------------------------------


class InfeasibleErrors(HybridserveError):
    """Every policy asked for is infeasible."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("\n".join(reasons.values()))


def _workload(
    requests: int | None, prompt_len: int | None, gen_len: int | None, path: Path | None, model: str
) -> Workload:
    lengths = {"--requests": requests, "--prompt-len": prompt_len, "--gen-len": gen_len}
    given = [flag for flag, value in lengths.items() if value is not None]
    if path:
        if given:
            raise InputError(f"--workload says the lengths already, and so does {given[0]}", cure="Give one of them")
        return _workload_file(path, model)
    missing = [flag for flag, value in lengths.items() if value is None]
    if missing:
        raise InputError(f"no workload: {', '.join(missing)} missing", cure="Give all three, or --workload FILE.jsonl")
    assert requests and prompt_len and gen_len
    return Workload.uniform(requests, prompt_len, gen_len)


def _workload_file(path: Path, model: str) -> Workload:
    """Lengths, or prompts whose lengths the checkpoint's tokenizer counts."""
    if not path.is_file() or not _holds_prompts(path):
        return Workload.from_jsonl(path)
    _need_runtime()
    from runtime import prompts as lines  # noqa: PLC0415

    tokenizer = lines.load_tokenizer(Path(model)) if lines.needs_text(path) else None
    return lines.as_workload(lines.read_prompts(path, tokenizer))


def _holds_prompts(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as stream:
        first = next((line for line in stream if line.strip()), "")
    try:
        data = json.loads(first)
    except ValueError:
        return False
    return isinstance(data, dict) and bool({"prompt", "tokens"} & data.keys())


def _options(act_share: float | None, mini_batches: int | None, job: Workload) -> Options:
    if mini_batches and mini_batches > len(job):
        raise InputError(f"{mini_batches} mini-batches for {len(job)} requests", where="--mini-batches")
    return Options(act_share=act_share, mini_batches=mini_batches)


def _capped(profile: HardwareProfile, gpu_memory_gb: float | None) -> HardwareProfile:
    if gpu_memory_gb is None:
        return profile
    wanted = gpu_memory_gb * 1e9
    if wanted > profile.gpu.memory.usable_bytes.value:
        what = f"{gpu_memory_gb} GB is more than the {profile.gpu.memory.usable_bytes.value / 1e9:.2f} GB usable"
        raise InputError(what, where="--gpu-memory-gb", cure="Give less, or another profile")
    if wanted <= profile.gpu.memory.context_reserve_bytes.value:
        what = f"{gpu_memory_gb} GB leaves nothing beside the context reserve"
        raise InputError(what, where="--gpu-memory-gb", cure="Give more")
    return profile.with_values(**{"gpu.memory.usable_bytes": wanted})


def _check_hardware(plan: Plan, hardware: str | None, path: Path) -> None:
    if hardware and load_hardware(hardware).content_hash != plan.hardware.content_hash:
        what = f"made for hardware '{plan.made_for.hardware}', not for this '{hardware}'"
        raise InputError(what, where=str(path), cure="Plan again for this hardware")


def _need_runtime() -> None:
    if importlib.util.find_spec("torch") is None:
        raise InputError("running needs torch, planning does not", cure="pip install 'hybridserve[runtime]'")


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown value '{value}'", where=flag, cure=nearest(value, known))


def _is_config(name: str) -> bool:
    return (Path(name) / "config.json").exists() or name.endswith(".json")


def _as_id(stem: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in stem) or "measured"


def _print(as_json: bool, data: dict[str, Any], shown: Any) -> None:
    if as_json:
        print(json.dumps(data, allow_nan=False))
    elif shown is not None:
        out.print(shown)


@contextmanager
def _status(text: str) -> Iterator[None]:
    with err.status(text):
        yield


@contextmanager
def _steps(what: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on stderr; yields progress(done, total, text)."""
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int, of: int, text: str = "") -> None:
            bar.update(task, completed=done, total=max(of, 1), description=f"{what} {text}".strip())

        yield advance


def main() -> None:
    """The `hybridserve` command. Exit codes: 0 done, 1 infeasible or failed, 2 bad usage or bad input."""
    try:
        app(standalone_mode=False)
    except HybridserveError as error:
        err.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        err.print("stopped", style="red")
        sys.exit(130)


if __name__ == "__main__":
    main()
