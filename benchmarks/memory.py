"""`python -m benchmarks.memory`: planned against measured peak bytes, of both arenas and of the whole process.

Every plan runs in a process of its own. The arenas report their high-water marks; the operating system reports how far
the process grew from just before the arenas were taken to its peaks while loading and while running, which also counts
what no plan line names: temporaries of kernels, threads, Python's own objects.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.accuracy_report import Errors
from benchmarks.records import RESULTS, write
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.plan import Plan, read_plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.scale import scaled_model
from planner.search import Options
from planner.workload import Workload

RECORD, PROFILE = "memory.json", "accuracy-profile.yaml"
MODELS = ((2048, 4), (1536, 6))
JOBS = ((8, 48, 3), (2, 170, 3), (16, 20, 4), (1, 300, 3))
"""(requests, prompt, generated tokens)."""
ARENA_LAYERS = 2.6
"""GPU memory, in layers' weights beside embeddings and cache slots: most layers stream."""


def main() -> None:
    """Measure every plan, write the record, print its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    profile = load_hardware(str(RESULTS / PROFILE))
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for i, plan in enumerate(plans(profile)):
            path = Path(folder) / f"{i}.yaml"
            plan.write(path)
            records.append(_describe(plan) | _in_a_process(path))
            print(f"{i + 1}: {records[-1]}", flush=True)
    document = {"date": datetime.date.today().isoformat(), "machine": profile.machine, "plans": records}
    print(f"written: {write(RECORD, document)}")
    print(summary(document))


def plans(profile: HardwareProfile) -> list[Plan]:
    """Two widths, four jobs, three policies; hundreds of megabytes each, so that small change is small."""
    found = []
    for (hidden, layers), (requests, prompt, gen), policy in product(MODELS, JOBS, POLICIES.values()):
        model = scaled_model(load_model("opt-6.7b"), hidden, layers, 1024)
        work = Workload.uniform(requests, prompt, gen)
        slots = 4 * (work.total_prompt_tokens + work.total_generated_tokens) * model.kv_bytes_per_token_layer
        arena = model.outer_bytes + ARENA_LAYERS * model.layer_bytes + slots
        hardware = profile.with_values(**{"gpu.memory.usable_bytes": float(round(arena))})
        found.append(make_plan(hardware, model, work, policy, Options()))
    return found


def _describe(plan: Plan) -> dict[str, Any]:
    first = plan.workload.requests[0]
    return {
        "split": "validate", "hidden": plan.model.hidden, "layers": plan.model.layers, "policy": plan.policy,
        "requests": len(plan.workload), "prompt_len": first.prompt_len, "gen_len": first.gen_len,
    }  # fmt: skip


def _in_a_process(plan: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(plan)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(path: Path) -> dict[str, Any]:
    """Run one plan in this process: planned and measured bytes of each budget, and of the process."""
    from runtime.device import open_device  # noqa: PLC0415
    from runtime.engine import Engine, random_prompts  # noqa: PLC0415
    from runtime.weights import RandomWeights  # noqa: PLC0415

    plan = read_plan(path)
    warm_up()
    planned = {place: record.planned_bytes for place, record in plan.memory.items()}
    before = status_bytes("VmRSS")
    device = open_device(plan.hardware)
    try:
        engine = Engine(plan, device, RandomWeights(0, device.torch_device))
        loading = status_bytes("VmHWM") - before
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        found = engine.run(random_prompts(plan, 0)).peak_bytes
        running = status_bytes("VmHWM") - before
    finally:
        device.close()
    return {
        **{place: {"predicted": planned[place], "measured": found[place]} for place in planned},
        "loading": {"predicted": sum(planned.values()), "measured": loading},
        "running": {"predicted": sum(planned.values()), "measured": running},
    }


def warm_up() -> None:
    """Libraries take their own memory once, whatever the plan."""
    import torch  # noqa: PLC0415

    x = torch.randn(256, 256)
    torch.nn.functional.layer_norm(torch.addmm(x, x, x), (256,))


def status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not report {key}")


def summary(document: dict[str, Any]) -> str:
    """Errors of each budget and of the process as Markdown rows; and the worst shortfall."""
    rows = ["| | n | mean | median | 95th percentile | worst | bias |", "|---|---|---|---|---|---|---|"]
    names = {
        "gpu": "GPU arena", "host": "host slabs", "loading": "process, loading", "running": "process, running",
    }  # fmt: skip
    for place, name in names.items():
        found = [plan[place] for plan in document["plans"] if plan[place]["predicted"]]
        rows.append(Errors.of((one["predicted"], one["measured"]) for one in found).row(name))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
