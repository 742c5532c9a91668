"""The inventory: host keys are shown, then accepted, then pinned; this machine is checked for real."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import DriverUnavailable
from codeb_mcp.model.server import Server, fingerprint
from tests.unit.operations.world import World, principal


class Shown:
    """Implements `Hosts` as far as adding needs it: says which keys a server shows, and connects to nothing."""

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)

    def at(self, key: str, server: Server) -> Host:
        raise DriverUnavailable("nobody is connected to here")

    async def host_keys(self, address: str, port: int) -> list[str]:
        return self.keys

    async def close(self) -> None:
        """Nothing is open."""


def new_key(folder: Path, name: str) -> str:
    """A public key in its file's form without the comment."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20)
    return " ".join(path.with_suffix(".pub").read_text("ascii").split()[:2])


@pytest.fixture
def shown(world: World, tmp_path: Path) -> Shown:
    hosts = Shown(new_key(tmp_path, "first"))
    object.__setattr__(world.services.drivers, "hosts", hosts)
    return hosts


STORAGE = {"serverKey": "storage", "host": "192.0.2.30", "role": "database"}


async def test_the_first_call_shows_the_fingerprint_and_stores_nothing(world: World, shown: Shown) -> None:
    before = await world.services.store.get("ssot")
    answer = await world.call("server_add", **STORAGE)
    assert (answer["added"], answer["hostKeys"][0]["fingerprint"]) == (False, fingerprint(shown.keys[0]))
    assert "acceptFingerprint" in answer["nextStep"]
    assert await world.services.store.get("ssot") == before


async def test_an_accepted_key_is_pinned_and_the_guides_keys_are_written(world: World, shown: Shown) -> None:
    answer = await world.call("server_add", **STORAGE, acceptFingerprint=fingerprint(shown.keys[0]))
    assert (answer["added"], answer["changed"], answer["server"]["pinned"]) == (True, True, True)
    stored = await world.services.store.get("ssot")
    assert stored is not None
    entry = stored.doc["servers"]["storage"]
    assert (entry["host"], entry["role"], entry["hostKey"]) == ("192.0.2.30", "database", shown.keys[0])
    (row,) = (await world.call("server_list"))["data"]
    assert row["fingerprint"] == fingerprint(shown.keys[0])


async def test_adding_it_again_changes_nothing(world: World, shown: Shown) -> None:
    accepted = {**STORAGE, "acceptFingerprint": fingerprint(shown.keys[0])}
    await world.call("server_add", **accepted)
    before = await world.services.store.get("ssot")
    assert (await world.call("server_add", **accepted))["changed"] is False
    assert (await world.call("server_add", **STORAGE))["changed"] is False
    assert await world.services.store.get("ssot") == before


async def test_a_key_that_is_not_shown_is_not_accepted(world: World, shown: Shown, tmp_path: Path) -> None:
    other = fingerprint(new_key(tmp_path, "other"))
    error = await world.refused("host_key_changed", "server_add", **STORAGE, acceptFingerprint=other)
    assert error.detail["shown"] == [fingerprint(shown.keys[0])]
    assert (await world.call("server_list"))["data"] == []


async def test_other_values_and_a_new_key_need_replace(world: World, shown: Shown, tmp_path: Path) -> None:
    await world.call("server_add", **STORAGE, acceptFingerprint=fingerprint(shown.keys[0]))
    await world.refused("conflict", "server_add", **{**STORAGE, "host": "192.0.2.31"})
    shown.keys[:] = [new_key(tmp_path, "second")]
    new = fingerprint(shown.keys[0])
    unconfirmed = await world.call("server_add", **STORAGE, replace=True)
    assert (unconfirmed["added"], unconfirmed["hostKeys"][0]["fingerprint"]) == (False, new)
    (row,) = (await world.call("server_list"))["data"]
    assert row["fingerprint"] != new
    await world.call("server_add", **STORAGE, replace=True, acceptFingerprint=new)
    (row,) = (await world.call("server_list"))["data"]
    assert row["fingerprint"] == new


async def test_keys_of_others_in_the_entry_survive_a_change(world: World, shown: Shown) -> None:
    from codeb_mcp.registry.store import update

    def put(doc: Any) -> Any:
        return {**(doc or {}), "servers": {"storage": {"host": "192.0.2.30", "role": "database", "rack": "b2"}}}

    await update(world.services.store, "ssot", put)
    await world.call("server_add", **STORAGE, acceptFingerprint=fingerprint(shown.keys[0]))
    stored = await world.services.store.get("ssot")
    assert stored is not None
    assert stored.doc["servers"]["storage"]["rack"] == "b2"


async def test_a_server_in_use_is_not_forgotten(world: World, shown: Shown) -> None:
    from codeb_mcp.registry.store import update

    await world.project("worb")
    await world.call("server_add", **STORAGE, acceptFingerprint=fingerprint(shown.keys[0]))

    def use(doc: Any) -> Any:
        entry = {**doc["projects"]["worb"], "database": {"name": "worb", "server": "storage"}}
        return {**doc, "projects": {**doc["projects"], "worb": entry}}

    await update(world.services.store, "ssot", use)
    error = await world.refused("conflict", "server_remove", serverKey="storage", confirm="storage")
    assert error.detail["usedBy"] == ["worb"]
    await world.refused("invalid_request", "server_remove", serverKey="storage", confirm="app")


async def test_only_the_team_that_runs_the_installation_sees_or_changes_servers(world: World, shown: Shown) -> None:
    stranger = principal(Role.OWNER, "acme")
    for tool, arguments in (("server_list", {}), ("server_check", {}), ("server_add", STORAGE)):
        await world.refused("forbidden", tool, stranger, **arguments)
    await world.refused("forbidden", "server_add", principal(Role.MEMBER), **STORAGE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "-oProxyCommand=touch"), ("host", "a b"), ("host", "192.0.2.300"), ("user", "root;id"), ("user", "-x"),
        ("port", 0), ("port", 70000), ("serverKey", "../x"), ("engine", "unix:///etc/passwd"), ("connection", "telnet"),
        ("acceptFingerprint", "MD5:00"), ("role", "king"), ("domain", "no spaces.example"),
    ],
)  # fmt: skip
async def test_bad_values_name_their_field_and_store_nothing(
    world: World, shown: Shown, field: str, value: Any
) -> None:
    error = await world.refused("invalid_request", "server_add", **{**STORAGE, field: value})
    assert error.detail["fields"][0]["field"] == field
    assert (await world.call("server_list"))["data"] == []


async def test_this_machine_is_checked_for_real(world: World) -> None:
    await world.call("server_add", serverKey="here", host="127.0.0.1", role="backup", connection="local")
    answer = await world.call("server_check", serverKey="here")
    found = {check["check"]: check["status"] for check in answer["checks"]}
    assert (found["login"], found["clock"]) == ("ok", "ok")
    assert found["disk"] in ("ok", "warn", "fail")
    assert found["prometheus"] in ("unknown", "fail")
    assert answer["servers"] == 1


async def test_a_server_that_cannot_be_reached_fails_and_the_others_are_still_checked(
    world: World, tmp_path: Path
) -> None:
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    entry = {"host": "127.0.0.1", "port": port, "role": "streaming", "hostKey": new_key(tmp_path, "gone")}
    from codeb_mcp.registry.store import update

    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": {"gone": entry}})
    await world.call("server_add", serverKey="here", host="127.0.0.1", role="backup", connection="local")
    answer = await world.call("server_check")
    by_server = {check["serverKey"]: check for check in answer["checks"] if check["check"] == "login"}
    assert (by_server["gone"]["status"], by_server["here"]["status"]) == ("fail", "ok")
    assert answer["status"] == "fail"
