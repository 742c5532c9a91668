"""Whether one can still get in, where the server is the control plane's own machine: only another server can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.drivers.hosts import Finished
from codeb_mcp.model.errors import CodebError, DriverUnavailable
from codeb_mcp.model.server import Server, ServerRole
from codeb_mcp.operations.server_firewall import require_way_in
from codeb_mcp.registry.store import update
from tests.unit.operations.world import initialised

HERE = Server(host="192.0.2.1", role=ServerRole.APPLICATION, connection="local")
KEY = "ssh-ed25519 " + "A" * 68


class Others:
    """Servers that reach us (0), do not (1), or do not answer themselves (None)."""

    def __init__(self, **statuses: int | None) -> None:
        self.statuses = statuses
        self.asked: list[tuple[str, list[str]]] = []

    def at(self, key: str, server: Server) -> Any:
        others = self

        class There:
            async def run(self, argv: list[str], **_: Any) -> Finished:
                others.asked.append((key, argv))
                status = others.statuses[key]
                if status is None:
                    raise DriverUnavailable(f"{key} is away", hint="Wait.")
                return Finished(status, b"", b"")

        return There()

    async def close(self) -> None:
        return None


async def tried(root: Path, others: Others, *, trusted: bool = True) -> str:
    """`in`, or the code of the refusal."""
    world = await initialised(root)
    entry = {"role": "database", **({"hostKey": KEY} if trusted else {})}
    servers = {name: {**entry, "host": f"192.0.2.{number}"} for number, name in enumerate(others.statuses, start=2)}
    servers["app"] = HERE.dump()
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": servers})
    services = replace(world.services, drivers=replace(world.services.drivers, hosts=others))  # type: ignore[arg-type]
    try:
        await require_way_in(services, "app", HERE)
    except CodebError as error:
        return error.code
    finally:
        await world.close()
    return "in"


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ({}, "conflict"),
        ({"backup": 0}, "in"),
        ({"backup": 1}, "driver_unavailable"),
        ({"backup": None}, "driver_unavailable"),
        ({"backup": None, "storage": 0}, "in"),
        ({"backup": 1, "storage": 0}, "in"),
        ({"backup": 1, "storage": None}, "driver_unavailable"),
    ],
)
async def test_rules_are_kept_only_when_another_server_gets_in(
    tmp_path: Path, statuses: dict[str, int | None], said: str
) -> None:
    others = Others(**statuses)
    assert await tried(tmp_path / "codeb", others) == said
    assert all(argv[-2:] == ["192.0.2.1", "22"] for _, argv in others.asked)


async def test_a_server_whose_host_key_was_not_accepted_is_not_asked(tmp_path: Path) -> None:
    others = Others(backup=0)
    assert await tried(tmp_path / "codeb", others, trusted=False) == "conflict"
    assert others.asked == []
