"""`codeb`, `codeb-mcp` and `python -m codeb_mcp`."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line."""
    from codeb_mcp.faces.cli import run

    sys.exit(run(sys.argv[1:]))


def stdio() -> None:
    """`codeb-mcp`: the same as `codeb stdio`, with its options; what MCP clients start."""
    from codeb_mcp.faces.cli import run

    sys.exit(run(["stdio", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
