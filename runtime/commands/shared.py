"""What several commands need of both sides, `planner` and `runtime`."""

from __future__ import annotations

from pathlib import Path

from planner import selection
from planner.errors import InputError
from planner.workload import Workload
from runtime.prompt_file import holds_prompts, prompt_workload
from runtime.prompts import Text


def job_of(
    requests: int | None, prompt_len: int | None, gen_len: int | None, path: Path | None, model: str
) -> Workload:
    """The workload of the flags; a file holds lengths, or prompts that the checkpoint's tokenizer counts."""
    equal = selection.job(requests, prompt_len, gen_len, path)
    if path is None or equal is not None:
        assert equal is not None
        return equal
    if holds_prompts(path):
        return prompt_workload(path, Text(Path(model)))
    return Workload.from_jsonl(path)


def need_runtime() -> None:
    """Running needs torch, planning does not; nothing of it may be missing or broken."""
    try:
        import safetensors  # noqa: F401, PLC0415
        import torch  # noqa: F401, PLC0415
    except Exception as error:  # a broken installation fails with anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"running needs torch and safetensors, planning does not: {reason}"
        raise InputError(what, cure="pip install 'hybridserve[runtime]'") from None


def need_plots() -> None:
    """Pictures need matplotlib, which is optional."""
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        cure = "pip install 'hybridserve[plots]', or leave it out: -o writes the same as CSV"
        raise InputError("a picture needs matplotlib", where="--plot", cure=cure) from None
