"""`make gpu`: tests, a measured profile, and predicted against measured policies on this machine's NVIDIA card.

GPU memory is capped, so that the model does not fit and what is measured is offloading. Weights are random.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from itertools import product

import torch
from rich.console import Console

from benchmarks.records import RESULTS, record, write
from planner import report
from planner.errors import InfeasibleError
from planner.files import dump_yaml, write_whole
from planner.hardware import HardwareProfile
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Workload
from runtime.execution import Execution, execute
from runtime.machine import host_memory_bytes
from runtime.profiler import Profiler, Request

out = Console()


@dataclass(frozen=True)
class Candidate:
    """A model whose weights and caches of the jobs need `host_gb` on the host."""

    model: str
    host_gb: float


CANDIDATES = (Candidate("opt-13b", 60), Candidate("opt-6.7b", 32), Candidate("opt-1.3b", 12))
"""The first that fits the host is run."""
JOBS = ((32, 512, 16), (16, 1024, 12), (64, 128, 24), (8, 1800, 8))
"""(requests, prompt, generated tokens): with every policy, twelve points."""
PROFILE_HEADS = 32
HEAD_DIM = 128


def main() -> None:
    """Exit 0 when everything ran; 1 with the reason otherwise."""
    options = _options()
    if not torch.cuda.is_available():
        sys.exit("make gpu needs an NVIDIA card that torch can use; everything else works without one")
    if not options.skip_tests:
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], check=True)
    name = torch.cuda.get_device_name().lower().replace(" ", "-").replace("nvidia-", "")
    profile = measured_profile(name, options.gpu_memory_gb)
    runs = run_policies(profile, options.model)
    records = [record(run, "validate", gpu_cap_gb=options.gpu_memory_gb) for run in runs]
    out.print(report.policies_report(report.title_of(runs[0].plan), [run.plan for run in runs]))
    out.print(report.errors_report([(run.plan.policy, run.result()) for run in runs]))
    for run in runs:
        out.print(report.streams_report(run.plan.policy, run.predicted, run.measured, run.plan.hardware.link))
        out.print(report.kinds_report(run.plan.policy, run.predicted, run.measured))
    out.print(f"written: {write(f'gpu-{name}.json', records)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-memory-gb", type=float, default=10.0, help="cap, in 10^9 bytes (default 10)")
    names = [one.model for one in CANDIDATES]
    parser.add_argument("--model", choices=names, help="default: the largest that fits the host")
    parser.add_argument("--skip-tests", action="store_true")
    return parser.parse_args()


def measured_profile(name: str, gpu_memory_gb: float) -> HardwareProfile:
    """Measure the card with the kernels of a 4096 wide model, and write the profile beside the records."""
    request = Request(
        device="cuda", hidden=PROFILE_HEADS * HEAD_DIM, heads=PROFILE_HEADS, dtype="float16",
        gpu_bytes=int(gpu_memory_gb * 1e9), profile_id=f"{name}-measured",
    )  # fmt: skip
    profile = Profiler(request, lambda done, of, text: out.print(f"profile {done}/{of}: {text}")).run()
    path = RESULTS / f"{profile.id}.yaml"
    write_whole(path, dump_yaml(profile.to_plain()))
    out.print(report.hardware_report(profile))
    out.print(f"written: {path}")
    return profile


def run_policies(profile: HardwareProfile, wanted: str | None) -> list[Execution]:
    """Plan with the measured profile, then execute: every policy on every job."""
    fits = [c.model for c in CANDIDATES if c.host_gb * 1e9 < host_memory_bytes() and wanted in (None, c.model)]
    if not fits:
        names = [c.model for c in CANDIDATES]
        sys.exit(f"no model of {names} fits {host_memory_bytes() / 1e9:.0f} GB of host memory")
    runs = []
    for job, policy in product(JOBS, POLICIES.values()):
        try:
            plan = make_plan(profile, load_model(fits[0]), Workload.uniform(*job), policy)
        except InfeasibleError as error:
            out.print(f"{policy.name}, {job}: {error}")
            continue
        out.print(f"running {policy.name} of {fits[0]}, {job[0]} x ({job[1]} + {job[2]})")
        runs.append(execute(plan))
    return runs


if __name__ == "__main__":
    main()
