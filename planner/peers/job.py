"""A job as other systems run it: equal requests, since they pad. And what such a run comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.costs import CostModel
from planner.workload import Workload


@dataclass(frozen=True)
class Job:
    """Equal requests, run as one batch."""

    batch: int
    prompt_len: int
    gen_len: int

    @classmethod
    def padded(cls, workload: Workload) -> Job:
        """Every prompt as long as the longest, every request running until the last one ends."""
        requests = workload.requests
        return cls(len(requests), max(r.prompt_len for r in requests), max(r.gen_len for r in requests))

    @property
    def mean_cached(self) -> float:
        """Cached tokens of one request, mean over the decode steps; prefill yields the first token."""
        return self.prompt_len + self.gen_len / 2 - 1

    @property
    def tokens(self) -> int:
        """Of all requests, prompt and generation."""
        return self.batch * (self.prompt_len + self.gen_len)

    def in_rounds(self, rounds: int) -> Job:
        """What runs together when the batch runs in so many rounds, one after the other; the last may be smaller."""
        return replace(self, batch=-(-self.batch // rounds))


@dataclass(frozen=True)
class Busy:
    """What a mean decode step keeps busy, in seconds; and the bytes that it moves to the GPU."""

    link_s: float
    compute_s: float
    link_bytes: float


@dataclass(frozen=True)
class Phases:
    """Seconds of prefill and of a mean decode step."""

    prefill_s: float
    decode_step_s: float
    busy: Busy | None = None
    """Of the decode step."""

    def total_s(self, job: Job) -> float:
        """Prefill and every decode step."""
        return self.prefill_s + (job.gen_len - 1) * self.decode_step_s

    def tokens_per_s(self, job: Job) -> float:
        """Generated tokens over prefill and decode, as FlexGen's and DeepSpeed's scripts count."""
        return job.batch * job.gen_len / self.total_s(job)


def rounds_to_try(job: Job) -> Iterator[int]:
    """Numbers of rounds, from a single one to one request in each."""
    rounds = 1
    while rounds < job.batch:
        yield rounds
        rounds *= 2
    yield job.batch


def fewest_rounds(job: Job, fits: Callable[[Job], bool]) -> int | None:
    """The fewest rounds whose requests fit; None where one request alone does not."""
    if not fits(job.in_rounds(job.batch)):
        return None
    low, high = 0, next(rounds for rounds in rounds_to_try(job) if fits(job.in_rounds(rounds)))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(job.in_rounds(middle)) else (middle, high)
    return high


def compute(costs: CostModel, job: Job) -> Phases:
    """GPU seconds of a pass over all layers, K and V on the GPU, one attention call a layer."""
    layers, tokens = costs.model.layers, job.batch * job.prompt_len
    prefill = layers * costs.prefill_forward((job.prompt_len,) * job.batch).seconds + costs.embed(tokens).seconds
    decode = layers * costs.decode_forward(job.batch, job.batch * job.mean_cached).seconds
    decode += costs.embed(job.batch).seconds
    sample = costs.sample(job.batch).seconds
    return Phases(prefill + sample, decode + sample)
