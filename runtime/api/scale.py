"""`hybridserve.scale_model`: a small model and a slow link here that keep the ratios of a large one on a real GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.console import RenderableType

from planner.costs import CostModel
from planner.errors import InputError
from planner.given import LIMITS, Given, Limits, hardware_of, model_of, within
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.planning import make_plan
from planner.policies import policy_named
from planner.scale import Ratios, scaled_link, scaled_model, scaled_workload
from planner.search import Options
from planner.tables import pairs, size
from planner.workload import Workload
from runtime.api.jobs import HardwareLike, ModelLike, plain_name
from runtime.api.plans import Plan
from runtime.api.results import Result

SLOTS_SHARE = 0.9
"""Arena beside weights, as a share of the whole batch's K and V in one layer: room for slots, hardly for residents."""
STREAMED = Options(max_resident_layers=0, waves=1)
"""The arena could keep a model of a few layers; the card cannot keep those that it stands for."""


@dataclass(frozen=True, repr=False)
class ScaleModel(Result):
    """Ratios, not speeds, carry over."""

    what: str
    """What it is a scale model of."""
    hardware: HardwareProfile
    model: ModelSpec
    ratios: Ratios
    requests: int

    @classmethod
    def of(
        cls, measured: HardwareProfile, big: ModelSpec, card: HardwareProfile, requests: int, prompt_len: int, *,
        hidden: int, layers: int, vocab: int, scale_requests: int, gen_len: int, slots_share: float = SLOTS_SHARE,
    ) -> ScaleModel:  # fmt: skip
        """`requests` of `prompt_len` tokens of `big` on `card`, scaled to a machine that was `measured`. `gen_len`: the
        longest job that the arena is made for."""
        what = f"{big.name} on {card.id}, {requests} requests of {prompt_len} tokens"
        ratios = Ratios.of(CostModel(card, big), requests * prompt_len)
        model = scaled_model(big, hidden, layers, vocab)
        job = scaled_workload(model, ratios, scale_requests, gen_len)
        cache = job.total_prompt_tokens * model.kv_bytes_per_token_layer
        arena = model.outer_bytes + 2 * model.layer_bytes + slots_share * cache
        linked = scaled_link(measured, model, ratios, what)
        hardware = linked.with_values(**{"gpu.memory.usable_bytes": float(round(arena))})
        return cls(what, hardware, model, ratios, scale_requests)

    def job(self, gen_len: int) -> Workload:
        """Equal requests whose whole cache weighs against a layer's weights as in what this is a model of."""
        return scaled_workload(self.model, self.ratios, self.requests, gen_len)

    def plan(
        self, gen_len: int, policy: str = "hybrid", act_share: float | None = None,
        hardware: HardwareProfile | None = None,
    ) -> Plan:  # fmt: skip
        """A plan that streams every layer, as the large model must. `hardware`: this one as fast as it is now."""
        machine, job = hardware or self.hardware, self.job(gen_len)
        given = Given(self.model, machine, job, act_share=act_share)
        options = replace(STREAMED, act_share=given.act_share)
        return Plan(make_plan(machine, self.model, job, policy_named(policy), options), given)

    def result(self) -> dict[str, Any]:
        return {
            "scale_model_of": self.what, "rebuild_over_kv": self.ratios.rebuild_over_kv,
            "weights_over_kv": self.ratios.weights_over_kv, "model": self.model.name, "hardware": self.hardware.id,
        }  # fmt: skip

    def report(self) -> RenderableType:
        job = self.job(1)
        return pairs(f"Scale model of {self.what}: ratios, not speeds, carry over", (
            ("model", f"{self.model.layers} layers of width {self.model.hidden}, {self.model.dtype}"),
            ("requests", f"{len(job)} of {job.requests[0].prompt_len} tokens"),
            ("link", f"{size(self.hardware.link.h2d_bytes_per_s.value)}/s, paced"),
            ("GPU memory", f"{size(self.hardware.gpu.budget_bytes)}, an arena"),
            ("rebuilding over transfer of K and V", f"{self.ratios.rebuild_over_kv:.2f}, in time"),
            ("weights over K and V of the batch", f"{self.ratios.weights_over_kv:.2f}, in bytes of a layer"),
        ))  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """One row: `result`."""
        return [self.result()]

    def __repr__(self) -> str:
        return f"<ScaleModel of {self.what}>"


def scale_model(
    measured: HardwareLike, *, of: ModelLike = "opt-30b", on: HardwareLike = "rtx4090-pcie4", requests: int = 128,
    prompt_len: int = 640, hidden: int = 512, layers: int = 4, vocab: int = 2048, scale_requests: int = 16,
    gen_len: int = 16, slots_share: float = SLOTS_SHARE,
) -> ScaleModel:  # fmt: skip
    """A scale model of `requests` of `prompt_len` tokens of the model `of` on the machine `on`, for a `measured` CPU.

    `hidden`, `layers`, `vocab`, `scale_requests`: what it is scaled to; `gen_len`: the longest job to plan;
    `slots_share`: GPU memory beside weights, in shares of the K and V of one layer; few requests need more. InputError
    for names that are unknown, shapes that no model has, and a machine that is no CPU.
    """
    machine, card = (hardware_of(plain_name(one)) for one in (measured, on))
    if machine.gpu.device != "cpu":
        what = f"a scale model runs on a CPU with a paced link, not on {machine.gpu.name}"
        raise InputError(what, where=machine.id, cure="Give what hybridserve.profile() measured here")
    counts = {"requests": requests, "prompt_len": prompt_len, "scale_requests": scale_requests, "gen_len": gen_len}
    for name, count in counts.items():
        within(count, LIMITS[name.removeprefix("scale_")], name)
    within(slots_share, Limits(0, 1000, whole=False), "slots_share")
    return ScaleModel.of(
        machine, model_of(plain_name(of), None), card, requests, prompt_len, hidden=hidden, layers=layers, vocab=vocab,
        scale_requests=scale_requests, gen_len=gen_len, slots_share=slots_share,
    )  # fmt: skip
