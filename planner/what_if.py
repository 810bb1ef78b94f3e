"""What a machine could have more of, in steps that a person buys: link, compute, GPU memory, host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from planner.hardware import HardwareProfile
from planner.tables import size

Resource = Literal["link", "compute", "gpu_memory", "host_memory"]
RATES: tuple[Resource, ...] = ("link", "compute")
"""Share more of these makes a job at most that share faster."""
GIB = float(2**30)
LINK_STEP_BYTES_PER_S, COMPUTE_STEP_SHARE, GPU_STEP_BYTES, HOST_STEP_BYTES = 1e9, 0.01, GIB, 16 * GIB
LARGEST_STEP_SHARE, STEP_OF_A_SMALL_MACHINE = 0.5, 0.1
"""A round step of more than this share of what there is, as on a scale model, gives way to the second share."""


@dataclass(frozen=True)
class Step:
    """More of one resource: `share` of what there is."""

    resource: Resource
    share: float
    change: str
    """In words, e.g. "+1 GiB of GPU memory"."""


def steps(hardware: HardwareProfile) -> Iterator[Step]:
    """One step of every resource, as large as this machine makes sensible."""
    rate = hardware.link.h2d_bytes_per_s.value
    yield _step("link", LINK_STEP_BYTES_PER_S, rate, "1 GB/s", lambda n: f"{size(n)}/s", "link")
    yield Step("compute", COMPUTE_STEP_SHARE, f"+{COMPUTE_STEP_SHARE:.0%} of compute speed")
    gpu, host = hardware.gpu.budget_bytes, hardware.host.budget_bytes
    yield _step("gpu_memory", GPU_STEP_BYTES, gpu, "1 GiB", size, "GPU memory")
    yield _step("host_memory", HOST_STEP_BYTES, host, "16 GiB", size, "host memory")


def _step(
    resource: Resource, wanted: float, present: float, said: str, amount: Callable[[float], str], of: str
) -> Step:
    if wanted <= LARGEST_STEP_SHARE * present:
        return Step(resource, wanted / present, f"+{said} of {of}")
    share = STEP_OF_A_SMALL_MACHINE
    return Step(resource, share, f"+{share:.0%} of {of} ({amount(share * present)})")


def with_more(hardware: HardwareProfile, resource: Resource, share: float) -> HardwareProfile:
    """`hardware` with (1 + share) times as much of `resource`.

    Link: every rate of both directions, so that their proportions stay. Compute: every kernel and overhead. Memory: the
    budgets, so what is reserved stays.
    """
    if resource == "compute":
        return hardware.at_speed(1 / (1 + share), 1 / (1 + share))
    if resource == "link":
        rates = ((key, getattr(hardware.link, key)) for key in type(hardware.link).model_fields)
        return hardware.with_values(
            **{f"link.{key}": rate.value * (1 + share) for key, rate in rates if key.endswith("_bytes_per_s")}
        )
    if resource == "gpu_memory":
        memory, more = hardware.gpu.memory, share * hardware.gpu.budget_bytes
        return hardware.with_values(**{
            "gpu.memory.nominal_bytes": memory.nominal_bytes.value + more,
            "gpu.memory.usable_bytes": memory.usable_bytes.value + more,
        })  # fmt: skip
    total = hardware.host.total_bytes.value + share * hardware.host.budget_bytes
    return hardware.with_values(**{"host.total_bytes": total})
