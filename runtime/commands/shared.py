"""What several commands need of both sides, `planner` and `runtime`."""

from __future__ import annotations

from pathlib import Path

from planner import selection
from planner.errors import InputError
from planner.given import WorkloadOf
from planner.model import ModelSpec
from planner.workload import Workload
from runtime.prompt_file import holds_prompts, prompt_workload
from runtime.prompts import Text


def workload_of(given: Path | Workload | None) -> WorkloadOf:
    """Finds the workload of the flags: a file holds lengths, or prompts that the checkpoint's tokenizer counts."""

    def found(
        requests: int | None, prompt_len: int | None, gen_len: int | None, model: str | ModelSpec
    ) -> Workload:  # fmt: skip
        equal = selection.job(requests, prompt_len, gen_len, given is not None)
        if equal is not None:
            return equal
        if not isinstance(given, Path):
            assert given is not None
            return given
        if holds_prompts(given):
            return prompt_workload(given, Text(_tokenizer_folder(model, given)))
        return Workload.from_jsonl(given)

    return found


def _tokenizer_folder(model: str | ModelSpec, prompts: Path) -> Path:
    if isinstance(model, str):
        return Path(model)
    what = "prompts are counted with the tokenizer of a checkpoint"
    raise InputError(what, where=str(prompts), cure="Name the checkpoint's folder as the model")


def need_runtime() -> None:
    """Running needs torch, planning does not; nothing of it may be missing or broken."""
    try:
        import safetensors  # noqa: F401, PLC0415
        import torch  # noqa: F401, PLC0415
    except Exception as error:  # a broken installation fails with anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"running needs torch and safetensors, planning does not: {reason}"
        raise InputError(what, cure="pip install 'hybridserve[runtime]'") from None


def need_plots(where: str, or_else: str = "") -> None:
    """Pictures need matplotlib, which is optional; `or_else`: what there is instead."""
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        cure = f"pip install 'hybridserve[plots]'{or_else}"
        raise InputError("a picture needs matplotlib", where=where, cure=cure) from None
