"""`python -m benchmarks.peer_runs`: the engine beside transformers with accelerate's CPU offload, in one run.

The same checkpoint, prompts, GPU memory and link. Decoder layers lie in host memory; accelerate's own hooks fetch them,
module by module, through a link that is paced as the engine's is. What accelerate keeps on the GPU (embedding, head, K
and V of all requests that run together) must fit the same budget, so it runs as many requests at a time as that holds;
once more it runs all at once, with as much memory as that takes. Needs `pip install 'hybridserve[peers]'`.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import OPTConfig, OPTForCausalLM

from benchmarks.efficiency import pace
from benchmarks.profiling import narrow_profiler
from benchmarks.records import write
from planner.costs import CostModel
from planner.errors import InfeasibleError
from planner.hardware import HardwareProfile
from planner.model import ModelSpec, load_model
from planner.peers.streaming import accelerate_forecast
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.search import Options
from planner.workload import Workload
from runtime.cpu_device import Pace
from runtime.engine import random_prompts
from runtime.execution import execute

RECORD = "peer-runs.json"
SHAPE: dict[str, Any] = {
    "hidden_size": 512, "num_hidden_layers": 6, "ffn_dim": 2048, "num_attention_heads": 8, "vocab_size": 1024,
    "max_position_embeddings": 1024,
}  # fmt: skip
REQUESTS, PROMPT, GEN = 32, 176, 24
"""A layer's weights are half of the K and V of all requests, as with 128 requests of OPT-30B."""
ROUNDS = 3
RATIO = 1.07
"""Seconds to rebuild K and V of a token over seconds to transfer them, as OPT-30B has it on an RTX 4090."""
ROOM_REQUESTS = 8
"""GPU memory: a layer's weights twice, embedding and head, prefill, and K and V of so many requests."""
WORTH_SLEEPING_S = 1e-3


class PacedWeights(Mapping[str, torch.Tensor]):
    """A state dict on the far side of a link: each look copies a tensor and takes as long as the link would.

    Nothing else runs meanwhile: accelerate's hooks copy on the thread that computes.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], link: Pace) -> None:
        self._weights, self._link, self._owed_s = weights, link, 0.0
        self.moved_bytes = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        begun = time.perf_counter()
        copied = self._weights[name].clone()
        self.moved_bytes += copied.nbytes
        self._owed_s += self._link.seconds(copied.nbytes) - (time.perf_counter() - begun)
        if self._owed_s > WORTH_SLEEPING_S:  # biases: many small waits would each be too long
            begun = time.perf_counter()
            time.sleep(self._owed_s)
            self._owed_s -= time.perf_counter() - begun
        return copied

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@dataclass(frozen=True)
class Run:
    """What one system made of the job."""

    tokens: list[list[int]]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


class Offloaded:
    """transformers' OPT with its decoder layers behind accelerate's hooks."""

    def __init__(self, folder: Path, link: Pace) -> None:
        from accelerate import cpu_offload  # noqa: PLC0415  (only this benchmark needs it)

        self.model: Any = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32)  # in evaluation mode
        self.weights: list[PacedWeights] = []
        for layer in self.model.model.decoder.layers:
            paced = PacedWeights({name: p.detach().clone() for name, p in layer.state_dict().items()}, link)
            self.weights.append(paced)
            cpu_offload(layer, execution_device=torch.device("cpu"), state_dict=paced)

    def run(self, prompts: Sequence[Sequence[int]], together: int) -> Run:
        """Greedy generation, `together` requests at a time, on one core as the engine's compute."""
        found: list[list[int]] = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        begun = time.perf_counter()
        with torch.inference_mode():
            for at in range(0, len(prompts), together):
                ids = torch.tensor(prompts[at : at + together])
                made = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=GEN, min_new_tokens=GEN, do_sample=False,
                    eos_token_id=None, pad_token_id=1,
                )  # fmt: skip
                found += made[:, ids.shape[1] :].tolist()
        seconds = time.perf_counter() - begun
        torch.set_num_threads(threads)
        return Run(found, seconds)


def save_model(folder: Path) -> ModelSpec:
    """A random OPT whose text does not repeat itself."""
    torch.manual_seed(3)
    config = OPTConfig(**SHAPE, word_embed_proj_dim=SHAPE["hidden_size"], dropout=0.0, init_std=0.08)
    OPTForCausalLM(config).save_pretrained(folder)
    return load_model(str(folder))


def machine(profile: HardwareProfile, model: ModelSpec) -> HardwareProfile:
    """`profile` with the link paced and the memory cut."""
    rate = pace(profile, model, RATIO)
    keys = ("h2d", "d2h", "h2d_during_d2h", "d2h_during_h2d", "pageable_h2d", "pageable_d2h")
    cache = ROOM_REQUESTS * (PROMPT + GEN) * model.kv_bytes_per_token_layer * model.layers
    passing = ROOM_REQUESTS * PROMPT * (8 * model.hidden + model.ffn) * model.element_bytes
    room = model.outer_bytes + 2 * model.layer_bytes + cache + passing
    return profile.with_values(
        **{f"link.{key}_bytes_per_s": rate for key in keys}, **{"gpu.memory.usable_bytes": float(room)}
    )


def most_together(costs: CostModel, requests: int) -> int:
    """Requests that accelerate can run at a time within the GPU's memory. InfeasibleError where that is none."""
    forecast = accelerate_forecast(costs, Workload.uniform(requests, PROMPT, GEN))
    return -(-requests // forecast.rounds)


def compare(profile: HardwareProfile, folder: Path, requests: int, rounds: int) -> dict[str, Any]:
    """Both systems in turn, `rounds` times; the median of each counts."""
    model, work = save_model(folder), Workload.uniform(requests, PROMPT, GEN)
    hardware = machine(profile, model)
    costs, link = CostModel(hardware, model), hardware.link
    options = Options(max_resident_layers=0, waves=1)
    plan = make_plan(hardware, model, work, POLICIES["hybrid"], options)
    prompts, together = random_prompts(plan, 0), most_together(costs, requests)
    offloaded = Offloaded(folder, Pace(link.pageable_h2d_bytes_per_s.value, link.latency_s.value))
    ours: list[Run] = []
    capped: list[Run] = []
    for turn in range(rounds):
        done = execute(plan, prompts, checkpoint=folder)
        ours.append(Run(done.tokens, done.measured.total_s))
        capped.append(offloaded.run(prompts, together))
        print(f"round {turn + 1}/{rounds}: {ours[-1].seconds:.1f} s, accelerate {capped[-1].seconds:.1f} s", flush=True)
    at_once = offloaded.run(prompts, requests)
    peers = {"accelerate": (together, capped), "accelerate, all at once": (requests, [at_once])}
    return {
        "model": SHAPE, "requests": requests, "prompt_len": PROMPT, "gen_len": GEN,
        "link_bytes_per_s": link.h2d_bytes_per_s.value, "gpu_budget_bytes": hardware.gpu.budget_bytes,
        "hybridserve": {
            "predicted_tokens_per_s": plan.prediction.throughput_tokens_per_s,
            "tokens_per_s": median(run.tokens_per_s for run in ours), "runs_s": [run.seconds for run in ours],
        },
        "peers": {
            name: {
                "requests_together": count, "predicted_tokens_per_s": _forecast(costs, count, requests),
                "tokens_per_s": median(run.tokens_per_s for run in runs), "runs_s": [run.seconds for run in runs],
                "equal_requests": sum(a == b for a, b in zip(runs[0].tokens, ours[0].tokens, strict=True)),
            }
            for name, (count, runs) in peers.items()
        },
    }  # fmt: skip


def _forecast(costs: CostModel, together: int, requests: int) -> float | None:
    """What the planner says of accelerate, where its K and V fit: tokens/s."""
    try:
        forecast = accelerate_forecast(costs, Workload.uniform(requests, PROMPT, GEN))
    except InfeasibleError:
        return None
    return forecast.throughput_tokens_per_s if -(-requests // forecast.rounds) == together else None


def summary(document: dict[str, Any]) -> str:
    """The record as Markdown."""
    ours = document["hybridserve"]
    rows = [
        "| system | requests at a time | tokens/s, predicted | measured | hybridserve is faster by | equal tokens |",
        "|---|---|---|---|---|---|",
        f"| hybridserve, hybrid | {document['requests']} | {ours['predicted_tokens_per_s']:.1f} "
        f"| {ours['tokens_per_s']:.1f} | | |",
    ]
    for name, one in document["peers"].items():
        predicted = one["predicted_tokens_per_s"]
        rows.append(
            f"| {name} | {one['requests_together']} | {'-' if predicted is None else f'{predicted:.1f}'} "
            f"| {one['tokens_per_s']:.1f} | {ours['tokens_per_s'] / one['tokens_per_s']:.2f} x "
            f"| {one['equal_requests']} of {document['requests']} requests |"
        )
    shape, machine_facts = document["model"], document["machine"]
    rows += [
        "",
        f"OPT of {shape['num_hidden_layers']} layers of width {shape['hidden_size']}, fp32, {document['requests']} "
        f"requests of {document['prompt_len']} + {document['gen_len']} tokens, link "
        f"{document['link_bytes_per_s'] / 1e6:.0f} MB/s, GPU memory {document['gpu_budget_bytes'] / 1e6:.0f} MB, one "
        f"core of an {machine_facts['processor']} for compute; transformers {document['versions']['transformers']}, "
        f"accelerate {document['versions']['accelerate']}, on {document['date']}.",
    ]
    return "\n".join(rows)


def main() -> None:
    """Measure and write the record; print its summary. Exit code 1 where tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs of each system (default {ROUNDS})")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"default {REQUESTS}")
    parser.add_argument("--dry-run", action="store_true", help="only print the summary; write nothing")
    options = parser.parse_args()
    try:
        import accelerate  # noqa: PLC0415
    except ImportError:
        parser.exit(2, "this needs accelerate: pip install 'hybridserve[peers]'\n")
    import transformers  # noqa: PLC0415

    profile = narrow_profiler("peers-profile").run()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(profile, Path(folder) / "model", options.requests, options.rounds)
    document = {
        "date": datetime.date.today().isoformat(), "machine": profile.machine,
        "versions": {"transformers": transformers.__version__, "accelerate": accelerate.__version__}, **found,
    }  # fmt: skip
    if not options.dry_run:
        print(f"written: {write(RECORD, document)}")
    print(summary(document))
    equal = all(one["equal_requests"] == options.requests for one in found["peers"].values())
    parser.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
