"""What is left of a job: the requests that have not ended, each going on after what it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner.plan import Plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Request, Workload
from runtime.completions import completion
from runtime.journal import Journal
from runtime.prompts import Prompt, Text
from runtime.sampling import Sampling


@dataclass(frozen=True)
class Rest:
    """A job to run, and whose tokens it makes: request r of `plan` is `prompts[r]`, which has `before[r]` already."""

    plan: Plan
    prompts: tuple[Prompt, ...]
    before: tuple[list[int], ...]

    @property
    def given(self) -> list[list[int]]:
        """Token ids to begin with."""
        return [prompt.tokens + had for prompt, had in zip(self.prompts, self.before, strict=True)]

    @property
    def ways(self) -> list[Sampling]:
        """How the tokens of each request are chosen: draws go on where they were."""
        return [replace(p.sampling, first=len(had)) for p, had in zip(self.prompts, self.before, strict=True)]

    def whole(self, made: Mapping[int, Sequence[int]]) -> dict[str, list[int]]:
        """Everything that requests have generated, by id, when this run made `made`."""
        return {self.prompts[r].id: self.before[r] + list(tokens) for r, tokens in made.items()}


def rest_of(plan: Plan, prompts: Sequence[Prompt], journal: Journal | None, text: Text) -> Rest | None:
    """`plan` itself where nothing has been done, else a plan for what is left, made as that one was; None where nothing
    is left. Requests that have ended by themselves since the journal was written are marked so in it."""
    if journal is None or not journal.tokens:
        return Rest(plan, tuple(prompts), tuple([] for _ in prompts))
    lengths = {prompt.id: request.gen_len for prompt, request in zip(prompts, plan.workload.requests, strict=True)}
    over = {p.id: journal.tokens[p.id] for p in prompts if _is_over(p, journal, lengths[p.id], plan, text)}
    journal.write(over, ended=True)
    left = [prompt for prompt in prompts if prompt.id not in journal.ended]
    if not left:
        return None
    before = tuple(journal.tokens.get(prompt.id, []) for prompt in left)
    requests = tuple(
        Request(prompt.id, len(prompt.tokens) + len(had), lengths[prompt.id] - len(had))
        for prompt, had in zip(left, before, strict=True)
    )
    again = make_plan(plan.hardware, plan.model, Workload(requests), POLICIES[plan.policy])
    return Rest(again, tuple(left), before)


def _is_over(prompt: Prompt, journal: Journal, gen_len: int, plan: Plan, text: Text) -> bool:
    tokens = journal.tokens.get(prompt.id)
    if tokens is None or prompt.id in journal.ended:
        return False
    return len(tokens) >= gen_len or completion(prompt, tokens, plan.model.eos_token_id, text).reason == "stop"


def job_of(plan: Plan, prompts: Sequence[Prompt], weights: str) -> Any:
    """Plain data that names everything the tokens depend on: not the plan's choices, which change none of them."""
    asked = [
        [p.id, p.tokens, request.gen_len, vars(p.sampling), list(p.stop), p.ignore_eos]
        for p, request in zip(prompts, plan.workload.requests, strict=True)
    ]
    return {"model": plan.model.content_hash, "weights": weights, "prompts": asked}
