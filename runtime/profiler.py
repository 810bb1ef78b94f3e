"""Measures what the cost model uses, with the engine's own kernels and the engine itself, in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from planner.errors import InputError
from planner.files import validate
from planner.hardware import HardwareProfile
from planner.speed import Reading, Speed
from runtime.calibration import EngineFit, Probes
from runtime.gauge import BEFORE_A_RUN, Gauge
from runtime.kernels import Kernels, widest
from runtime.machine import device_memory_bytes, in_use_bytes
from runtime.profile_document import Measured, document
from runtime.profile_link import link_probe
from runtime.timing import Operands, Round, Series, Timer

Progress = Callable[[int, int, str], None]
"""(stages done, stages in all, what is being measured)."""

ROUNDS = 9
"""Everything is measured this often, in turn with everything else, so that a slow spell of the machine hits all."""
FEWEST_ROUNDS = 5
BUDGET_S = {"cpu": 50.0, "cuda": 100.0}
"""No further round begins after this."""


@dataclass(frozen=True)
class Request:
    """What to measure: the kernel shapes of one model width, and the link to assume or measure."""

    device: str
    hidden: int = 512
    heads: int = 8
    dtype: str = "float32"
    link_bytes_per_s: float | None = None
    """CPU only: the pace of the link; None for half the speed of a copy."""
    gpu_bytes: int | None = None
    """A smaller budget than the device has."""
    profile_id: str = "measured"
    rounds: int | None = None
    """How often everything is measured; None for `ROUNDS`."""


class Profiler:
    """One measurement of one device."""

    STAGES = ROUNDS + 1

    def __init__(self, request: Request, progress: Progress) -> None:
        if request.device == "cuda" and not torch.cuda.is_available():
            raise InputError("this machine has no CUDA device", where="--device", cure="Use --device cpu")
        self.request, self.progress = request, progress
        self.device = torch.device(request.device)
        self.dtype: torch.dtype = getattr(torch, request.dtype)
        if request.hidden > widest(self.dtype):
            what = f"{request.hidden} is wider than the operands measured here"
            raise InputError(what, where="--hidden", cure=f"Give at most {widest(self.dtype)}, or a narrower --dtype")
        there = device_memory_bytes(self.device)
        if request.gpu_bytes and request.gpu_bytes > there:
            what = f"{request.gpu_bytes / 1e9:g} GB is more than the {there / 1e9:.4g} GB of this device"
            raise InputError(what, where="--gpu-memory-gb", cure="Give less, or leave it out")
        self._in_use = in_use_bytes(self.device)
        self.round = Round(Timer(self.device))
        self._readings: list[Reading] = []
        self._turns = 0

    def run(self) -> HardwareProfile:
        """Measure everything: under a minute on one CPU core, under two on CUDA."""
        with self.measuring():
            started = time.perf_counter()
            rounds = self.request.rounds or ROUNDS
            for turn in range(rounds):
                if enough(turn, started, self.device.type):
                    break
                self.progress(turn + 1, self.STAGES, f"round {turn + 1} of {rounds}")
                self.round_of_turns()
            return self.profile()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Holds operands and probes, for as many turns as wanted."""
        self.progress(0, self.STAGES, "a first look")
        self._kernels = Kernels(self.request.hidden, Operands(self.device, self.dtype))
        with one_thread(), torch.inference_mode():
            self._link = link_probe(self.device, self.request.link_bytes_per_s, self._kernels)
            self._kernels.run(self.round)
            self._link.run()
            # How busy the probes' streams are follows from a first look; what they measure does not depend on it.
            look = self._profile(None)
            self._probes = Probes.open(look, self.request.hidden, self.request.dtype)
            self._gauge = Gauge(look, kernels=self._kernels)
        try:
            yield
        finally:
            self._probes.close()

    def round_of_turns(self) -> None:
        """Every probe once, in turn with everything else."""
        for _ in self._probes.jobs:
            self.turn()

    def turn(self) -> None:
        """All kernels and the link once more, and the next probe."""
        probes = self._probes.jobs
        with one_thread(), torch.inference_mode():
            self._kernels.run(self.round)
            self._link.run()
            probes[self._turns % len(probes)].run()
            self._readings += self._gauge.read()
        self._turns += 1

    def profile(self) -> HardwareProfile:
        """What has been measured so far, after at least one round."""
        return self._profile(self._probes)

    @property
    def reference_s(self) -> dict[str, float]:
        """What a gauge's sample took meanwhile: the lower quartile, as for every kernel of the profile."""
        names = {reading.name for reading in self._readings}
        return {
            name: Series(1.0, [one.measured_s for one in self._readings if one.name == name]).quiet_s for name in names
        }

    def speed(self) -> Speed:
        """How fast the machine is at this moment, against what `profile` says."""
        reference = self.reference_s
        return Speed.of([replace(one, profile_s=reference[one.name]) for one in self._gauge.read(BEFORE_A_RUN)])

    @property
    def repeatability(self) -> float:
        """How far two profiles taken one after the other would differ, relative."""
        return self.round.repeatability

    def _profile(self, probes: Probes | None) -> HardwareProfile:
        """Without probes the engine adds next to nothing to its kernels."""

        def of(fit: EngineFit) -> HardwareProfile:
            runs = len(probes.jobs[0].runs) if probes else 1
            measured = Measured(self.request, self.device, self._in_use, self.round, self._link, fit, runs)
            return validate(HardwareProfile, document(measured), "profile")

        alone = of(EngineFit.none())
        return of(probes.fit(alone)) if probes else alone


def enough(rounds: int, started: float, device: str) -> bool:
    """True when the time is used up, after the fewest rounds that are worth anything."""
    return rounds >= FEWEST_ROUNDS and time.perf_counter() - started > BUDGET_S[device]


@contextmanager
def one_thread() -> Iterator[None]:
    """Kernels on one core, as the CPU device computes; the other one carries the link."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
