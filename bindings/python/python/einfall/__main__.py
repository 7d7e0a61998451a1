"""``python -m einfall``: the command-line tool."""

from __future__ import annotations

import signal
import sys

from einfall import _einfall


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool and gives its exit code; peers of a benchmark are timed in this Python."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Compiled code does not see Python's way to interrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    return _einfall._main(arguments)


if __name__ == "__main__":
    sys.exit(main())
