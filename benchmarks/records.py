"""Records of measured runs: what was predicted, what was measured, where and with which versions."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.files import write_whole

if TYPE_CHECKING:  # a benchmark that only predicts loads no torch
    from runtime.execution import Execution

RESULTS = Path(__file__).parent / "results"


def record(run: Execution, split: str, **more: Any) -> dict[str, Any]:
    """One executed plan. `split` is `calibrate` or `validate`."""
    return {
        "split": split,
        "date": datetime.date.today().isoformat(),
        "machine": run.plan.hardware.machine,
        "model": run.plan.model.name,
        "requests": len(run.plan.workload),
        "prompt_len": run.plan.workload.requests[0].prompt_len,
        "gen_len": run.plan.workload.requests[0].gen_len,
        "gpu_budget_bytes": run.plan.hardware.gpu.budget_bytes,
        **more,
        **{k: v for k, v in run.result().items() if k not in ("why", "made_for")},
    }


def between_marks(text: str, mark: str, new: str) -> str:
    """`text` with what stands between `<!-- mark:begin -->` and `<!-- mark:end -->` replaced."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{new}\n{end}", text)


def write(name: str, document: Any) -> Path:
    """Write `results/name`; returns its path."""
    path = RESULTS / name
    write_whole(path, json.dumps(document, indent=1))
    return path


def write_jobs(name: str, jobs: Any) -> Path:
    """Write `results/name` with jobs that were planned, not run, where and when; returns its path."""
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return write(name, {"date": datetime.date.today().isoformat(), "machine": machine, "jobs": jobs})
