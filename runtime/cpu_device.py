"""The CPU device: an arena stands in for GPU memory, and a paced thread for each direction of the link.

Transfers are real copies, overlap is real concurrency and hazards are real races; only the link's speed is set.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import cast

import torch

from planner.errors import RunError
from planner.hardware import HardwareProfile
from planner.operation import STREAMS
from runtime.device import Device, Ticket, Work
from runtime.machine import available_memory_bytes

LOOKS_S = {"compute": 2e-5, "h2d": 2e-4, "d2h": 2e-4}
"""How often a waiting stream looks. Links make good for what they begin too late, and looking costs compute: each look
takes Python from it."""
HOST_LOOKS_S = 1e-3
"""How often whoever follows the streams does."""
Delay = Callable[[str], float]
"""Seconds to sleep before an operation of the named stream: injected by tests."""


@dataclass
class CpuTicket:
    """Ends once; remembers when, and what it failed with."""

    asked_s: float = field(default_factory=time.perf_counter)
    """When it was put in its queue: before that no link could have begun it."""
    start_s: float = 0.0
    end_s: float = inf
    """Known before then for a transfer on a paced link, as soon as its bytes are copied."""
    error: BaseException | None = None

    def ended(self) -> bool:
        return time.perf_counter() >= self.end_s

    def wait(self, look_s: float = HOST_LOOKS_S) -> None:
        """Looks every `look_s`. Were the waiting thread woken, the one that wakes it would pay for it, between two
        operations, with some ten microseconds."""
        while (left := self.end_s - time.perf_counter()) > 0:
            time.sleep(min(left, look_s))
        if self.error is not None:
            raise RunError(f"an operation failed: {self.error}") from self.error


@dataclass(frozen=True)
class Pace:
    """How long a transfer takes on the modelled link."""

    bytes_per_s: float
    latency_s: float

    def seconds(self, nbytes: int) -> float:
        return self.latency_s + nbytes / self.bytes_per_s


_Item = tuple[Work, Sequence[CpuTicket], int, CpuTicket]
_SET_TIMER_SLACK = 29
"""PR_SET_TIMERSLACK of Linux's prctl: nanoseconds by which a sleep of this thread may end late, 50,000 unless set."""


def _sleep_punctually() -> None:
    """Sleeps of this thread end as soon as the system can wake it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1000, 0, 0, 0)


class _Worker:
    """One stream: a thread that runs its queue in order."""

    def __init__(self, name: str, pace: Pace | None, delay: Delay | None) -> None:
        self.name, self.pace, self.delay = name, pace, delay
        self.items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self.free_at = 0.0
        self.thread = threading.Thread(target=self._run, name=f"stream-{name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        torch.set_num_threads(1)  # per thread: one core computes, the other carries the link
        _sleep_punctually()
        with torch.inference_mode():
            while (item := self.items.get()) is not None:
                work, waits, nbytes, ticket = item
                try:
                    for wait in waits:
                        wait.wait(LOOKS_S[self.name])
                    self._execute(work, waits, nbytes, ticket)
                except BaseException as error:  # handed to whoever waits
                    ticket.error = error
                    ticket.end_s = time.perf_counter()

    def _execute(self, work: Work, waits: Sequence[CpuTicket], nbytes: int, ticket: CpuTicket) -> None:
        if self.delay:
            time.sleep(self.delay(self.name))
        pace = self.pace if nbytes else None  # an empty transfer does not touch the link
        ticket.start_s = time.perf_counter()
        if pace:
            # A copy engine begins what is queued the moment it may. This thread wakes later than that, and makes good
            # for it, since it copies faster than the link is paced.
            ticket.start_s = max(self.free_at, ticket.asked_s, *(wait.end_s for wait in waits))
        work()
        now = time.perf_counter()
        if pace is None:
            ticket.end_s = now
        else:
            ticket.end_s = self.free_at = max(now, ticket.start_s + pace.seconds(nbytes))
            time.sleep(ticket.end_s - now)


class CpuDevice(Device):
    """Three threads: compute, and one for each direction of the link at the pace of the profile."""

    kind = "cpu"
    ragged = False
    torch_device = torch.device("cpu")

    def __init__(self, h2d: Pace | None, d2h: Pace | None, delay: Delay | None = None) -> None:
        """`None` for a direction copies as fast as memory allows."""
        paces = {"h2d": h2d, "d2h": d2h}
        self._workers = {name: _Worker(name, paces.get(name), delay) for name in STREAMS}
        self._zero = time.perf_counter()
        self._last: dict[str, CpuTicket] = {}

    @classmethod
    def of(cls, hardware: HardwareProfile, delay: Delay | None = None) -> CpuDevice:
        link = hardware.link
        latency = link.latency_s.value
        return cls(Pace(link.h2d_bytes_per_s.value, latency), Pace(link.d2h_bytes_per_s.value, latency), delay)

    def slab(self, place: str, nbytes: int) -> torch.Tensor:
        available = available_memory_bytes()
        if nbytes > available:
            raise RunError(
                f"the {place} arena takes {nbytes:,} bytes, {nbytes - available:,} more than this machine has free. "
                "Plan with a smaller memory, fewer requests or shorter ones"
            )
        # Zeroed, so that every page is there before the clock starts: a first touch costs as much as a slow copy.
        return torch.empty(nbytes, dtype=torch.uint8).zero_()

    def launch(self, stream: str, work: Work, waits: Sequence[Ticket], nbytes: int = 0) -> Ticket:
        ticket = CpuTicket()
        self._workers[stream].items.put((work, cast(Sequence[CpuTicket], waits), nbytes, ticket))
        self._last[stream] = ticket
        return ticket

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def ready(self) -> None:
        """Nothing to do: the arena is the budget."""

    def start_clock(self) -> None:
        self._zero = time.perf_counter()

    def span_s(self, ticket: Ticket) -> tuple[float, float]:
        assert isinstance(ticket, CpuTicket)
        return ticket.start_s - self._zero, ticket.end_s - self._zero

    def synchronize(self) -> None:
        for ticket in list(self._last.values()):
            ticket.wait()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.items.put(None)
        for worker in self._workers.values():
            worker.thread.join(timeout=60)
