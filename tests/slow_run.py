"""`hybridserve` with a journal after every step and pauses between operations: something to kill."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import hybridserve  # noqa: E402
import runtime.engine  # noqa: E402
import runtime.execution  # noqa: E402
from runtime.cpu_device import CpuDevice  # noqa: E402

runtime.engine.LOOKAHEAD = 8
real = runtime.execution.execute


def slow(*args: Any, **more: Any) -> Any:
    device = CpuDevice(None, None, lambda stream: 2e-4)
    return real(*args, **more | {"keep_every_s": 0.0, "device": device})


runtime.execution.execute = slow
hybridserve.main()
