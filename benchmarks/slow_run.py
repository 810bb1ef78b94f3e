"""`python -m benchmarks.slow_run ...`: `hybridserve ...` with a journal after every step and pauses between operations:
something to kill."""

from __future__ import annotations

from typing import Any

import hybridserve
import runtime.execution
import runtime.issuing
from runtime.cpu_device import CpuDevice

PAUSE_S = 2e-4


def main() -> None:
    """The command, slowed down."""
    runtime.issuing.LOOKAHEAD = 8
    real = runtime.execution.execute

    def slow(*args: Any, **more: Any) -> Any:
        device = CpuDevice(None, None, lambda stream: PAUSE_S)
        return real(*args, **more | {"keep_every_s": 0.0, "device": device})

    runtime.execution.execute = slow
    hybridserve.main()


if __name__ == "__main__":
    main()
