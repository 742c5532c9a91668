"""The stdio face on a world of fakes, for a test's child process: `python -m tests.faces.stdio_child ROOT`.

Without a key in CODEB_API_KEY it serves as the owner of the platform's team.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from codeb_mcp.faces.stdio import serve_streams
from tests.faces.world import open_world, publish


async def main() -> None:
    """Open the world and serve."""
    async with open_world(Path(sys.argv[1])) as world:
        publish(world)
        await serve_streams(world.services, os.environ.get("CODEB_API_KEY") or world.keys["default"]["owner"])


if __name__ == "__main__":
    asyncio.run(main())
