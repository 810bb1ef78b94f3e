"""Bytes in use in every step of a wave: the counters of a trace."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.decisions import Decisions
from planner.forms import FORMS
from planner.memory import aligned, gpu_lines, host_lines
from planner.model import ModelSpec

Series = Mapping[str, int]


def memory_in_use(model: ModelSpec, wave: Decisions) -> list[Mapping[str, Series]]:
    """[prefill and decode steps] by counter: what the buffers of that phase take, and what of it is cached tokens of
    requests that still run, at the step's begin."""
    cached = _cached_bytes(model, wave)
    host = sum(line.nbytes for line in host_lines(model, wave))
    gpu = {
        phase: sum(aligned(line.nbytes) for line in gpu_lines(model, wave) if line.phase in ("always", phase))
        for phase in ("prefill", "decode")
    }
    return [
        {
            "GPU memory, GB": {"allocated": gpu["decode" if step else "prefill"], "cached tokens": on_gpu},
            "host memory, GB": {"allocated": host, "cached tokens": on_host},
        }
        for step, (on_gpu, on_host) in enumerate(zip(cached["gpu"], cached["host"], strict=True))
    ]


def _cached_bytes(model: ModelSpec, wave: Decisions) -> dict[str, list[int]]:
    """[prefill and decode steps] bytes of the tokens cached in each place when the step begins."""
    tokens = np.zeros((wave.decode_steps + 1, len(FORMS)), np.int64)
    for batch in wave.mini_batches:
        tokens[1 : batch.decode_steps + 1] += batch.shapes.form_tokens
    bytes_each = np.array([model.layers * form.token_bytes(model) for form in FORMS])
    found = {}
    for place in ("gpu", "host"):
        here = [i for i, form in enumerate(FORMS) if form.place == place]
        found[place] = (tokens[:, here] @ bytes_each[here]).tolist()
    return found
