"""Loading a checkpoint takes the planned bytes and one shard beside them, as the operating system counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from family_helpers import build, save
from runtime_helpers import planned

from planner.model import load_model
from planner.workload import Workload

SHARD_MB, SLACK_MB = 6, 5
"""The slack is for what Python, threads and the allocator take."""
CODE = """
import json, sys
from pathlib import Path
from benchmarks.memory import status_bytes, warm_up
from planner.plan import read_plan
from runtime.cpu_device import CpuDevice
from runtime.engine import Engine
from runtime.layers.base import layers_for
from runtime.weights import Checkpoint
plan, folder = read_plan(Path(sys.argv[1])), Path(sys.argv[2])
warm_up()
device, source = CpuDevice(None, None), Checkpoint(folder, layers_for(plan.model))
before = status_bytes("VmRSS")
engine = Engine(plan, device, source)
print(json.dumps({"loading": status_bytes("VmHWM") - before}))
device.close()
"""


def test_peak_while_loading_is_the_plan_and_one_shard(tmp_path: Path) -> None:
    wide = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "head_dim": 96}
    folder = save(build("llama", **wide), tmp_path / "model", f"{SHARD_MB}MB")
    shards = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert len(shards) > 5 and sum(shards) > 3 * (max(shards) + SLACK_MB * 1e6)
    plan = planned(load_model(str(folder)), Workload.uniform(2, 20, 4), gpu_bytes=2e7, max_resident_layers=1)
    plan.write(tmp_path / "plan.yaml")
    words = [sys.executable, "-c", CODE, str(tmp_path / "plan.yaml"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    budget = sum(record.planned_bytes for record in plan.memory.values())
    assert json.loads(done.stdout)["loading"] <= budget + max(shards) + SLACK_MB * 1e6
