"""Own instances on the engine of a database server; the images are stand-ins made of Debian's PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from codeb_mcp.drivers.own_stores import OwnStores
from codeb_mcp.model.errors import CodebError
from codeb_mcp.operations import databases
from tests.e2e.store_world import HOST, StoreWorld, installation
from tests.lab.hosts import LabHosts
from tests.lab.store_images import HostRegistry, _docker
from tests.lab.stores import require
from tests.unit.operations.mortality import run_until, take_up

pytestmark = pytest.mark.real("hosts", "docker", "registry", "postgres", "redis")


@dataclass(frozen=True)
class Engine:
    """The database server's engine, and the stand-ins on it."""

    lab: LabHosts
    socket: str
    images: dict[str, str]

    def ask(self, *words: str) -> str:
        """What the docker client says."""
        return _docker(self.socket, *words).strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """A container as it is."""
        found: dict[str, Any] = json.loads(self.ask("inspect", name))[0]
        return found

    def tidy(self) -> None:
        """Remove what the test left there."""
        found = self.ask("ps", "-aq", "--filter", "label=codeb.store").split()
        for one in found:
            print(self.ask("logs", "--tail", "20", one), self.inspect(one)["State"])
        if found:
            self.ask("rm", "-f", *found)
        volumes = self.ask("volume", "ls", "-q", "--filter", "label=codeb.store").split()
        if volumes:
            self.ask("volume", "rm", "-f", *volumes)


@pytest.fixture(scope="module")
def engine(hosts: LabHosts) -> Iterator[Engine]:
    require("postgres")
    require("redis")
    with hosts.alone(HOST):
        socket = hosts.start_engine(HOST)
        with HostRegistry(hosts, HOST, random.randrange(40_000, 50_000)) as registry:
            images = {f"{kind}_image": registry.image(kind, socket) for kind in ("postgres", "redis", "postgres-18")}
        made = Engine(hosts, socket, images)
        made.tidy()
        yield made
        made.tidy()
        tags = [f"{name.partition('@')[0]}:1" for name in images.values()]
        made.ask("rmi", "-f", *images.values(), *tags)


@pytest.fixture
async def far(hosts: LabHosts, engine: Engine, tmp_path: Path) -> AsyncIterator[StoreWorld]:
    assert databases.__all__
    inside = {"addresses": {HOST: hosts.inner_address(HOST)}, "engine_socket": "/run/docker.sock", "own_memory_mb": 128}
    images = {name: image for name, image in engine.images.items() if name != "postgres-18_image"}
    async with installation(hosts, tmp_path / "codeb", **inside, **images) as made:
        yield made
    engine.tidy()


async def sql(url: str, text: str) -> Any:
    """The first value of what a client with exactly this URL gets to hear."""
    link = await asyncpg.connect(url, ssl=False, timeout=20, passfile="/nonexistent")
    try:
        return await link.fetchval(text)
    finally:
        await link.close(timeout=5)


async def test_the_table_of_the_guide_is_made_by_asking_for_it(far: StoreWorld, engine: Engine) -> None:
    own = {"database": {"placement": "own", "port": 5450}, "redis": {"placement": "own", "port": 6400}}
    for name in ("worb", "w-homepage", "da-rak"):
        environments = ["production", "staging"] if name == "worb" else ["production"]
        wishes = own if name == "da-rak" else {}
        said = await far.world.call("project_create", projectName=name, environments=environments, **wishes)
        assert {row["outcome"] for row in said["provisioned"]} <= {"made"}, said["provisioned"]
    plain: dict[str, Any] = {"database": True, "redis": True}
    for asked in (own, plain):
        again = await far.world.call("project_create", projectName="da-rak", environments=["production"], **asked)
        assert [row["outcome"] for row in again["provisioned"]] == ["present", "present"]
    await far.world.refused(
        "conflict", "project_create", projectName="da-rak", environments=["production"], redis={"placement": "shared"}
    )
    ssot = await far.ssot()
    pairs = {
        f"{name} {environment}": (pair["blue"], pair["green"])
        for name, project in ssot["projects"].items()
        for environment, pair in project["ports"].items()
    }
    assert pairs == {
        "worb production": (4000, 4001), "worb staging": (4500, 4501),
        "w-homepage production": (4002, 4003), "da-rak production": (4004, 4005),
    }  # fmt: skip
    assert ssot["projects"]["da-rak"]["database"] == {"name": "da_rak", "server": HOST, "port": 5450}
    assert set(ssot["usedPorts"]) >= {5450, 6400}
    address = engine.lab.inner_address(HOST)
    values = far.variables("da-rak")
    assert values["DATABASE_URL"].endswith(f"@{address}:5450/da_rak")
    assert values["REDIS_URL"].endswith(f"@{address}:6400/0")
    assert await sql(values["DATABASE_URL"], "SELECT current_database()") == "da_rak"
    with redis.Redis.from_url(values["REDIS_URL"], socket_timeout=10) as client:
        assert client.set("any", "key")
        assert client.dbsize() == 1
    for kind, inner, port in (("postgres", "5432/tcp", "5450"), ("redis", "6379/tcp", "6400")):
        seen = engine.inspect(f"codeb-store-da-rak-production-{kind}")
        host = seen["HostConfig"]
        assert host["PortBindings"] == {inner: [{"HostIp": address, "HostPort": port}]}
        assert (host["CapDrop"], host["Privileged"], host["ReadonlyRootfs"]) == (["ALL"], False, True)
        assert (host["Memory"], host["SecurityOpt"]) == (128 << 20, ["no-new-privileges"])
        assert seen["Config"]["User"] == kind
        assert "@sha256:" in seen["Config"]["Image"]
        assert values["POSTGRES_PASSWORD"] not in json.dumps(seen)


async def test_shared_ports_are_never_given_away_and_taken_ones_not_twice(far: StoreWorld, unique: str) -> None:
    names = [f"{unique}-a", f"{unique}-b"]
    for name in names:
        await far.world.project(name)
    own = {"environment": "production", "kind": "redis", "placement": "own"}
    for port in (6379, 6500, 5450, 80):
        await far.world.refused("conflict", "database_create", projectName=names[0], **own, port=port)
    said = await asyncio.gather(*(far.create(name, "redis", placement="own") for name in names))
    assert sorted(one["port"] for one in said) == [6380, 6381]
    await far.world.refused(
        "conflict", "database_create", projectName=names[0], environment="production", kind="postgres", port=5440
    )
    await far.delete(names[0], "redis")
    assert (await far.create(names[0], "redis", placement="own"))["port"] == 6382, "a freed port is held back"


@pytest.mark.parametrize("kind", ["postgres", "redis"])
async def test_data_and_passwords_outlive_the_container_and_a_deletion_keeps_the_volume(
    far: StoreWorld, engine: Engine, unique: str, kind: str
) -> None:
    await far.world.project(unique)
    await far.create(unique, kind, placement="own")
    name = f"codeb-store-{unique}-production-{kind}"

    async def write() -> None:
        values = far.variables(unique)
        if kind == "postgres":
            await sql(values["DATABASE_URL"], "CREATE TABLE kept AS SELECT 42 AS n")
        else:
            with redis.Redis.from_url(values["REDIS_URL"], socket_timeout=10) as client:
                client.set("kept", "42")

    async def read() -> int:
        values = far.variables(unique)
        for _ in range(100):
            try:
                if kind == "postgres":
                    return int(await sql(values["DATABASE_URL"], "SELECT n FROM kept"))
                with redis.Redis.from_url(values["REDIS_URL"], socket_timeout=10) as client:
                    return int(client.get("kept") or 0)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, redis.RedisError):
                await asyncio.sleep(0.1)
        raise AssertionError("the instance did not come back")

    await write()
    engine.ask("restart", "-t", "20", name)
    assert await read() == 42
    await far.rotate(unique, kind)
    assert await read() == 42
    said = await far.delete(unique, kind)
    assert engine.ask("ps", "-aq", "--filter", f"name={name}") == ""
    assert said["aside"] in engine.ask("volume", "ls", "-q").split()
    assert far.variables(unique) == {}
    await far.create(unique, kind, placement="own")
    assert far.variables(unique), "a new one of the same name has a volume of its own"


async def test_an_image_that_keeps_each_major_version_in_a_folder_of_its_own_keeps_its_data_in_the_volume(
    hosts: LabHosts, engine: Engine, tmp_path: Path, unique: str
) -> None:
    said: dict[str, Any] = {"addresses": {HOST: hosts.inner_address(HOST)}, "engine_socket": "/run/docker.sock"}
    said |= {"own_memory_mb": 128, "postgres_image": engine.images["postgres-18_image"]}
    async with installation(hosts, tmp_path / "codeb", **said) as far:
        await far.world.project(unique)
        made = await far.create(unique, placement="own")
        assert made["status"] == "succeeded"
        url = far.variables(unique)["DATABASE_URL"]
        await sql(url, "CREATE TABLE kept AS SELECT 42 AS n")
        name = f"codeb-store-{unique}-production-postgres"
        seen = engine.inspect(name)
        assert [mount["Destination"] for mount in seen["Mounts"]] == ["/var/lib/postgresql"], "and no nameless one"
        volume = seen["Mounts"][0]["Name"]
        engine.ask("restart", "-t", "20", name)
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await sql(url, "SELECT n FROM kept") == 42
                    break
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await asyncio.sleep(0.1)
        assert (await far.delete(unique))["aside"] == volume
        assert volume in engine.ask("volume", "ls", "-q").split()
    engine.tidy()


async def test_a_container_of_that_name_that_is_not_ours_is_left_alone(
    far: StoreWorld, engine: Engine, unique: str
) -> None:
    await far.world.project(unique)
    name = f"codeb-store-{unique}-production-redis"
    engine.ask("create", "--name", name, "--label", "codeb.store=other", engine.images["redis_image"], "redis-server")
    problem = await far.world.refused(
        "driver_refused", "database_create", projectName=unique, environment="production", kind="redis", placement="own"
    )
    assert problem.detail["reason"] == "foreign_container"
    assert engine.inspect(name)["State"]["Status"] == "created"
    assert [row["state"] for row in await far.rows()] == ["reserved"]
    engine.ask("rm", name)
    assert (await far.create(unique, "redis", placement="own"))["status"] == "succeeded"


@pytest.mark.parametrize("tool", ["database_create", "database_delete"])
async def test_a_run_that_lost_its_process_at_any_moment_ends_with_all_or_nothing(
    far: StoreWorld, engine: Engine, unique: str, tool: str
) -> None:
    live = {"environment": "production", "kind": "redis"}
    more: dict[str, Any] = {"placement": "own"} if tool == "database_create" else {}
    moments = 0
    for at in range(40):
        name = f"{unique}-{at}"
        await far.world.project(name)
        if tool == "database_delete":
            await far.create(name, "redis", placement="own")
            more = {"confirm": name}
        stopped = await run_until(far.world, at, tool, projectName=name, **live, **more)
        await take_up(far.world)
        if stopped is None:
            break
        moments += 1
        rows = {row["projectName"]: row for row in await far.rows()}
        there = engine.ask("ps", "-q", "--filter", f"name=codeb-store-{name}-production-redis")
        if name in rows:
            assert rows[name]["state"] == "ready", stopped.where
            with redis.Redis.from_url(far.variables(name)["REDIS_URL"], socket_timeout=10) as client:
                assert client.ping(), stopped.where
            await far.delete(name, "redis")
        else:
            assert there == "", stopped.where
            assert far.variables(name) == {}, stopped.where
        assert await far.world.services.registry.journals.open_runs() == []
    assert moments >= 10
    print(f"{tool} of own instances: stopped at {moments} moments, lost 0")


async def test_a_link_that_is_cut_is_named_and_what_was_begun_goes_on_when_it_is_back(
    far: StoreWorld, engine: Engine, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.world.project(unique)
    live = {"projectName": unique, "environment": "production", "kind": "redis", "placement": "own"}
    ensure = OwnStores.ensure

    async def cut_off(self: OwnStores, *words: Any, **more: Any) -> bool:
        made = await ensure(self, *words, **more)
        engine.lab.cut(HOST)
        return made

    monkeypatch.setattr(OwnStores, "ensure", cut_off)
    monkeypatch.setattr("codeb_mcp.operations.database_work.HEALTHY_SECONDS", 1.0)
    try:
        with pytest.raises(CodebError) as caught:
            await far.world.call("database_create", **live)
    finally:
        engine.lab.heal(HOST)
    assert caught.value.code in ("driver_unavailable", "timeout"), caught.value.as_dict()
    assert HOST in caught.value.message
    assert [row["state"] for row in await far.rows()] == ["reserved"]
    assert far.variables(unique) == {}
    monkeypatch.setattr(OwnStores, "ensure", ensure)
    assert (await far.world.call("database_create", **live))["status"] == "succeeded"
    with redis.Redis.from_url(far.variables(unique)["REDIS_URL"], socket_timeout=10) as client:
        assert client.ping()
