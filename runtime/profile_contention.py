"""What compute loses while bytes cross the link: both want the same memory bandwidth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from runtime.kernels import Kernels

COPY_BYTES = 2**24
"""Of one copy: far more than caches hold of it, little enough to stop soon."""
TURNS = 10
CALLS = 4
ROWS, REQUESTS, CONTEXT = 1024, 8, 256
"""A rebuild and an attention call, the two kernels that decode steps mostly consist of."""


def lost_per_byte(kernels: Kernels) -> list[float]:
    """Seconds that kernels lose for each byte copied beside them, one figure per turn; never below 0."""
    work = kernels.product, kernels.attend

    def compute() -> None:
        for _ in range(CALLS):
            work[0](ROWS, kernels.hidden, 2 * kernels.hidden)
            work[1](REQUESTS, CONTEXT, kernels.heads, 1)

    beside = _beside_copies if kernels.operands.device.type == "cpu" else _beside_transfers
    found = []
    for _ in range(TURNS):
        alone = _seconds(compute)
        slowed, moved = beside(compute)
        alone = min(alone, _seconds(compute))
        found.append(max(slowed - alone, 0.0) / moved)
    return found


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _beside_copies(compute: Callable[[], None]) -> tuple[float, float]:
    """(seconds, bytes copied meanwhile) on the CPU device, where a thread is the link."""
    source, target = (torch.zeros(16 * COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    stop, copied, started = threading.Event(), [0], threading.Event()

    def copy() -> None:
        torch.set_num_threads(1)
        at = 0
        while not stop.is_set():
            target[at : at + COPY_BYTES].copy_(source[at : at + COPY_BYTES])
            at = (at + COPY_BYTES) % (16 * COPY_BYTES)
            copied[0] += COPY_BYTES
            started.set()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    started.wait()
    before = copied[0]
    taken = _seconds(compute)
    moved = copied[0] - before
    stop.set()
    thread.join()
    return taken, float(max(moved, COPY_BYTES))


def _beside_transfers(compute: Callable[[], None]) -> tuple[float, float]:
    """(seconds, bytes) on a CUDA device, where a copy engine is the link."""
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8).pin_memory()
    lane = torch.cuda.Stream()
    events = []
    with torch.cuda.stream(lane):
        for _ in range(256):
            target.copy_(source, non_blocking=True)
            events.append(lane.record_event())
    start = time.perf_counter()
    compute()
    torch.cuda.current_stream().synchronize()
    taken = time.perf_counter() - start
    moved = sum(event.query() for event in events) * COPY_BYTES
    torch.cuda.synchronize()
    return taken, float(max(moved, COPY_BYTES))
