"""``python -m vidbrain`` and the ``vidbrain`` script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from vidbrain.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
