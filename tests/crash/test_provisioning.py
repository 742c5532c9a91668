"""kill -9 of the server while one call provisions a project: afterwards the same call finishes, and nothing is there twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from codeb_mcp import app
from codeb_mcp.model.env import parse
from codeb_mcp.registry.store import Document, update
from tests.crash.test_kill_at_every_step import settled
from tests.e2e.store_world import HOST, cache, cluster
from tests.lab.daemons import wait_until
from tests.lab.engine import Engine
from tests.lab.hosts import LabHosts
from tests.lab.installation import Installation, installed
from tests.lab.ports import FreePorts
from tests.lab.stores import REDIS_ADMIN, REDIS_PASSWORD, LabPostgres, LabRedis

pytestmark = pytest.mark.real("hosts", "postgres", "redis")
ORDERS = [
    *(f"database_create:{action}:{number}:{when}"
      for action in ("reserve_database", "make_database", "hand_out_password", "confirm_database")
      for number in (1, 2) for when in ("before", "after")),
    "database_create:confirm_database:1:recorded",
]  # fmt: skip
"""Number 1 is the database's run and 2 the one of Redis: the last order dies between the two wishes."""


@pytest.fixture(scope="module")
def stores(hosts: LabHosts) -> Iterator[tuple[LabPostgres, LabRedis]]:
    with cluster(hosts) as postgres, cache(hosts) as redis:
        yield postgres, redis


@pytest.fixture
def installation(
    engine: Engine, free_ports: FreePorts, hosts: LabHosts, stores: tuple[LabPostgres, LabRedis]
) -> Iterator[Installation]:
    """An installation whose inventory has the lab's Storage server."""
    postgres, redis = stores
    extra = (
        f'[ssh]\nkey_file = "{hosts.key_file}"\nconnect_seconds = 3\n'
        f'[databases]\npostgres_socket = "{postgres.socket}"\npostgres_port = {postgres.port}\n'
        f'redis_address = "127.0.0.1:{redis.port}"\nredis_port = {redis.port}\nredis_user = "{REDIS_ADMIN}"\n'
        'redis_password_file = "SECRET"\n'
        f'[databases.addresses]\n{HOST} = "{hosts.address(HOST)}"\n'
    )
    with installed(engine, free_ports(), free_ports(), extra=extra) as made:
        secret = made.root / "redis-password"
        secret.write_text(f"{REDIS_PASSWORD}\n", encoding="utf-8")
        toml = made.root / "codeb.toml"
        toml.write_text(toml.read_text(encoding="utf-8").replace("SECRET", str(secret)), encoding="utf-8")
        entry = {"host": hosts.address(HOST), "role": "database", "user": "codeb", "hostKey": hosts.host_key(HOST)}
        asyncio.run(_with_server(made, entry))
        yield made


async def _with_server(installation: Installation, entry: dict[str, str]) -> None:
    def add(doc: Document | None) -> Document:
        return {**(doc or {}), "servers": {HOST: entry}}

    async with app.opened(installation.settings) as services:
        await update(services.store, "ssot", add)


def provision(installation: Installation, project: str) -> Any:
    return installation.call(
        "project_create", projectName=project, environments=["production"], database=True, redis=True,
        env={"LOG_LEVEL": "debug"},
    )  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_a_server_that_is_killed_while_it_provisions_finishes_by_the_same_call(
    installation: Installation, stores: tuple[LabPostgres, LabRedis], unique: str, order: str
) -> None:
    postgres, redis = stores
    installation.serve(VICTIM_DIES=order)
    reply = provision(installation, unique)
    assert reply.status == 0, f"the server did not die at {order}: {reply.body}"
    assert installation.wait_dead() == -9
    installation.serve()
    wait_until(lambda: settled(installation), 90, "a run stays open", log=installation.root / "server.log")
    again = provision(installation, unique)
    assert again.ok, again.body
    assert [row["wish"] for row in again.body["provisioned"]] == ["env", "database", "redis"]
    assert {row["outcome"] for row in again.body["provisioned"]} <= {"made", "present"}, again.body["provisioned"]
    assert again.body["created"] is False
    last = provision(installation, unique)
    assert {row["outcome"] for row in last.body["provisioned"]} == {"present"}, last.body["provisioned"]

    assert postgres.sql(f"SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolname LIKE '{unique}%'") == unique
    assert postgres.sql(f"SELECT string_agg(datname, ',') FROM pg_database WHERE datname LIKE '{unique}%'") == unique
    users = [line.split()[1] for line in redis.cli("ACL", "LIST").splitlines() if f"user {unique}" in line]
    assert len(users) == 1, users
    ssot = json.loads((installation.root / "registry" / "ssot.json").read_text(encoding="utf-8"))
    entries = ssot["projects"][unique]["databases"]["production"]
    assert {kind: entry["state"] for kind, entry in entries.items()} == {"postgres": "ready", "redis": "ready"}
    folder = installation.root / "env-backup" / unique / "production"
    values = dict(parse((folder / "current.env").read_text(encoding="utf-8")).values)
    assert (folder / "master.env").read_bytes() == (folder / "current.env").read_bytes(), "one version, and the whole"
    assert redis.cli("PING", user=users[0], password=values["REDIS_URL"].split(":")[2].partition("@")[0]) == "PONG"
