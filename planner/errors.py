"""The failures a person can mend, each with what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

MOST_LINES = 50
"""Mistakes of one file that a message lists; nobody mends more in one go."""


class HybridserveError(Exception):
    """A failure with a message for people. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(HybridserveError):
    """A bad file, name or flag: `where` is a path, key or flag; `cure` says how to mend it."""

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, where, cure
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}. {cure}" if cure else text)


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in a file: the dotted key, what is wrong with it, and how to mend it."""

    key: str
    what: str
    cure: str

    def below(self, block: str) -> Mistake:
        """The same, its key counted from where `block` is."""
        return Mistake(".".join(filter(None, (block, self.key))), self.what, self.cure)

    def __str__(self) -> str:
        return ". ".join(filter(None, (f"{self.key}: {self.what}" if self.key else self.what, self.cure)))


class Mistaken(ValueError):
    """What a schema's validator raises: mistakes, with keys counted from the value or block that it was given."""

    def __init__(self, *mistakes: Mistake) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(map(str, mistakes)))


def mistaken_file(where: str, mistakes: Sequence[Mistake]) -> InputError:
    """One error for all mistakes of a file: a single one on one line, more with a line each."""
    if len(mistakes) == 1:
        (only,) = mistakes
        return InputError(only.what, where=f"{where}: {only.key}" if only.key else where, cure=only.cure)
    lines = [f"  {mistake}" for mistake in mistakes[:MOST_LINES]]
    if len(mistakes) > MOST_LINES:
        lines.append(f"  ... and {len(mistakes) - MOST_LINES} more")
    return InputError("\n".join([f"{len(mistakes)} mistakes", *lines]), where=where)


class InfeasibleError(HybridserveError):
    """No plan exists: which limit binds, by how many bytes, and the smallest change that helps."""

    def __init__(self, what: str, *, limit: str, missing_bytes: float = 0.0, cure: str = "") -> None:
        self.limit, self.missing_bytes, self.cure = limit, missing_bytes, cure
        super().__init__(f"infeasible ({limit}): {what}" + (f". {cure}" if cure else ""))


class ScheduleError(HybridserveError):
    """A schedule that would corrupt data, deadlock or exceed a budget, found before anything runs."""


class RunError(HybridserveError):
    """A run that had to stop."""


class UnansweredError(HybridserveError):
    """A run that answered everything it could, but not everything it was asked."""

    exit_code = 3


def nearest(name: str, known: Iterable[str], or_else: str = "") -> str:
    """A cure for a misspelt `name`: the closest of `known`, else all of them; `or_else` is another way out."""
    known, name = sorted(known), str(name)  # Python passes anything
    small = name.lower()
    begun = [one for one in known if len(name) > 1 and one.lower().startswith(small)]
    begun += [one for one in known if len(name) > 2 and small in one.lower() and one not in begun]
    close = begun[:2] or get_close_matches(small, known, n=2, cutoff=0.5)
    if close:
        cure = "Did you mean " + " or ".join(repr(c) for c in close) + "?"
        return f"{cure} Or {or_else}" if or_else else cure
    cure = "Known: " + ", ".join(known)
    return f"{cure}. Or {or_else}" if or_else else cure
