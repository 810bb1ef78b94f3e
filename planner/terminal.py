"""What the commands say: results on stdout, progress and failures on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from planner.errors import RunError

# No markup: a file name, an id or a source may hold brackets.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(stderr=True, markup=False, emoji=False, highlight=False)

UsageError: type[Exception] = typer.BadParameter.__mro__[2]
"""What every wrong flag raises: click's exception, of which newer releases of typer carry their own copy."""
Advance = Callable[..., None]
"""advance(done, total, text="")"""


def prepare() -> None:
    """Names may hold characters that the terminal's encoding lacks: they are spelt out instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def show(as_json: bool, data: dict[str, Any], *shown: RenderableType) -> None:
    """The result of a command: one JSON object and nothing else on stdout, or what people read.

    RunError when stdout takes nothing: it is closed, or on a full disk.
    """
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        if as_json:
            print(json.dumps(data, allow_nan=False))
        else:
            for part in shown:
                out.print(part)
        sys.stdout.flush()
    except OSError as error:
        discard_stdout()
        what = f"cannot write the result to stdout: {error.strerror or error}"
        raise RunError(f"{what}. Send it somewhere else") from None


def discard_stdout() -> None:
    """What could not be written is dropped, or Python would try again when it exits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def written(*paths: Path | None) -> None:
    """Names the files that a command wrote."""
    for path in filter(None, paths):
        err.print(f"written: {path}", soft_wrap=True)


def fail(message: str) -> None:
    """One message that says what is wrong, where, and how to mend it."""
    with suppress(OSError):  # nobody to tell; the exit code says it, too
        err.print(f"error: {message}", style="red", soft_wrap=True)


def usage_message(error: Any) -> str:
    """A wrong command line in one line: what, the value that was given, and where the flags are explained."""
    text = error.format_message().rstrip(".")
    near = getattr(error, "possibilities", None)
    if near:
        text = f"{error.message}. Did you mean {' or '.join(sorted(near))}?"
    cause = error.__cause__
    if cause is not None and hasattr(cause, "errors"):
        text += f", got {cause.errors()[0]['input']!r}"
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "hybridserve"
    separator = " " if text.endswith("?") else ". "
    return f"{text[:1].lower()}{text[1:]}{separator}See: {command} --help"


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner while something works; nothing where stderr is not a terminal."""
    with err.status(text):
        yield


@contextmanager
def steps(what: str, total: int | None = None) -> Iterator[Advance]:
    """A progress bar; yields advance(done, total, text). Nothing where stderr is not a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int, of: int, text: str = "") -> None:
            bar.update(task, completed=done, total=max(of, 1), description=f"{what} {text}".strip())

        yield advance
