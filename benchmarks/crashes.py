"""`python -m benchmarks.crashes`: runs killed with SIGKILL at random moments, and started again until they end.

A small random checkpoint, requests that end at different steps, sampled in different ways, some at an end token. Each
run is killed up to three times, when its journal has grown by a random number of bytes and a random moment later. Every
id must then be in the output exactly once, with the tokens of a run that was left alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, write
from planner.files import dump_yaml
from planner.hardware import load_hardware
from runtime.journal import SUFFIX

ROOT = Path(__file__).resolve().parents[1]
RECORD, PROFILE = "crashes.json", "accuracy-profile.yaml"
RUNS, KILLS = 50, 3
COUNT, GEN, VOCAB = 6, 40, 131
MOST_BYTES, MOST_DELAY_S = 1500, 0.02
"""By how much the journal grows before a kill, and how much later the kill comes: a step takes about as long."""
PATIENCE_S = 60.0
GPU_BYTES = 1.6e6
"""Too little for weights and cache: layers stream and blocks spill."""
END_CONFIG = "eos_token_id"


@dataclass(frozen=True)
class Outcome:
    """One run, killed and started again."""

    seed: int
    kills: int
    """Fewer than asked for where the run ended before."""
    journal_bytes: list[int]
    """What the journal held at each kill."""
    finished: list[int]
    """Requests that had ended by then."""
    lost: int
    twice: int
    differing: int

    @property
    def whole(self) -> bool:
        """Nothing lost, nothing twice, the same tokens."""
        return not (self.lost or self.twice or self.differing)


def write_prompts(path: Path) -> None:
    """Requests of many lengths, greedy ones and sampled ones in turn."""
    lines = [
        {
            "id": f"r{i}", "tokens": [(7 * i + 3 * j) % VOCAB for j in range(5 + 9 * i)],
            "max_new_tokens": GEN - 6 * i, "temperature": 0.8 if i % 2 else 0.0, "seed": i,
        }
        for i in range(COUNT)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def planning(d: Path) -> list[str]:
    """The words that plan the job of folder `d`."""
    found = ["plan", "--model", d / "model", "--hardware", d / "small.yaml", "--workload", d / "prompts.jsonl"]
    return [*map(str, found), "-o", str(d / "plan.yaml")]


def running(d: Path, out: Path) -> list[str]:
    """The words that run it."""
    found = ["run", d / "plan.yaml", "--checkpoint", d / "model", "--input", d / "prompts.jsonl", "--output", out]
    return list(map(str, found))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def choose_end(d: Path, endless: Path) -> None:
    """An end token for the checkpoint that ends some of the requests early, going by a run without one."""
    made = [line["tokens"] for line in lines_of(endless)]
    config = json.loads((d / "model" / "config.json").read_text(encoding="utf-8"))
    config[END_CONFIG] = next(t for t in made[0][8:] if t not in made[1] or t not in made[2])
    (d / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")


def killed_and_resumed(d: Path, out: Path, seed: int, kills: int) -> Outcome:
    """Run the job of `d` into `out`, kill it `kills` times, let the last start end. What it left is compared with
    `whole.jsonl`."""
    draw, journal = random.Random(seed), out.with_name(out.name + SUFFIX)
    held: list[int] = []
    finished: list[int] = []
    slow = [sys.executable, "-m", "benchmarks.slow_run", *running(d, out)]
    for _ in range(kills):
        before = _size(journal)
        process = subprocess.Popen(slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        wanted, end = before + draw.randrange(1, MOST_BYTES), time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < end and _size(journal) < wanted:
            time.sleep(0.002)
        time.sleep(draw.random() * MOST_DELAY_S)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if ended:
            break
        held.append(_size(journal))
        finished.append(_finished(journal))
    if not out.exists():
        hybridserve(*running(d, out))
    return _compared(seed, held, finished, lines_of(d / "whole.jsonl"), lines_of(out))


def _compared(
    seed: int, held: list[int], finished: list[int], whole: list[dict[str, Any]], found: list[dict[str, Any]]
) -> Outcome:
    ids = [line["id"] for line in found]
    by_id = {line["id"]: line for line in found}
    return Outcome(
        seed, len(held), held, finished,
        lost=sum(line["id"] not in by_id for line in whole), twice=len(ids) - len(by_id),
        differing=sum(by_id.get(line["id"], line) != line for line in whole),
    )  # fmt: skip


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _finished(journal: Path) -> int:
    lines = journal.read_text(encoding="utf-8").split("\n")[1:-1] if journal.exists() else []
    return sum(json.loads(line)["ended"] for line in lines)


def hybridserve(*words: str) -> None:
    """The command, in a process of its own; CalledProcessError where it fails."""
    line = [sys.executable, "-m", "hybridserve", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)


def prepare(d: Path) -> None:
    """A checkpoint, a profile, prompts, a plan, and the completions of a run that was left alone."""
    _save_model(d / "model")
    hardware = load_hardware(str(RESULTS / PROFILE)).with_values(**{"gpu.memory.usable_bytes": GPU_BYTES})
    (d / "small.yaml").write_text(dump_yaml(hardware.to_plain()), encoding="utf-8")
    write_prompts(d / "prompts.jsonl")
    for out in ("endless.jsonl", "whole.jsonl"):
        hybridserve(*planning(d))
        hybridserve(*running(d, d / out))
        if out == "endless.jsonl":
            choose_end(d, d / out)


def _save_model(folder: Path) -> None:
    """A Llama of few and narrow layers, its weights large enough for text that does not repeat itself."""
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)


def summary(document: dict[str, Any]) -> str:
    """A record in words."""
    runs, machine = document["runs"], document["machine"]
    kills = sum(one["kills"] for one in runs)
    begun = sum(0 < n < COUNT for one in runs for n in one["finished"])
    lost, twice, differing = (sum(one[key] for one in runs) for key in ("lost", "twice", "differing"))
    return (
        f"{len(runs)} runs of {COUNT} requests were killed {kills} times ({begun} times with some requests finished "
        f"and others not) and started again, on {document['date']}, on an {machine['processor']}: {lost} ids lost, "
        f"{twice} twice, {differing} with other tokens than a run that was left alone."
    )


def main() -> None:
    """Kill, resume, compare, write the record. Exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"default {RUNS}")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    import torch  # noqa: PLC0415

    from runtime.machine import machine_facts  # noqa: PLC0415

    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for seed in range(options.runs):
            kills = random.Random(seed).randint(1, KILLS)
            outcomes.append(killed_and_resumed(Path(folder), Path(folder) / f"out-{seed}.jsonl", seed, kills))
            print(f"{seed + 1} of {options.runs}: {outcomes[-1]}", flush=True)
    document = {
        "date": datetime.date.today().isoformat(), "machine": machine_facts(torch.device("cpu")),
        "requests": COUNT, "runs": [asdict(one) for one in outcomes],
    }  # fmt: skip
    if not options.dry_run:
        print(f"written: {write(RECORD, document)}")
    print(summary(document))
    sys.exit(0 if all(one.whole for one in outcomes) else 1)


if __name__ == "__main__":
    main()
