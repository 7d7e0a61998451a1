"""``python -m einfall``: the command-line tool."""

from __future__ import annotations

import signal
import sys

from einfall import _einfall


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool and gives its exit code; peers of a benchmark are looked for where this Python finds them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["bench"] and "--peers" in arguments and "--python" not in arguments:
        arguments = [*arguments, "--python", sys.executable]
    # Compiled code does not see Python's way to interrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    return _einfall._main(arguments)


if __name__ == "__main__":
    sys.exit(main())
