"""What compute loses while bytes cross the link: both want the same memory bandwidth."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import torch

from runtime.kernels import Kernels
from runtime.timing import Series

COPY_BYTES = 2**24
"""Of one copy: far more than caches hold of it, little enough to stop soon."""
CALLS = 2
ROWS, REQUESTS, CONTEXT = 1024, 8, 256
"""A rebuild and an attention call, the two kernels that decode steps mostly consist of."""


class Contention:
    """Times compute alone and beside copies, in turn."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.alone_s: list[float] = []
        self.beside_s: list[float] = []
        self.moved_bytes: list[float] = []
        cpu = kernels.operands.device.type == "cpu"
        self._beside: Callable[[], tuple[float, float]] = self._beside_copies if cpu else self._beside_transfers
        shape = (16 * COPY_BYTES,)
        self._operands = [torch.zeros(shape, dtype=torch.uint8) for _ in range(2 if cpu else 0)]

    def run(self) -> None:
        """One more pair of timings."""
        self.alone_s.append(self._seconds())
        seconds, moved = self._beside()
        self.beside_s.append(seconds)
        self.moved_bytes.append(moved)

    def lost_s_per_byte(self) -> list[float]:
        """Seconds that compute lost for each byte moved beside it, one figure per pair; never below 0."""
        pairs = zip(self.alone_s, self.beside_s, self.moved_bytes, strict=True)
        return [max(beside - alone, 0.0) / moved for alone, beside, moved in pairs]

    @property
    def undisturbed_s_per_byte(self) -> float:
        """The same between the quiet times of both, which a slow spell during one of them does not touch."""
        alone, beside = (Series(1.0, seconds).quiet_s for seconds in (self.alone_s, self.beside_s))
        return max(beside - alone, 0.0) / statistics.median(self.moved_bytes)

    def _compute(self) -> None:
        k = self.kernels
        for _ in range(CALLS):
            k.product(ROWS, k.hidden, 2 * k.hidden)
            k.attend(REQUESTS, CONTEXT, k.heads, 1)

    def _seconds(self) -> float:
        start = time.perf_counter()
        self._compute()
        if self.kernels.operands.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.perf_counter() - start

    def _beside_copies(self) -> tuple[float, float]:
        """(seconds, bytes copied meanwhile) on the CPU device, where a thread is the link."""
        source, target = self._operands
        stop, started, copied = threading.Event(), threading.Event(), [0]

        def copy() -> None:
            torch.set_num_threads(1)
            at = 0
            with torch.inference_mode():  # a mode of the thread, not of the process
                while not stop.is_set():
                    target[at : at + COPY_BYTES].copy_(source[at : at + COPY_BYTES])
                    at = (at + COPY_BYTES) % len(source)
                    copied[0] += COPY_BYTES
                    started.set()

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        started.wait()
        before = copied[0]
        taken = self._seconds()
        moved = copied[0] - before
        stop.set()
        thread.join()
        return taken, float(max(moved, COPY_BYTES))

    def _beside_transfers(self) -> tuple[float, float]:
        """(seconds, bytes) on a CUDA device, where a copy engine is the link."""
        target = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
        source = torch.zeros(COPY_BYTES, dtype=torch.uint8).pin_memory()
        lane = torch.cuda.Stream()
        events = []
        with torch.cuda.stream(lane):
            for _ in range(256):
                target.copy_(source, non_blocking=True)
                events.append(lane.record_event())
        taken = self._seconds()
        moved = sum(event.query() for event in events) * COPY_BYTES
        torch.cuda.synchronize()
        return taken, float(max(moved, COPY_BYTES))
