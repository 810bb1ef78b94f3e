"""One interface, two devices. A device owns the memory of both sides and runs work on named streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from planner.errors import RunError
from planner.hardware import HardwareProfile

Work = Callable[[], None]


class Ticket(Protocol):
    """A launched operation."""

    def ended(self) -> bool:
        """Whether it has, without waiting for it."""

    def wait(self) -> None:
        """Block the host until it has ended; re-raises what it failed with."""


class Device(ABC):
    """Streams run their work in launch order; `waits` orders work across streams. Nothing else synchronises."""

    kind: str
    ragged: bool
    """Whether one attention call takes requests of all lengths: what plans for this kind of GPU count on."""
    torch_device: torch.device

    @abstractmethod
    def slab(self, place: str, nbytes: int) -> torch.Tensor:
        """A new uint8 slab of exactly `nbytes` on `gpu` or, page-locked where that exists, on `host`."""

    @abstractmethod
    def launch(self, stream: str, work: Work, waits: Sequence[Ticket], nbytes: int = 0) -> Ticket:
        """Run `work` on `stream` after `waits`; `nbytes` is what it moves over the link."""

    @abstractmethod
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy between host and GPU, within work on a link stream. Rows may be strided, each is contiguous."""

    @abstractmethod
    def ready(self) -> None:
        """Weights are loaded: from here on hold the device to its budget, where it can be held."""

    @abstractmethod
    def start_clock(self) -> None:
        """Time zero of the spans."""

    @abstractmethod
    def span_s(self, ticket: Ticket) -> tuple[float, float]:
        """(start, end) of an ended operation in seconds since `start_clock`."""

    @abstractmethod
    def synchronize(self) -> None:
        """Block until every stream is idle; re-raises the first failure. Only at the end of a run."""

    @abstractmethod
    def close(self) -> None:
        """Give threads and memory back."""


def on_device(values: Sequence[int] | Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A small tensor of `values`, copied in the order of the current stream, without waiting for it."""
    made = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=True)


def open_device(hardware: HardwareProfile) -> Device:
    """The device that `hardware` describes; RunError when this machine has none."""
    from runtime.cpu_device import CpuDevice  # noqa: PLC0415  (each device imports only what it needs)

    if hardware.gpu.device == "cpu":
        return CpuDevice.of(hardware)
    if not torch.cuda.is_available():
        raise RunError(
            f"the plan is for {hardware.gpu.name}, and this machine has no CUDA device. "
            "Plan with a profile of this machine: hybridserve profile --device cpu -o here.yaml"
        )
    from runtime.cuda_device import CudaDevice  # noqa: PLC0415

    return CudaDevice(hardware)
