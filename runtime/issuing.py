"""Hands the operations of a wave to a device in schedule order, and hears of those that have ended."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from planner.operation import Operation
from planner.schedule import Schedule
from runtime.device import Device, Ticket
from runtime.keeper import Keeper
from runtime.live import Live
from runtime.wave import Wave

LOOKAHEAD = 1024
"""Operations issued before the oldest must have ended: enough to keep every stream fed, little enough to stop."""


class Issued(NamedTuple):
    """An operation on its stream."""

    op: Operation
    ticket: Ticket
    nbytes: int
    """What it moves over the link: less than planned where requests ended early."""
    chosen_for: tuple[int, ...]
    """Of a sample operation: whose tokens it chooses."""


class Issuer:
    """Of one wave."""

    def __init__(self, device: Device, wave: Wave, schedule: Schedule, keeper: Keeper | None, live: Live) -> None:
        self.device, self.wave, self.schedule, self.keeper, self.live = device, wave, schedule, keeper, live
        self._pending: deque[Issued] = deque()
        self._looks_for_ends = keeper is not None and keeper.ends is not None

    def run(self) -> list[Issued]:
        """Every operation, up to the step after which no request goes on. RunError when one fails."""
        issued: list[Issued] = []
        for op in self.schedule:
            self._make_room(op.step)
            if self._looks_for_ends and self.keeper and self.keeper.over:
                break
            task = self.wave.task(op, self.keeper.ended if self.keeper else ())
            waits = [issued[w].ticket for w in op.waits]
            ticket = self.device.launch(op.stream, task.work, waits, task.nbytes)
            issued.append(Issued(op, ticket, task.nbytes, task.chosen_for))
            self._pending.append(issued[-1])
        while self._pending:
            self._settle()
        return issued

    def _make_room(self, step: int) -> None:
        """Waits while too much is in flight.

        Who ended with step t is known when step t + 2 is issued: until then compute and link have step t + 1 to do,
        so neither waits for this thread, and what ends early costs one step more at most.
        """
        pending = self._pending
        while pending and (
            len(pending) > LOOKAHEAD
            or (self._looks_for_ends and pending[0].op.step < step - 1)
            or pending[0].ticket.ended()
        ):
            self._settle()

    def _settle(self) -> None:
        oldest = self._pending.popleft()
        oldest.ticket.wait()
        if not oldest.chosen_for:
            return
        self.live.chosen(len(oldest.chosen_for))
        if self.keeper:
            self.live.not_needed(self.keeper.sampled(oldest.chosen_for, oldest.op.step))
