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
    """`plan` itself where all that it is for is left to do, else a plan for what is left, made as that one was; None
    where nothing is left. Requests that have ended by themselves since the journal was written are marked so in it.

    `prompts`: those of the plan that can be run, each with the tokens planned for it.
    """
    had = dict(journal.tokens) if journal else {}
    if journal and had:
        over = {p.id: had[p.id] for p in prompts if _is_over(p, journal, plan, text)}
        journal.write(over, ended=True)
    left = [prompt for prompt in prompts if journal is None or prompt.id not in journal.ended]
    if not left:
        return None
    before = tuple(had.get(prompt.id, []) for prompt in left)
    if len(left) == len(plan.workload) and not any(before):
        return Rest(plan, tuple(left), before)
    requests = tuple(
        Request(prompt.id, len(prompt.tokens) + len(made), prompt.request.gen_len - len(made))
        for prompt, made in zip(left, before, strict=True)
    )
    again = make_plan(plan.hardware, plan.model, Workload(requests), POLICIES[plan.policy])
    return Rest(again, tuple(left), before)


def _is_over(prompt: Prompt, journal: Journal, plan: Plan, text: Text) -> bool:
    tokens = journal.tokens.get(prompt.id)
    if tokens is None or prompt.id in journal.ended:
        return False
    by_itself = completion(prompt, tokens, plan.model.eos_token_id, text).reason == "stop"
    return by_itself or len(tokens) >= prompt.request.gen_len


def job_of(plan: Plan, prompts: Sequence[Prompt], weights: str) -> Any:
    """Plain data that names everything the tokens depend on: not the plan's choices, which change none of them."""
    asked = [[p.id, p.tokens, p.request.gen_len, vars(p.sampling), list(p.stop), p.ignore_eos] for p in prompts]
    return {"model": plan.model.content_hash, "weights": weights, "prompts": asked}
