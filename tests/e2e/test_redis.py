"""Redis users of environments on a real server behind a real sshd: own keys only, and kept over a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from codeb_mcp.operations import databases
from tests.e2e.store_world import HOST, StoreWorld, cache, installation, settings_of
from tests.lab.hosts import LabHosts
from tests.lab.stores import LabRedis
from tests.unit.operations.mortality import run_until, take_up

pytestmark = pytest.mark.real("hosts", "redis")
LIVE = {"environment": "production", "kind": "redis"}
MOMENTS = 40


@pytest.fixture(scope="module", params=[True, False], ids=["aclfile", "redis.conf"])
def server(hosts: LabHosts, request: pytest.FixtureRequest) -> Iterator[LabRedis]:
    with cache(hosts, acl_file=request.param) as made:
        yield made


@pytest.fixture
async def far(hosts: LabHosts, server: LabRedis, tmp_path: Path) -> AsyncIterator[StoreWorld]:
    assert databases.__all__
    async with installation(hosts, tmp_path / "codeb", **settings_of(redis=server)) as made:
        yield made


def ask(url: str, *words: Any) -> Any:
    """What a client with exactly this URL gets to hear."""
    with redis.Redis.from_url(url, socket_timeout=10, protocol=2) as client:
        return client.execute_command(*words)


async def test_a_client_with_the_url_of_the_variables_has_its_own_keys_also_after_a_restart(
    far: StoreWorld, server: LabRedis, unique: str
) -> None:
    await far.world.project(unique)
    said = await far.create(unique, "redis")
    assert [one for one in said["warnings"] if "Backup server" not in one] == []
    assert (said["server"], said["port"]) == (HOST, server.port)
    values = far.variables(unique)
    assert sorted(values) == ["REDIS_PREFIX", "REDIS_URL"]
    assert values["REDIS_PREFIX"] == f"{unique}:production:"
    url, key = values["REDIS_URL"], values["REDIS_PREFIX"] + "n"
    assert ask(url, "SET", key, "42") in (True, b"OK")
    assert ask(url, "INFO", "server")
    server.stop()
    server.run()
    assert ask(url, "GET", key) == b"42"
    assert far.variables(unique)["REDIS_URL"].partition("@")[0].rpartition(":")[2] not in server.persisted()


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "{theirs}n"), ("SET", "{theirs}n", "1"), ("DEL", "{theirs}n"), ("GET", "n"), ("KEYS", "*"), ("SCAN", "0"),
        ("RANDOMKEY",), ("DBSIZE",), ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("MONITOR",),
        ("SHUTDOWN", "NOSAVE"), ("CLIENT", "LIST"), ("CLIENT", "TRACKING", "ON", "BCAST"),
        ("PUBLISH", "{theirs}c", "x"), ("SUBSCRIBE", "{theirs}c"), ("PUBSUB", "CHANNELS"), ("FUNCTION", "LIST"),
        ("SCRIPT", "FLUSH"), ("EVAL", "return redis.call('GET', '{theirs}n')", "0"), ("REPLICAOF", "127.0.0.1", "1"),
        ("RENAME", "{own}n", "{theirs}n"), ("COPY", "{own}n", "{theirs}n"), ("SORT", "{own}l", "GET", "{theirs}*"),
        ("SAVE",), ("SLOWLOG", "GET"), ("SWAPDB", "0", "1"), ("MIGRATE", "127.0.0.1", "1", "{own}n", "0", "1"),
    ],
    ids=lambda words: " ".join(words[:2]).replace("{", "").replace("}", ""),
)  # fmt: skip
async def test_no_command_reaches_into_another_project(
    far: StoreWorld, server: LabRedis, unique: str, words: tuple[str, ...]
) -> None:
    values = {}
    for name in (f"{unique}-a", f"{unique}-b"):
        await far.world.project(name)
        await far.create(name, "redis")
        values[name[-1]] = far.variables(name)
    theirs, own = values["a"]["REDIS_PREFIX"], values["b"]["REDIS_PREFIX"]
    server.cli("SET", f"{theirs}n", "secret")
    server.cli("SET", f"{own}n", "mine")
    said = [word.replace("{theirs}", theirs).replace("{own}", own) for word in words]
    with pytest.raises((NoPermissionError, redis.ResponseError)) as caught:
        ask(values["b"]["REDIS_URL"], *said)
    # What a script was refused is told in other words.
    text = str(caught.value).lower()
    assert isinstance(caught.value, NoPermissionError) or "permission" in text or "can't access" in text, text
    assert server.cli("GET", f"{theirs}n") == "secret"


async def test_a_rotation_makes_the_former_password_invalid_and_a_deletion_puts_the_keys_aside(
    far: StoreWorld, server: LabRedis, unique: str
) -> None:
    await far.world.project(unique)
    await far.create(unique, "redis")
    before = far.variables(unique)
    key = before["REDIS_PREFIX"] + "n"
    ask(before["REDIS_URL"], "SET", key, "42")
    await far.rotate(unique, "redis")
    now = far.variables(unique)
    with pytest.raises(AuthenticationError):
        ask(before["REDIS_URL"], "PING")
    with redis.Redis.from_url(now["REDIS_URL"], socket_timeout=10) as client:
        assert client.get(key) == b"42"
        problem = await far.world.refused("conflict", "database_delete", projectName=unique, **LIVE, confirm=unique)
        assert problem.detail["connections"] == 1
    said = await far.delete(unique, "redis", force=True)
    with pytest.raises(AuthenticationError):
        ask(now["REDIS_URL"], "PING")
    assert far.variables(unique) == {}
    assert server.cli("GET", said["aside"].removesuffix("*") + "n") == "42"
    assert server.cli("EXISTS", key) == "0"
    assert unique not in server.persisted()
    await far.create(unique, "redis")
    assert ask(far.variables(unique)["REDIS_URL"], "GET", key) is None


async def test_the_password_stands_in_the_variables_and_nowhere_else(
    far: StoreWorld, server: LabRedis, unique: str
) -> None:
    await far.world.project(unique)
    answer = await far.create(unique, "redis")
    password = far.variables(unique)["REDIS_URL"].partition("@")[0].rpartition(":")[2]
    assert far.files_with(password) == []
    assert password not in repr(answer) + server.persisted()
    run = await far.world.call("operation_get", operationId=answer["operationId"])
    assert password not in repr(run)


@pytest.mark.parametrize("tool", ["database_create", "database_rotate", "database_delete"])
async def test_a_run_that_lost_its_process_at_any_moment_ends_well(far: StoreWorld, unique: str, tool: str) -> None:
    moments = 0
    for at in range(MOMENTS):
        name = f"{unique}-{at}"
        await far.world.project(name)
        if tool != "database_create":
            await far.create(name, "redis")
        more = {"confirm": name} if tool == "database_delete" else {}
        stopped = await run_until(far.world, at, tool, projectName=name, **LIVE, **more)
        await take_up(far.world)
        if stopped is None:
            break
        moments += 1
        states = {row["projectName"]: row["state"] for row in await far.rows()}
        assert states.get(name, "ready") == "ready", stopped.where
        if name in states:
            assert ask(far.variables(name)["REDIS_URL"], "PING") in (True, b"PONG"), stopped.where
        else:
            assert far.variables(name) == {}, stopped.where
        assert await far.world.services.registry.journals.open_runs() == []
    assert moments >= 6
    print(f"{tool}: stopped at {moments} moments, lost 0")


async def test_a_wrong_administrator_is_told_which_setting_to_correct(
    hosts: LabHosts, server: LabRedis, tmp_path: Path, unique: str
) -> None:
    async with installation(hosts, tmp_path / "codeb", **settings_of(redis=server), redis_user="nobody") as far:
        await far.world.project(unique)
        problem = await far.world.refused("driver_refused", "database_create", projectName=unique, **LIVE)
        assert "redis_password_file" in problem.hint
        assert await far.rows() == []
    server.cli("ACL", "SETUSER", unique, "on", "nopass", "~*")
    async with installation(hosts, tmp_path / "other", **settings_of(redis=server)) as far:
        await far.world.project(unique)
        problem = await far.world.refused("conflict", "database_create", projectName=unique, **LIVE)
        assert "not ours" in problem.message
