"""`codeb` on a world of fakes in a process of its own: `python -m tests.faces.cli_child ROOT WORDS…`."""

from __future__ import annotations

import os
import sys

from codeb_mcp.faces.cli import run
from codeb_mcp.faces.cli_call import Surroundings
from tests.faces.world import opener_with_a_sick


def main() -> int:
    """Run the command as the real one would, with the real signals and streams."""
    installation = opener_with_a_sick("ghcr.io/acme/shop:sick")
    return run(sys.argv[2:], Surroundings(installation, {**os.environ, "CODEB_ROOT": sys.argv[1]}))


if __name__ == "__main__":
    sys.exit(main())
