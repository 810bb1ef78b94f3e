"""Bad input through the real command: exit code, one message that names what and where, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_helpers import LENGTHS, cli, tiny_opt, write_prompts, write_small_profile
from safetensors.torch import load_file, save_file

from planner.errors import InputError
from planner.files import check_writable

ROOT = Path(__file__).resolve().parents[1]
JOB = f"--model opt-tiny --hardware {{d}}/small.yaml {LENGTHS}"
FILE = "--model opt-tiny --hardware {d}/small.yaml --workload"
RUN = "run {d}/plan.yaml"
ON = f"--model opt-tiny {LENGTHS} --hardware"
LARGE = "--model opt-30b --hardware rtx4090-pcie4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every good and bad file that the cases name."""
    d = tmp_path_factory.mktemp("cli bad input")  # a space, as people have
    write_small_profile(d / "small.yaml")
    assert cli("plan", *shlex.split(JOB.replace("{d}", shlex.quote(str(d)))), "-o", d / "plan.yaml").code == 0
    _plans(d)
    _profiles(d)
    _workloads(d)
    _prompts(d)
    _checkpoints(d)
    (d / "folder").mkdir()
    (d / "binary").write_bytes(bytes(range(256)))
    os.mkfifo(d / "pipe")
    (d / "circle").symlink_to(d / "circle")
    return d


def _plans(d: Path) -> None:
    text = (d / "plan.yaml").read_text()
    data = yaml.safe_load(text)
    write_small_profile(d / "cuda.yaml", "cuda")
    tiny_opt(activation_function="gelu").config.save_pretrained(d / "gelu")
    made = {
        "llama": ("llama-tiny", "small.yaml"),
        "cuda": ("opt-tiny", "cuda.yaml"),
        "gelu": (d / "gelu", "small.yaml"),
    }
    for name, (model, machine) in made.items():
        chosen = ["--model", model, "--dtype", "float32", "--hardware", d / machine, *LENGTHS.split()]
        done = cli("plan", *chosen, "-o", d / f"plan-{name}.yaml")
        assert done.code == 0, done.err
    (d / "half.yaml").write_text(text[: len(text) * 2 // 3])
    (d / "list.yaml").write_text("- 1\n")
    edits = {
        "unknown": {"foo": 1},
        "version": {"schema_version": 9},
        "slots": {"decisions": data["decisions"] | {"cache_slots": 3}},
        "layers": {"decisions": data["decisions"] | {"resident_parts": [99]}},
        "workload": {"workload": {"runs": [[8, 64, 9]]}},
        "model": {"model": data["model"] | {"hidden": 128}},
        "infinite": {"bound_total_s": float("inf")},
        "text": {"solve_s": "fast"},
        "streams": {"prediction": data["prediction"] | {"streams": {}}},
        "policy": {"policy": "kvonly"},
        "gap": {"gap": 0.5},
    }
    for name, change in edits.items():
        (d / f"plan-{name}.yaml").write_text(yaml.safe_dump(data | change))
    (d / "plan-twice.yaml").write_text(text + "\npolicy: hybrid\n")


def _profiles(d: Path) -> None:
    text = (d / "small.yaml").read_text()
    data = yaml.safe_load(text)
    link = data["link"]
    edits = {
        "text": {"link": link | {"latency_s": link["latency_s"] | {"value": "1e-5"}}},
        "unit": {"link": {k.replace("h2d_bytes_per_s", "h2d_gb_per_s"): v for k, v in link.items()}},
        "key": {"colour": "red"},
        "negative": {"link": link | {"latency_s": link["latency_s"] | {"value": -1.0}}},
        "markup": {"description": "[/bold] [red]"},
        "host": {"host": data["host"] | {"total_bytes": data["host"]["reserve_bytes"] | {"value": 1.60005e10}}},
        "kind": {"link": link | {"latency_s": link["latency_s"] | {"kind": "guessed"}}},
    }
    for name, change in edits.items():
        (d / f"machine-{name}.yaml").write_text(yaml.safe_dump(data | change))
    (d / "machine-half.yaml").write_text(text[: len(text) // 2])
    (d / "machine-extends.yaml").write_text("extends: rtx9090\n")


def _workloads(d: Path) -> None:
    good = '{"id": "a", "prompt_len": 4, "gen_len": 2}\n'
    for name, text in {
        "empty": "\n\n", "json": good + "{oops\n", "key": good + '{"id": "b", "prompt_length": 4, "gen_len": 2}\n',
        "zero": good + '{"id": "b", "prompt_len": 0, "gen_len": 2}\n', "same": good + good, "array": "[1, 2]\n",
        "text": '{"id": "a", "prompt": "Hello"}\n', "long": '{"id": "a", "prompt_len": 600, "gen_len": 2}\n',
        "deep": "[" * 100_000, "nan": '\ufeff' + good + '\r\n{"prompt_len": NaN, "gen_len": 2}\r\n',
        "huge": '{"prompt_len": ' + "9" * 5000 + ', "gen_len": 2}\n',
    }.items():  # fmt: skip
        (d / f"work-{name}.jsonl").write_text(text)
    (d / "nested.yaml").write_text("{a: " * 900 + "1" + "}" * 900)
    (d / "surrogate.yaml").write_text('id: "\\ud800"\n')
    (d / "tag.yaml").write_text('id: !!int ""\n')


def _prompts(d: Path) -> None:
    write_prompts(d / "good.jsonl")
    write_prompts(d / "few.jsonl", count=7)
    write_prompts(d / "short.jsonl", length=63)
    write_prompts(d / "more.jsonl", max_new_tokens=9)
    good = (d / "good.jsonl").read_text()
    (d / "prompts-text.jsonl").write_text(good + '{"prompt": "Hello"}\n')
    (d / "prompts-bad.jsonl").write_text('{oops\n[1]\n{"id": "a", "prompt": "x", "tokens": [1]}\n')
    (d / "prompts-bad-and-good.jsonl").write_text(good + '{oops\n{"id": "p0", "tokens": [1]}\n')
    (d / "prompts-extra.jsonl").write_text(good + '{oops\n{"id": "p9", "tokens": [1]}\n')
    (d / "beyond.jsonl").write_text(json.dumps({"id": "x", "tokens": [1] * 63 + [2**70]}))
    (d / "prompts-empty.jsonl").write_text("")


def _checkpoints(d: Path) -> None:
    tiny_opt().save_pretrained(d / "opt")
    tiny_opt(num_hidden_layers=3).save_pretrained(d / "opt-shallow")
    whole = load_file(d / "opt" / "model.safetensors")
    lost, name = dict(whole), "model.decoder.layers.2.fc1.weight"
    del lost[name]
    variants = {
        "lost": lost,
        "wide": whole | {name: torch.zeros(256, 65)},
        "tall": whole | {name: torch.zeros(255, 64)},
        "scalar": whole | {name: torch.zeros(())},
    }
    for variant, tensors in variants.items():
        copy = shutil.copytree(d / "opt", d / f"opt-{variant}")
        save_file({k: v.contiguous() for k, v in tensors.items()}, copy / "model.safetensors")
    for variant in ("none", "half", "index", "shard"):
        shutil.copytree(d / "opt", d / f"opt-{variant}")
    (d / "opt-none" / "model.safetensors").unlink()
    half = d / "opt-half" / "model.safetensors"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (d / "opt-index" / "model.safetensors.index.json").write_text('{"weight_map": 3')
    index = {"weight_map": dict.fromkeys(whole, "model-00001-of-00001.safetensors")}
    (d / "opt-shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    (d / "opt-config").mkdir()
    (d / "opt-config" / "config.json").write_text("{")


Case = tuple[str, int, str]
USAGE: list[Case] = [
    ("plna", 2, "no such command 'plna'. Did you mean 'plan'?"),
    ("--version", 2, "no such option: --version"),
    ("plan", 2, "missing option '--model'. See: hybridserve plan --help"),
    ("plan --model opt-tiny", 2, "missing option '--hardware'"),
    (f"plan {JOB} --request 4", 2, "no such option: --request. Did you mean --requests?"),
    (f"plan {JOB} --requests", 2, "'--requests' requires an argument"),
    (f"plan {JOB} extra", 2, "extra"),
    ("simulate", 2, "missing argument 'PLAN'"),
    (f"{RUN} {{d}}/plan.yaml", 2, "unexpected extra argument"),
    ("profile", 2, "no file to write. Give -o FILE.yaml"),
    ("plan --model opt-tiny --hardware {d}/small.yaml", 2, "--requests, --prompt-len, --gen-len missing. Give all"),
    ("plan --model opt-tiny --hardware {d}/small.yaml --requests 4", 2, "no workload: --prompt-len, --gen-len missing"),
    (f"plan {JOB} --workload {{d}}/work-same.jsonl", 2, "--workload says the lengths already, and so does --requests"),
    (f"{RUN} --checkpoint {{d}}/opt --random-weights 0", 2, "--checkpoint and --random-weights exclude each other"),
    (f"{RUN} --output {{d}}/new.jsonl", 2, "--output needs --input"),
]
NUMBERS: list[Case] = [
    *[
        (f"plan {JOB} --{flag} {value}", 2, f"invalid value for '--{flag}'")
        for flag in ("requests", "prompt-len", "gen-len", "mini-batches")
        for value in ("0", "-3", "four", "1e9", "nan", "inf", "2.5", "''")
    ],
    *[(f"plan {JOB} --{flag} {'9' * 30}", 2, f"'--{flag}'") for flag in ("requests", "prompt-len", "gen-len")],
    *[(f"plan {JOB} --act-share {value}", 2, "'--act-share'") for value in ("-0.1", "1.1", "nan", "inf", "half")],
    *[(f"plan {JOB} --gpu-memory-gb {value}", 2, "'--gpu-memory-gb'") for value in ("0", "-1", "nan", "inf", "1e9")],
    (f"plan {JOB} --requests 1e9", 2, "got '1e9'"),
    (f"plan {JOB} --mini-batches 9", 2, "--mini-batches: 9 mini-batches for 8 requests. Give at most 8"),
    (f"plan {JOB} --waves 4 --mini-batches 3", 2, "4 waves of 3 mini-batches each for 8 requests. Give at most 2"),
    (f"plan {JOB} --gpu-memory-gb 80", 2, "--gpu-memory-gb: 80 GB is more than the 0.0016 GB usable"),
    (f"plan {LARGE} {LENGTHS} --gpu-memory-gb 1", 2, "leaves nothing beside the context reserve of 1.24 GB"),
    (f"plan {JOB} --prompt-len 512", 2, "needs 519 positions (prompt_len 512 + gen_len 8 - 1), opt-tiny has 512"),
    (f"{RUN} --random-weights -1", 2, "'--random-weights'"),
    (f"{RUN} --random-weights {2**64}", 2, "'--random-weights'"),
    (f"plan --model opt-125m {LENGTHS} --hardware {{d}}/machine-host.yaml", 1, "infeasible (host_memory)"),
    (f"plan {LARGE} {LENGTHS} --gpu-memory-gb 1.3", 1, "infeasible (gpu_memory)"),
]
NAMES: list[Case] = [
    (f"plan --model opt-30 --hardware rtx4090-pcie4 {LENGTHS}", 2, "unknown model 'opt-30'. Did you mean 'opt-30b'"),
    (f"plan --model {{d}}/folder --hardware rtx4090-pcie4 {LENGTHS}", 2, "this folder has no config.json"),
    (f"plan --model {'x' * 5000} --hardware rtx4090-pcie4 {LENGTHS}", 2, "unknown model"),
    (f"plan {ON} rtx4090", 2, "unknown hardware 'rtx4090'. Did you mean 'rtx4090-"),
    (f"plan {ON} tpu", 2, "Or give a .yaml file"),
    (f"plan {ON} {'x' * 5000}", 2, "unknown hardware"),
    (f"plan {ON} ''", 2, "hardware"),
    (f"plan {JOB} --policy hybird", 2, "--policy: unknown policy 'hybird'. Did you mean 'hybrid'"),
    (f"plan {JOB} --dtype fp16", 2, "unknown dtype 'fp16'. Did you mean 'float16'"),
    (f"plan {ON} rtx4090-pcie4", 2, "no GEMM rate for float32"),
    (f"plan {JOB} --policy kv-only --act-share 0.5", 2, "--act-share: policy 'kv-only' has an ACT share of 0, not of"),
    (f"compare {JOB} --policies ''", 2, "--policies: no policy given. Known: accelerate, act-only"),
    (f"compare {JOB} --policies ,", 2, "--policies: no policy given"),
    (f"compare {JOB} --policies hybrid,kvonly", 2, "--policies: unknown policy 'kvonly'. Did you mean 'kv-only'"),
    (f"compare {JOB} --act-share 0.3", 2, "policy 'kv-only' has an ACT share of 0, not of 0.3"),
    ("show opt-30", 2, "nothing known as 'opt-30'. Did you mean 'opt-30b'"),
    ("show ''", 2, "nothing known as ''"),
    (f"show {'x' * 5000}", 2, "nothing known as"),
    ("show model opt-tiny", 2, "show: unknown value 'model'. Did you mean 'models'?"),
    ("show models rtx4090-pcie4", 2, "unknown model 'rtx4090-pcie4'"),
    ("show hardware opt-tiny", 2, "unknown hardware 'opt-tiny'"),
    ("show {d}/nowhere.yaml", 2, "nowhere.yaml: no such hardware profile file"),
    ("show {d}/opt-config", 2, "not valid JSON"),
    ("profile --device tpu -o {d}/new.yaml", 2, "--device: unknown value 'tpu'. Did you mean 'cpu'?"),
    ("profile --dtype int8 -o {d}/new.yaml", 2, "--dtype: unknown value 'int8'"),
    ("profile --hidden 100 -o {d}/new.yaml", 2, "--hidden: 100 is no multiple of the head size 64. Give 128"),
    ("profile --hidden 65536 -o {d}/new.yaml", 2, "--hidden: 65536 is wider than the operands"),
    ("profile --hidden 1000000000 -o {d}/new.yaml", 2, "'--hidden'"),
    ("profile --link-gbps 0 -o {d}/new.yaml", 2, "'--link-gbps'"),
    ("profile --link-gbps inf -o {d}/new.yaml", 2, "'--link-gbps'"),
    ("profile --device cuda --link-gbps 25 -o {d}/new.yaml", 2, "the link of a CUDA device is measured, not set"),
]
FILES: list[Case] = [
    (f"plan {ON} {{d}}/machine-text.yaml", 2, "link.latency_s.value: '1e-5' is text, not a number. YAML reads this"),
    (f"plan {ON} {{d}}/machine-unit.yaml", 2, "h2d_gb_per_s: unknown key"),
    (f"plan {ON} {{d}}/machine-key.yaml", 2, "colour: unknown key"),
    (f"plan {ON} {{d}}/machine-negative.yaml", 2, "link.latency_s.value"),
    (f"plan {ON} {{d}}/machine-kind.yaml", 2, "link.latency_s.kind"),
    (f"plan {ON} {{d}}/machine-half.yaml", 2, "machine-half.yaml"),
    (f"plan {ON} {{d}}/machine-extends.yaml", 2, "extends names no shipped profile: 'rtx9090'. Did you mean"),
    (f"plan {ON} {{d}}/folder", 2, "Is a directory"),
    (f"plan {ON} {{d}}/binary", 2, "it is not UTF-8 text"),
    (f"plan {FILE} {{d}}/nowhere.jsonl", 2, "nowhere.jsonl: no such workload file"),
    (f"plan {FILE} {{d}}/folder", 2, "Is a directory"),
    (f"plan {FILE} {{d}}/binary", 2, "it is not UTF-8 text"),
    (f"plan {FILE} ''", 2, "Is a directory"),
    (f"plan {FILE} {{d}}/work-empty.jsonl", 2, "no request in this file. Write lines like"),
    (f"plan {FILE} {{d}}/work-json.jsonl", 2, "line 2: not valid JSON"),
    (f"plan {FILE} {{d}}/work-deep.jsonl", 2, "line 1: not valid JSON"),
    (f"plan {FILE} {{d}}/work-key.jsonl", 2, "line 2: prompt_length: unknown key. Did you mean 'prompt_len'?"),
    (f"plan {FILE} {{d}}/work-zero.jsonl", 2, "line 2: prompt_len: 0 is out of range"),
    (f"plan {FILE} {{d}}/work-nan.jsonl", 2, "line 3: prompt_len: NaN is not a whole number"),
    (f"plan {FILE} {{d}}/work-huge.jsonl", 2, "line 1: not valid JSON"),
    *[
        (f"{command} {{d}}/{name}.yaml", 2, f"{name}.yaml")
        for command in ("show", "simulate", f"plan {ON}")
        for name in ("nested", "surrogate", "tag")
    ],
    (f"plan {FILE} {{d}}/work-same.jsonl", 2, "line 2: id: id 'a' is already used on line 1"),
    (f"plan {FILE} {{d}}/work-array.jsonl", 2, "line 1: [1, 2] is not an object"),
    (f"plan {FILE} {{d}}/work-text.jsonl", 2, "line 1: text needs the tokenizer of a checkpoint"),
    (f"plan {FILE} {{d}}/work-long.jsonl", 2, "request 'a' needs 601 positions"),
    ("plan --model {d}/opt --hardware {d}/small.yaml --workload {d}/work-text.jsonl", 2, "no tokenizer here"),
    (f"compare {FILE} {{d}}/work-json.jsonl", 2, "line 2: not valid JSON"),
    ("simulate {d}/nowhere.yaml", 2, "nowhere.yaml: no such plan file"),
    ("explain {d}/nowhere.yaml", 2, "nowhere.yaml: no such plan file"),
    ("explain {d}/plan-slots.yaml", 2, "does not follow from the decisions"),
    ("simulate {d}/folder", 2, "cannot read this plan file: Is a directory"),
    ("simulate {d}/binary", 2, "it is not UTF-8 text"),
    ("simulate {d}/half.yaml", 2, "half.yaml"),
    ("simulate {d}/list.yaml", 2, "a plan file is a mapping"),
    (
        "simulate {d}/small.yaml",
        2,
        "small.yaml: a file of another kind: without made_for, policy, why, prediction, but",
    ),
    ("simulate {d}/plan-unknown.yaml", 2, "foo: unknown key"),
    ("simulate {d}/plan-twice.yaml", 2, "key 'policy' is given twice"),
    ("simulate {d}/plan-version.yaml", 2, "schema_version"),
    ("simulate {d}/plan-slots.yaml", 2, "memory.gpu: the gpu memory budget does not follow from the decisions"),
    ("simulate {d}/plan-layers.yaml", 2, "decisions.resident_parts"),
    ("simulate {d}/plan-workload.yaml", 2, "the workload in this plan is not the one it was made for"),
    ("simulate {d}/plan-model.yaml", 2, "the model in this plan is not the one it was made for"),
    ("simulate {d}/plan-infinite.yaml", 2, "bound_total_s: input should be a finite number"),
    ("simulate {d}/plan-text.yaml", 2, "solve_s: 'fast' is text, not a number"),
    (
        "simulate {d}/plan-streams.yaml",
        2,
        "prediction.streams: the streams are h2d, compute, d2h, not none. Plan again",
    ),
    ("simulate {d}/plan-policy.yaml", 2, "policy: unknown policy 'kvonly'. Did you mean 'kv-only' or"),
    ("simulate {d}/plan-gap.yaml", 2, "gap: 0.5 is not 1 - bound_total_s / total_s"),
    ("run {d}/half.yaml", 2, "half.yaml"),
    (f"plan {FILE} {{d}}/pipe", 2, "cannot read this workload file: this is a pipe or a device"),
    (f"plan {ON} {{d}}/pipe", 2, "cannot read this hardware profile file: this is a pipe or a device"),
    ("simulate /dev/null", 2, "cannot read this plan file: this is a pipe or a device"),
    (f"plan {ON} {{d}}/circle", 2, "circle"),
    (f"{RUN} --hardware rtx4090-pcie4", 2, "made for hardware 'small-cpu', not for this 'rtx4090-pcie4'. Plan again"),
    (f"{RUN} --hardware rtx", 2, "unknown hardware 'rtx'"),
]
PROMPTS: list[Case] = [
    (f"{RUN} --input {{d}}/prompts-text.jsonl", 2, "line 9: text needs the tokenizer of a checkpoint"),
    (f"{RUN} --input {{d}}/prompts-bad.jsonl", 2, "prompts-bad.jsonl: 3 mistakes\n  line 1: not valid JSON"),
    (f"plan {FILE} {{d}}/prompts-bad-and-good.jsonl", 2, "2 mistakes\n  line 9: not valid JSON"),
    (f"{RUN} --input {{d}}/prompts-extra.jsonl", 2, "9 prompts (1 more lines cannot be run) for a plan of 8 requests"),
    (f"{RUN} --input {{d}}/prompts-text.jsonl --checkpoint {{d}}/opt", 2, "no tokenizer here"),
    (f"{RUN} --input {{d}}/prompts-empty.jsonl", 2, "prompts-empty.jsonl: no prompts in this file"),
    (f"{RUN} --input {{d}}/nowhere.jsonl", 2, "nowhere.jsonl: no such prompt file"),
    (f"{RUN} --input {{d}}/binary", 2, "it is not UTF-8 text"),
    (f"{RUN} --input {{d}}/few.jsonl", 2, "7 prompts for a plan of 8 requests. Plan for this input"),
    (f"{RUN} --input {{d}}/short.jsonl", 2, '8 mistakes\n  line 1: prompt "p0" has 63 tokens, planned for 64'),
    (f"{RUN} --input {{d}}/more.jsonl", 2, "8 mistakes\n  line 1: max_new_tokens is 9, planned for 8"),
    (f"{RUN} --input {{d}}/beyond.jsonl", 2, "line 1: token 1180591620717411303424 is outside the vocabulary of 256"),
]  # fmt: skip
CHECKPOINTS: list[Case] = [
    (f"{RUN} --checkpoint {{d}}/{name}", 2, fragment)
    for name, fragment in {
        "nowhere": "nowhere: no such folder", "opt/model.safetensors": "a checkpoint is a folder, this is a file",
        "folder": "no such model config file", "opt-config": "not valid JSON",
        "opt-shallow": "not the model of the plan, opt-tiny: layers 3 (planned 5)",
        "opt-none": "neither model.safetensors nor model.safetensors.index.json here",
        "opt-half": "not a whole safetensors file", "opt-index": "not a safetensors index",
        "opt-shard": "model-00001-of-00001.safetensors: no such file",
        "opt-lost": "tensor 'model.decoder.layers.2.fc1.weight' is missing",
        "opt-wide": "'model.decoder.layers.2.fc1.weight' has shape [256, 65]",
        "opt-tall": "has 255 rows, the config needs 256", "opt-scalar": "fc1.weight' has shape []",
    }.items()
]  # fmt: skip
OUTPUTS: list[Case] = [
    (f"plan {JOB} -o {{d}}/folder", 2, "cannot write: this is a folder. Give a file name in it"),
    (f"plan {JOB} -o {{d}}/binary/plan.yaml", 2, "binary is a file, not a folder"),
    (f"plan {JOB} -o /proc/nowhere/plan.yaml", 2, "cannot write"),
    (f"plan {JOB} -o ''", 2, "cannot write"),
    (f"plan {JOB} -o {{d}}/{'x' * 300}", 2, "cannot write"),
    ("simulate {d}/plan.yaml --trace {d}/folder", 2, "cannot write: this is a folder"),
    ("simulate {d}/plan.yaml --trace {d}/plan.yaml", 2, "--trace"),
    (f"{RUN} --trace {{d}}/binary/trace.json", 2, "binary is a file, not a folder"),
    (f"{RUN} --input {{d}}/good.jsonl --output {{d}}/folder", 2, "cannot write: this is a folder"),
    (f"{RUN} --input {{d}}/good.jsonl --output {{d}}/good.jsonl", 2, "would overwrite what is read"),
    (f"{RUN} --input {{d}}/good.jsonl --output {{d}}/a --trace {{d}}/a", 2, "would overwrite what --output writes"),
    (
        f"{RUN} --checkpoint {{d}}/opt --trace {{d}}/opt/trace.json",
        2,
        "--trace: {d}/opt/trace.json is inside the check",
    ),
    (
        f"{RUN} --checkpoint {{d}}/opt --input {{d}}/good.jsonl --output {{d}}/opt/a",
        2,
        "is inside the checkpoint folder",
    ),
    (
        "plan --model {d}/opt --hardware {d}/small.yaml " + LENGTHS + " -o {d}/opt/model.safetensors",
        2,
        "would overwrite what is read",
    ),
    (f"plan {JOB} -o {{d}}/circle", 2, "no usable path: its links run in a circle"),
    ("profile -o {d}/circle", 2, "no usable path: its links run in a circle"),
    ("profile -o {d}/folder", 2, "cannot write: this is a folder"),
    ("demo --output {d}/binary", 2, "binary is a file, not a folder"),
]
RUNS: list[Case] = [
    ("run {d}/plan-gelu.yaml", 1, "executes opt with activation 'relu'; gelu has activation 'gelu', so it can be"),
    pytest.param(
        "run {d}/plan-cuda.yaml", 1, "this machine has no CUDA device. Plan with a profile of this machine",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
    ),
    pytest.param(
        "profile --device cuda -o {d}/new.yaml", 2, "--device: this machine has no CUDA device. Use --device cpu",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
    ),
]  # type: ignore[list-item]  # fmt: skip
CASES = [*USAGE, *NUMBERS, *NAMES, *FILES, *PROMPTS, *CHECKPOINTS, *OUTPUTS, *RUNS]


def arguments(line: str, folder: Path) -> list[str]:
    return [part.replace("{d}", str(folder)) for part in shlex.split(line)]


def lines_of(message: str) -> int:
    """One message on one line; of a file with several mistakes, a line for each, below one for the file."""
    several = re.search(r": (\d+) mistakes\n", message)
    return 1 + int(several[1]) if several else 1


@pytest.mark.parametrize(("line", "code", "fragment"), CASES)
def test_bad_input(line: str, code: int, fragment: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    done = cli(*arguments(line, folder))
    assert fragment.replace("{d}", str(folder)) in done.err
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == lines_of(done.err)
    assert "Traceback" not in done.err
    assert sorted(folder.rglob("*")) == before, "a file was left behind"


@pytest.mark.parametrize("line", ["plna", f"plan {JOB} --requests 1e9", "simulate {d}/half.yaml"])
def test_bad_input_in_a_process_of_its_own(line: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "hybridserve.py", *arguments(line, folder)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == lines_of(done.stderr)


def test_every_policy_infeasible() -> None:
    done = cli("compare", *f"{LARGE} {LENGTHS} --gpu-memory-gb 1.3 --policies kv-only,act-only".split())
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: no policy is feasible\nkv-only: infeasible (gpu_memory)")
    assert "act-only: infeasible" in done.err


def test_text_with_brackets_is_printed_as_it_is(folder: Path) -> None:
    done = cli("show", folder / "machine-markup.yaml")
    assert done.code == 0
    assert "[/bold] [red]" in done.out


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder / "old.yaml"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    done = cli("plan", *arguments(JOB, folder), "-o", target)
    monkeypatch.undo()
    assert done.code == 2
    assert "old.yaml: cannot write: No space left on device" in done.err
    assert target.read_text() == "old"
    assert not list(folder.glob(".old.yaml*"))
    target.unlink()


def test_a_link_is_written_through(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "plan.yaml", tmp_path / "link.yaml"
    link.symlink_to(target)
    for before in ("", "old"):  # a link to nothing yet, and to an older file
        if before:
            target.write_text(before)
        assert cli("plan", *arguments(JOB, folder), "-o", link).code == 0
        assert link.is_symlink()
        assert target.read_text() == link.read_text() != before
    assert [path.name for path in target.parent.iterdir()] == ["plan.yaml"]


def process(line: str, redirect: str) -> subprocess.CompletedProcess[str]:
    """`hybridserve` with its stdout sent somewhere by the shell."""
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'hybridserve.py'))} {line} {redirect}"
    return subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("line", ["show hardware", "show models --json", "show --help"])
def test_a_full_stdout_is_one_message(line: str) -> None:
    done = process(line, "> /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("redirect", "why"), [(">&-", "it is closed"), ("| true; exit ${PIPESTATUS[0]}", "Broken pipe")]
)
def test_a_closed_stdout_is_one_message(redirect: str, why: str) -> None:
    done = process("show models --json", redirect)
    assert done.returncode == 1
    assert done.stderr == f"error: cannot write the result to stdout: {why}. Send it somewhere else\n"


def test_nowhere_to_complain_to_keeps_the_exit_code() -> None:
    assert process("show nothing", "2>&-").returncode == 2


def test_a_pipe_as_output_is_refused_at_once(tmp_path: Path) -> None:
    """Opening it would wait for a reader, for ever."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="this is a pipe"):
        check_writable(pipe)
