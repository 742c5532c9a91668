"""`codeb serve` on an engine of fakes in a process of its own: `python -m tests.faces.serve_child`."""

from __future__ import annotations

import sys

from codeb_mcp.faces import http
from codeb_mcp.faces.cli import run
from tests.faces.world import opener_with_a_sick


def main() -> int:
    """Serve as the real command does, with its real signals and sockets."""
    vars(http)["opened"] = opener_with_a_sick("ghcr.io/acme/slow:sick")
    return run(["serve"])


if __name__ == "__main__":
    sys.exit(main())
