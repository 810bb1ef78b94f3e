"""What another system would make of a job: figures as a plan's, and what limits them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType

from planner.errors import InfeasibleError
from planner.hardware import HardwareProfile
from planner.operation import STREAMS
from planner.peers.job import Job, Phases
from planner.results import TIME_KEYS
from planner.tables import bullets, pairs, rate, seconds, size
from planner.workload import Workload


@dataclass(frozen=True)
class Memory:
    """Bytes that a run takes."""

    gpu: float
    host: float

    def fits(self, hardware: HardwareProfile) -> bool:
        """Within both budgets."""
        return self.gpu <= hardware.gpu.budget_bytes and self.host <= hardware.host.budget_bytes

    def refusal(self, policy: str, hardware: HardwareProfile, cure: str) -> InfeasibleError:
        """Why `policy` cannot run a single request that takes this."""
        short = {
            "gpu": self.gpu - hardware.gpu.budget_bytes, "host": self.host - hardware.host.budget_bytes,
        }  # fmt: skip
        device = max(short, key=lambda name: short[name])
        name = "GPU" if device == "gpu" else device
        what = f"{policy} needs {size(short[device])} more {name} memory than {hardware.id} has, even for one request"
        return InfeasibleError(what, limit=f"{device}_memory", missing_bytes=short[device], cure=cure)


@dataclass(frozen=True)
class Forecast:
    """A run of a whole job by another system. There is no plan to execute: our engine runs otherwise."""

    policy: str
    job: Job
    """Padded, all requests."""
    rounds: int
    """In which the requests run, one after the other."""
    phases: Phases
    """Of one round."""
    memory: Memory
    generated_tokens: int
    """Without padding."""
    act_share: float | None
    """Of the cache kept as activations; None where the system has no such choice."""
    settings: tuple[str, ...]
    """What the system was given, or chose, in words."""
    limits: str
    """What limits it, beside what is busy."""

    @classmethod
    def of(
        cls, policy: str, workload: Workload, rounds: int, phases: Phases, memory: Memory, *, limits: str,
        settings: tuple[str, ...] = (), act_share: float | None = None,
    ) -> Forecast:  # fmt: skip
        job = Job.padded(workload)
        tokens = workload.total_generated_tokens
        return cls(policy, job, rounds, phases, memory, tokens, act_share, settings, limits)

    @property
    def prefill_s(self) -> float:
        return self.rounds * self.phases.prefill_s

    @property
    def decode_s(self) -> float:
        return self.rounds * (self.job.gen_len - 1) * self.phases.decode_step_s

    @property
    def decode_step_s(self) -> float:
        return self.phases.decode_step_s if self.job.gen_len > 1 else 0.0

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s

    @property
    def throughput_tokens_per_s(self) -> float:
        """Generated tokens, padding not counted, over prefill and decode."""
        return self.generated_tokens / self.total_s

    def busy_fraction(self, stream: str) -> float:
        """Of a decode step; nothing is said of the way back to the host."""
        busy, step = self.phases.busy, self.phases.decode_step_s
        if busy is None or not step:
            return 0.0
        return {"h2d": busy.link_s, "compute": busy.compute_s, "d2h": 0.0}[stream] / step

    @property
    def binding(self) -> str:
        return "link" if self.busy_fraction("h2d") > self.busy_fraction("compute") else "compute"

    @property
    def limited_by(self) -> str:
        """In words, with what is busy."""
        link, gpu = self.busy_fraction("h2d"), self.busy_fraction("compute")
        return f"{self.limits}; the link is busy {link:.0%} of decoding, the GPU {gpu:.0%}"

    @property
    def padding(self) -> float:
        """Share of the generated tokens that are thrown away."""
        return 1 - self.generated_tokens / (self.job.batch * self.job.gen_len)


def forecast_result(found: Forecast, hardware: HardwareProfile) -> dict[str, Any]:
    """Plain data with the keys of a plan's result; what a forecast does not have is None."""
    capacity = {"gpu": hardware.gpu.budget_bytes, "host": hardware.host.budget_bytes}
    busy = found.phases.busy
    return {
        "policy": found.policy,
        "executable": False,
        **{key: getattr(found, key) for key in TIME_KEYS},
        "bound_total_s": None,
        "gap": None,
        "act_share": found.act_share,
        "waves": found.rounds,
        "memory": {
            name: {"capacity_bytes": most, "planned_bytes": round(getattr(found.memory, name))}
            for name, most in capacity.items()
        },
        "binding": found.binding,
        "streams": {
            name: {
                "busy_fraction": found.busy_fraction(name),
                "bytes_per_s": busy.link_bytes / busy.link_s if busy and busy.link_s and name == "h2d" else 0.0,
            }
            for name in STREAMS
        },
        "settings": list(found.settings),
        "limited_by": found.limited_by,
    }


def forecast_report(found: Forecast, hardware: HardwareProfile, model: str) -> RenderableType:
    """A forecast for people."""
    title = f"{found.policy}: {model} on {hardware.id}, {found.job.batch:,} requests. A forecast, not a plan to run"
    rows = [
        ("throughput", rate(found.throughput_tokens_per_s)),
        ("total", seconds(found.total_s)),
        ("prefill", seconds(found.prefill_s)),
        ("decode", f"{seconds(found.decode_s)}, {seconds(found.decode_step_s)} a step"),
        ("rounds", f"{found.rounds}"),
        ("GPU memory", f"{size(found.memory.gpu)} of {size(hardware.gpu.budget_bytes)}"),
        ("host memory", f"{size(found.memory.host)} of {size(hardware.host.budget_bytes)}"),
    ]
    if found.padding:
        rows.append(("padding", f"{found.padding:.0%} of what it generates"))
    return Group(pairs(title, rows), bullets("Why", (f"Limited by {found.limited_by}", *found.settings)))


def in_rounds(rounds: int, what: str) -> str:
    """One round of 4 batches of 32; 3 rounds of up to 12 requests."""
    return f"{'One round' if rounds == 1 else f'{rounds} rounds'} of {what}"
