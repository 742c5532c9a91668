"""An installation whose database server is a lab host with a real PostgreSQL and Redis behind a real sshd."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from codeb_mcp.drivers.postgres import first_sql
from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.registry.env_history import values_of
from codeb_mcp.registry.store import update
from codeb_mcp.settings import DatabaseSettings
from tests.lab.hosts import LabHosts
from tests.lab.stores import REDIS_ADMIN, REDIS_PASSWORD, LabPostgres, LabRedis
from tests.unit.operations.world import World, initialised

HOST = "storage"


@contextlib.contextmanager
def cluster(lab: LabHosts) -> Iterator[LabPostgres]:
    """A PostgreSQL of its own, with the role that docs/DATABASES.md asks for."""
    made = LabPostgres(lab, HOST, random.randrange(20_000, 30_000))
    with lab.using(HOST):
        try:
            made.start()
            made.sql(first_sql("codeb"))
            yield made
        finally:
            made.remove()


@contextlib.contextmanager
def cache(lab: LabHosts, *, acl_file: bool = True) -> Iterator[LabRedis]:
    """A Redis of its own."""
    made = LabRedis(lab, HOST, random.randrange(30_000, 40_000), acl_file)
    with lab.using(HOST):
        try:
            made.start()
            yield made
        finally:
            made.remove()


@dataclasses.dataclass
class StoreWorld:
    """One installation, and what can be seen of it."""

    world: World
    lab: LabHosts
    root: Path

    async def create(self, project: str, kind: str = "postgres", **more: Any) -> dict[str, Any]:
        """Make a data store for production."""
        return await self.world.call(
            "database_create", **{"projectName": project, "environment": "production", "kind": kind} | more
        )

    async def rotate(self, project: str, kind: str = "postgres", **more: Any) -> dict[str, Any]:
        """A new password."""
        return await self.world.call(
            "database_rotate", **{"projectName": project, "environment": "production", "kind": kind} | more
        )

    async def delete(self, project: str, kind: str = "postgres", **more: Any) -> dict[str, Any]:
        """Take it away."""
        given = {"projectName": project, "environment": "production", "kind": kind, "confirm": project}
        return await self.world.call("database_delete", **given | more)

    async def rows(self) -> list[dict[str, Any]]:
        """What database_list says."""
        found: list[dict[str, Any]] = (await self.world.call("database_list"))["data"]
        return found

    async def ssot(self) -> dict[str, Any]:
        """The registry's document."""
        return dict(await load_ssot(self.world.services.store))

    def variables(self, project: str, environment: str = "production") -> dict[str, str]:
        """What a container of the environment would get."""
        path = self.root / f"projects/{project}/.env.{environment}"
        return dict(values_of(path.read_bytes())) if path.exists() else {}

    def files_with(self, secret: str) -> list[str]:
        """Files of the installation that hold the text, except those that are there to hold variables."""
        found = [path for path in self.root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        return [str(path) for path in found if "env-backup" not in path.parts and "projects" not in path.parts]


@contextlib.asynccontextmanager
async def installation(lab: LabHosts, root: Path, **databases: Any) -> AsyncIterator[StoreWorld]:
    """A fresh registry whose server `storage` is the lab's; `databases` are settings. `keepalive_seconds` among them is how
    soon a dead line is noticed."""
    keepalive = databases.pop("keepalive_seconds", 5.0)
    world = await initialised(root)
    secret = root / "redis-password"
    secret.write_text(f"{REDIS_PASSWORD}\n", encoding="utf-8")
    said = {"addresses": {HOST: lab.address(HOST)}, "redis_user": REDIS_ADMIN, "redis_password_file": secret}
    env = world.settings.env.model_copy(update={"immutable_master": False})
    settings = DatabaseSettings.model_validate({**said, **databases})
    world.settings = world.settings.model_copy(update={"databases": settings, "env": env})
    ssh = SshHosts(SshSettings(key_file=lab.key_file, connect_seconds=3, keepalive_seconds=keepalive))
    start = world.start

    def started(*args: Any, **more: Any) -> Services:
        services = start(*args, **more)
        drivers = dataclasses.replace(services.drivers, hosts=ssh)
        services = dataclasses.replace(services, settings=world.settings, drivers=drivers)
        services.runs.bind(services)
        return services

    world.start = started  # type: ignore[method-assign]
    world.services = started()
    entry = {"host": lab.address(HOST), "role": "database", "user": "codeb", "hostKey": lab.host_key(HOST)}
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": {HOST: entry}})
    try:
        yield StoreWorld(world, lab, root)
    finally:
        await ssh.close()
        await world.close()


def settings_of(postgres: LabPostgres | None = None, redis: LabRedis | None = None) -> dict[str, Any]:
    """Where the shared instances are."""
    found: dict[str, Any] = {}
    if postgres is not None:
        found |= {"postgres_socket": postgres.socket, "postgres_port": postgres.port}
    if redis is not None:
        found |= {"redis_address": f"127.0.0.1:{redis.port}", "redis_port": redis.port}
    return found
