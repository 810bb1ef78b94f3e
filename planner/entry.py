"""The first step of the `hybridserve` command: an interrupt while the rest is imported ends it without a traceback."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the front door, then go through it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hybridserve import run_and_leave as front_door  # noqa: PLC0415  (half a second, in which people change their minds)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    front_door()
