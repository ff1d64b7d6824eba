"""`mf-node` and `python -m node`."""

from __future__ import annotations

import sys


def main() -> None:
    from node.cli.app import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
