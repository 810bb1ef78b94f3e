"""Which requests end while they run, so that nothing more is moved or computed for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.completions import completion
from runtime.prompts import Prompt, Text

Ends = Callable[[int, Sequence[int]], bool]
"""(a request, what this run has generated for it): whether it ends there, before its planned length."""
MORE_TOKENS = 8
"""Looked at for a stop text beyond one for each of its characters: tokens may decode to nothing by themselves."""


def endings(
    prompts: Sequence[Prompt], before: Sequence[Sequence[int]], end_token: int | None, text: Text
) -> Ends | None:
    """Of requests that go on after `before`: each ends where its completion does. None where none can end early."""
    if all(not prompt.stop and (prompt.ignore_eos or end_token is None) for prompt in prompts):
        return None

    def ends(request: int, made: Sequence[int]) -> bool:
        prompt = prompts[request]
        if made[-1] == end_token and not prompt.ignore_eos:
            return True
        if not prompt.stop:
            return False
        tokens = [*before[request], *made]
        # A look at the newest text first: decoding all of it with every token would take quadratic time.
        said = text.decode(tokens[-max(map(len, prompt.stop)) - MORE_TOKENS :]) or ""
        return (
            any(stop in said for stop in prompt.stop) and completion(prompt, tokens, end_token, text).reason == "stop"
        )

    return ends
