"""What a run has generated so far, on disk: a run that was killed goes on from there.

One JSON line for each record, appended and flushed. The first names the job; every other says what one request has: its
tokens so far, and whether it has ended. The last record of a request counts; a last line cut short does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.errors import InputError, RunError
from planner.files import content_hash, read_text

SUFFIX = ".journal"
VERSION = 1


class Journal:
    """Of the run that writes `output`, in a file beside it."""

    def __init__(self, output: Path, job: Any) -> None:
        """`job`: plain data that names everything the tokens depend on. InputError when the journal there is another
        job's, or no journal."""
        self.path = output.with_name(output.name + SUFFIX)
        self._job = content_hash(job)
        self.tokens: dict[str, list[int]] = {}
        """Generated so far, by request."""
        self.ended: set[str] = set()
        self._whole = 0
        """Bytes of the file up to the last whole line."""
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        text = read_text(self.path, "journal")
        cure = f"It is of another run: remove {self.path}, or choose another --output"
        lines = text.split("\n")[:-1]  # what follows the last newline was cut short
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    same = record["version"] == VERSION and record["job"] == self._job
                    if not same:
                        raise InputError(
                            "not the journal of this plan and these prompts", where=str(self.path), cure=cure
                        )
                    continue
                self._take(record)
            except (ValueError, KeyError, TypeError):
                raise InputError("not a journal", where=f"{self.path}, line {number}", cure=cure) from None
        self._whole = len("".join(f"{line}\n" for line in lines).encode())

    def _take(self, record: dict[str, Any]) -> None:
        name, tokens = record["id"], record["tokens"]
        if not isinstance(name, str) or not all(type(token) is int for token in tokens):
            raise TypeError
        self.tokens[name] = tokens
        if record["ended"]:
            self.ended.add(name)

    def write(self, tokens: Mapping[str, Sequence[int]], ended: bool) -> None:
        """Append what requests have, flushed to the disk. RunError when the disk is full or gone: what was written
        before stays whole."""
        lines = [] if self._whole else [json.dumps({"version": VERSION, "job": self._job})]
        for name, made in tokens.items():
            if name not in self.ended and (ended or list(made) != self.tokens.get(name)):
                lines.append(json.dumps({"id": name, "tokens": list(made), "ended": ended}))
        if lines:
            self._append("".join(f"{line}\n" for line in lines).encode())
        for name, made in tokens.items():
            if name not in self.ended:
                self.tokens[name] = list(made)
                self.ended |= {name} if ended else set()

    def _append(self, data: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # as the output will, when it is written
            with self.path.open("r+b" if self._whole else "wb") as file:
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            what = f"cannot go on writing {self.path}: {error.strerror or error}"
            raise RunError(f"{what}. Make room, then give the same command: what is finished is kept") from None
        self._whole += len(data)

    def remove(self) -> None:
        """Once the output is written."""
        self.path.unlink(missing_ok=True)
