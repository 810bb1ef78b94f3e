"""Lines in the form of OpenAI's batch API: a request with `custom_id` and `body`, answered with a `response`."""

from __future__ import annotations

from typing import Any, Protocol

from planner.errors import InputError, nearest
from runtime.ways import short

OUTER = ("custom_id", "method", "url", "body")
NEW_TOKENS = ("max_completion_tokens", "max_tokens")
SAME = ("temperature", "top_p", "top_k", "seed", "stop", "ignore_eos", "prompt")
"""Keys that mean what they mean in a plain line."""
NO_CHOICE = {"n": 1, "stream": False, "best_of": 1, "echo": False, "logprobs": None, "presence_penalty": 0,
             "frequency_penalty": 0}  # fmt: skip
"""Keys with the only value that is served."""
IGNORED = ("model", "user", "metadata", "store")
TEMPERATURE = 1.0
"""Where the request says none, as OpenAI has it."""


class Chat(Protocol):
    def chat(self, messages: Any, where: str) -> list[int]: ...


def from_batch(data: dict[str, Any], where: str, text: Chat) -> dict[str, Any]:
    """The same request as a plain line. InputError names the key."""
    for key in data:
        if key not in OUTER:
            raise InputError(f"unknown key '{key}' of a batch request", where=where, cure=nearest(str(key), OUTER))
    body = data.get("body")
    if not isinstance(body, dict):
        what = f"body is an object with 'prompt' or 'messages', got {short(body)}"
        raise InputError(what, where=where, cure='{"custom_id": "a", "body": {"prompt": "Hello", "max_tokens": 16}}')
    found: dict[str, Any] = {"temperature": TEMPERATURE}
    for key, value in body.items():
        if key in SAME:
            found[key] = TEMPERATURE if key == "temperature" and value is None else value
        elif key in NEW_TOKENS:
            found["max_new_tokens"] = value
        elif key in NO_CHOICE:
            if value not in (NO_CHOICE[key], None):
                raise InputError(f"body.{key} = {short(value)} is not served", where=where, cure="Leave it out")
        elif key not in ("messages", *IGNORED):
            known = (*SAME, *NEW_TOKENS, "messages", *NO_CHOICE, *IGNORED)
            raise InputError(f"unknown key 'body.{key}'", where=where, cure=nearest(str(key), known))
    if "custom_id" in data:
        found["id"] = data["custom_id"]
    if "messages" in body:
        if "prompt" in body:
            raise InputError("give either 'prompt' or 'messages': both are here", where=where)
        found["tokens"] = text.chat(body["messages"], where)
    return found


def response(name: str, content: str | None, reason: str, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """The answer to one request, as a line of a batch's output."""
    usage = {
        "prompt_tokens": prompt_tokens, "completion_tokens": new_tokens, "total_tokens": prompt_tokens + new_tokens,
    }  # fmt: skip
    choice = {
        "index": 0, "finish_reason": reason, "text": content, "message": {"role": "assistant", "content": content},
    }  # fmt: skip
    body = {"object": "chat.completion", "choices": [choice], "usage": usage}
    return {"id": f"batch_req_{name}", "custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}


def failure(name: str | None, why: str) -> dict[str, Any]:
    """The answer to a request that could not be run."""
    error = {"code": "invalid_request", "message": why}
    return {"id": f"batch_req_{name or 'unknown'}", "custom_id": name, "response": None, "error": error}
