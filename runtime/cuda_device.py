"""The CUDA device: one slab per side, one copy stream per direction, events for both hazards, no barrier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planner.errors import RunError
from planner.hardware import HardwareProfile
from planner.operation import STREAMS
from runtime.device import Device, Ticket, Work


@dataclass
class CudaTicket:
    """Events around an operation: the second one is what other streams wait for."""

    start: torch.cuda.Event
    end: torch.cuda.Event

    def ended(self) -> bool:
        return bool(self.end.query())

    def wait(self) -> None:
        self.end.synchronize()


class CudaDevice(Device):
    """Work is issued by the calling thread and runs asynchronously; only `synchronize` waits for everything."""

    kind = "cuda"
    ragged = True

    def __init__(self, hardware: HardwareProfile | None = None, index: int = 0) -> None:
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self._streams = {name: torch.cuda.Stream(self.torch_device) for name in STREAMS}
        self._zero = torch.cuda.Event(enable_timing=True)
        self._registered: list[torch.Tensor] = []
        self._usable_bytes = hardware.gpu.memory.usable_bytes.value if hardware else None
        free, self._total_bytes = torch.cuda.mem_get_info(self.torch_device)
        self._context_bytes = self._total_bytes - free
        self.start_clock()

    def ready(self) -> None:
        """Let the allocator have what the profile calls usable, less the context: a bad plan then fails at once."""
        torch.cuda.empty_cache()
        if self._usable_bytes is not None:
            share = (self._usable_bytes - self._context_bytes) / self._total_bytes
            torch.cuda.set_per_process_memory_fraction(min(1.0, max(share, 0.0)), self.torch_device)

    def slab(self, place: str, nbytes: int) -> torch.Tensor:
        try:
            if place == "gpu":
                return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)
            slab = torch.empty(nbytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise RunError(f"the {place} arena of {nbytes:,} bytes does not fit: {error}") from None
        return self._pinned(slab)

    def _pinned(self, slab: torch.Tensor) -> torch.Tensor:
        """Page-lock exactly these bytes: a caching pinned allocator would round up to a power of two."""
        if slab.numel():
            status = torch.cuda.cudart().cudaHostRegister(slab.data_ptr(), slab.numel(), 0)
            if int(status) != 0:
                raise RunError(
                    f"cannot page-lock {slab.numel():,} bytes of host memory (CUDA status {int(status)}). "
                    "Lower host.total_bytes in the profile, or raise the limit of locked memory (ulimit -l)"
                )
            self._registered.append(slab)
        return slab

    def launch(self, stream: str, work: Work, waits: Sequence[Ticket], nbytes: int = 0) -> Ticket:
        lane = self._streams[stream]
        for wait in waits:
            assert isinstance(wait, CudaTicket)
            lane.wait_event(wait.end)
        ticket = CudaTicket(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        with torch.cuda.stream(lane), torch.inference_mode():
            ticket.start.record(lane)
            work()
            ticket.end.record(lane)
        return ticket

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if target.is_contiguous() and source.is_contiguous():
            target.copy_(source, non_blocking=True)
            return
        # A strided copy would go through a hidden temporary and block: send the contiguous rows one by one.
        for into, out_of in zip(target, source, strict=True):
            self.copy(into, out_of)

    def start_clock(self) -> None:
        torch.cuda.synchronize(self.torch_device)
        self._zero.record(self._streams["compute"])

    def span_s(self, ticket: Ticket) -> tuple[float, float]:
        assert isinstance(ticket, CudaTicket)
        start, end = self._zero.elapsed_time(ticket.start), self._zero.elapsed_time(ticket.end)
        return start / 1e3, end / 1e3

    def synchronize(self) -> None:
        for lane in self._streams.values():
            lane.synchronize()

    def close(self) -> None:
        torch.cuda.synchronize(self.torch_device)
        for slab in self._registered:
            torch.cuda.cudart().cudaHostUnregister(slab.data_ptr())
        self._registered.clear()
        torch.cuda.set_per_process_memory_fraction(1.0, self.torch_device)
