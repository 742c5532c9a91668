"""`codeb`, `codeb-mcp` and `python -m codeb_mcp`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The command line."""
    from codeb_mcp.faces.as_owner import act_as_owner
    from codeb_mcp.faces.cli import run

    act_as_owner(os.environ)
    sys.exit(run(sys.argv[1:]))


def stdio() -> None:
    """`codeb-mcp`: the same as `codeb stdio`, with its options; what MCP clients start."""
    from codeb_mcp.faces.as_owner import act_as_owner
    from codeb_mcp.faces.cli import run

    act_as_owner(os.environ)
    sys.exit(run(["stdio", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
