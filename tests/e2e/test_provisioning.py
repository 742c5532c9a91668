"""A project with everything by one call, on a real PostgreSQL and Redis behind a real sshd; and that call while the line to
them is cut. Before or after, never between; the repeat finishes, and nothing is there twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from codeb_mcp.drivers.postgres import first_sql
from codeb_mcp.model.machine import Action
from codeb_mcp.operations import perform
from codeb_mcp.registry.env_history import values_of
from tests.e2e.store_world import HOST, StoreWorld, installation, settings_of
from tests.lab.hosts import LabHosts
from tests.lab.stores import LabPostgres, LabRedis

pytestmark = pytest.mark.real("hosts", "postgres", "redis")
STEPS = ("reserve_database", "make_database", "hand_out_password", "try_database", "confirm_database")
NAMES = {
    "DATABASE_URL", "POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD", "REDIS_URL",
    "REDIS_PREFIX", "LOG_LEVEL",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """The Storage server, for one test process alone."""

    lab: LabHosts
    postgres: LabPostgres
    redis: LabRedis

    def roles(self, name: str) -> int:
        """How many roles and databases begin with the name."""
        said = self.postgres.sql(
            f"SELECT (SELECT count(*) FROM pg_roles WHERE rolname LIKE '{name}%')"
            f" + (SELECT count(*) FROM pg_database WHERE datname LIKE '{name}%')"
        )
        return int(said)

    def users(self, name: str) -> int:
        """How many Redis users begin with the name."""
        return sum(1 for line in self.redis.cli("ACL", "LIST").splitlines() if line.startswith(f"user {name}"))


@pytest.fixture(scope="module")
def storage(hosts: LabHosts) -> Iterator[Storage]:
    with hosts.alone(HOST):
        postgres = LabPostgres(hosts, HOST, random.randrange(20_000, 30_000))
        cache = LabRedis(hosts, HOST, random.randrange(30_000, 40_000))
        try:
            postgres.start()
            cache.start()
            postgres.sql(first_sql("codeb"))
            yield Storage(hosts, postgres, cache)
        finally:
            hosts.heal(HOST)
            postgres.remove()
            cache.remove()


@pytest.fixture
async def far(hosts: LabHosts, storage: Storage, tmp_path: Path) -> AsyncIterator[StoreWorld]:
    said = settings_of(storage.postgres, storage.redis)
    async with installation(hosts, tmp_path / "codeb", keepalive_seconds=0.5, **said) as made:
        yield made


async def provision(far: StoreWorld, project: str, **more: Any) -> dict[str, Any]:
    """The call of these tests."""
    wishes = {"database": True, "redis": True, "env": {"LOG_LEVEL": "debug"}, "environments": ["production"]}
    return await far.world.call("project_create", **{"projectName": project, **wishes, **more})


def outcomes(answer: Mapping[str, Any]) -> dict[str, str]:
    """What became of each wish; of one environment only."""
    return {row["wish"]: row["outcome"] for row in answer["provisioned"]}


async def check_usable(far: StoreWorld, project: str, environment: str = "production") -> None:
    """A client with what stands in the variables gets in, to its own."""
    values = far.variables(project, environment)
    link = await asyncpg.connect(values["DATABASE_URL"], ssl=False, timeout=20, passfile="/nonexistent")
    try:
        assert await link.fetchval("SELECT current_user::text") == values["POSTGRES_USER"]
    finally:
        await link.close(timeout=5)
    with redis.Redis.from_url(values["REDIS_URL"], socket_timeout=10) as client:
        assert client.set(values["REDIS_PREFIX"] + "key", "1")


async def history(far: StoreWorld, project: str, environment: str = "production") -> Any:
    return await far.world.services.registry.env.snapshot(project, environment)


async def test_one_call_makes_everything_and_the_master_is_whole(
    far: StoreWorld, storage: Storage, unique: str
) -> None:
    answer = await provision(far, unique, environments=["production", "staging"])
    assert [(row["wish"], row["environment"], row["outcome"]) for row in answer["provisioned"]] == [
        (wish, environment, "made")
        for environment in ("production", "staging")
        for wish in ("env", "database", "redis")
    ]
    for environment in ("production", "staging"):
        state = await history(far, unique, environment)
        assert set(values_of(state.master)) == NAMES
        assert (state.master, len(state.entries)) == (state.current, 1)
        await check_usable(far, unique, environment)
    secret = far.variables(unique)["POSTGRES_PASSWORD"]
    assert secret not in repr(answer)
    assert far.files_with(secret) == []
    kept = await far.world.call(
        "env_set", projectName=unique, environment="production", values={"REDIS_URL": "redis://a"}
    )
    assert kept["kept"] == ["REDIS_URL"]


async def test_the_same_again_changes_nothing_anywhere(far: StoreWorld, storage: Storage, unique: str) -> None:
    await provision(far, unique)
    await far.world.call("env_set", projectName=unique, environment="production", values={"LOG_LEVEL": "info"})
    hashed = storage.postgres.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{unique}'")
    before = (
        await far.ssot(),
        far.variables(unique),
        (await history(far, unique)).entries,
        storage.redis.cli("ACL", "LIST"),
    )
    again = await provision(far, unique)
    assert set(outcomes(again).values()) == {"present"}
    assert again["created"] is False
    after = (
        await far.ssot(),
        far.variables(unique),
        (await history(far, unique)).entries,
        storage.redis.cli("ACL", "LIST"),
    )
    assert after == before
    assert storage.postgres.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{unique}'") == hashed


async def test_a_later_wish_adds_to_what_is_there(far: StoreWorld, storage: Storage, unique: str) -> None:
    first = await provision(far, unique, redis=False)
    assert outcomes(first) == {"env": "made", "database": "made"}
    url = far.variables(unique)["DATABASE_URL"]
    assert outcomes(await provision(far, unique)) == {"env": "present", "database": "present", "redis": "made"}
    assert far.variables(unique)["DATABASE_URL"] == url
    await check_usable(far, unique)


async def test_the_same_call_ten_times_at_once_makes_everything_once(
    far: StoreWorld, storage: Storage, unique: str
) -> None:
    answers = await asyncio.gather(*(provision(far, unique) for _ in range(10)), return_exceptions=True)
    print([outcomes(one) if isinstance(one, dict) else str(one) for one in answers])
    assert set(outcomes(await provision(far, unique)).values()) == {"present"}
    assert (storage.roles(unique), storage.users(unique)) == (2, 1)
    await check_usable(far, unique)


async def test_a_store_in_the_making_is_never_opened_with_a_password_that_somebody_chose(
    far: StoreWorld, storage: Storage, unique: str
) -> None:
    await provision(far, unique, database=False, redis=False, env={"LOG_LEVEL": "x"})
    port, address = storage.postgres.port, far.lab.address(HOST)
    chosen = f"postgresql://{unique}:letmein@{address}:{port}/{unique}"
    await far.world.call("env_set", projectName=unique, environment="production", values={"DATABASE_URL": chosen})
    await far.world.call(
        "database_create", projectName=unique, environment="production", kind="postgres", overwriteVariables=True
    )
    assert far.variables(unique)["POSTGRES_PASSWORD"] != "letmein"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(chosen, ssl=False, timeout=20, passfile="/nonexistent")


async def test_previews_share_the_database_of_their_template_and_get_none_of_their_own(
    far: StoreWorld, storage: Storage, unique: str
) -> None:
    await provision(far, unique)
    preview = {"projectName": unique, "pullRequest": 1}
    await far.world.call("preview_create", **preview)
    assert far.variables(f"{unique}-pr-1", "preview") == {}, "nothing of production gets into a preview"
    await far.world.call("database_create", projectName=unique, environment="preview", kind="postgres")
    for number in (2, 3):
        await far.world.call("preview_create", projectName=unique, pullRequest=number)
        found = far.variables(f"{unique}-pr-{number}", "preview")
        assert found == far.variables(unique, "preview")
        assert found["POSTGRES_DB"] == f"{unique}_preview"
    own = await far.world.call("database_create", projectName=f"{unique}-pr-1", environment="preview", kind="postgres")
    assert own["name"] == f"{unique}_pr_1_preview"
    await far.world.refused("conflict", "preview_delete", **preview)
    await far.world.call("preview_delete", projectName=unique, pullRequest=2)


async def test_a_line_that_is_cut_at_any_step_leaves_each_store_before_or_after(
    far: StoreWorld, storage: Storage, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty moments: before and after each step of both stores."""
    tried = lost = 0
    for number, (step, when, kind) in enumerate(
        (step, when, kind) for step in STEPS for when in ("before", "after") for kind in ("postgres", "redis")
    ):
        name, database = f"{unique}-{number}z", f"{unique}_{number}z"
        genuine = perform.STEPS[step]

        async def cut(
            run: perform.Performer, action: Action, genuine: Any = genuine, when: str = when, kind: str = kind
        ) -> Mapping[str, Any]:
            now = action.detail["kind"] == kind
            if now and when == "before":
                await asyncio.to_thread(storage.lab.cut, HOST)
            try:
                done: Mapping[str, Any] = await genuine(run, action)
                return done
            finally:
                if now and when == "after":
                    await asyncio.to_thread(storage.lab.cut, HOST)

        monkeypatch.setitem(perform.STEPS, step, cut)
        answer = await asyncio.wait_for(provision(far, name), 150)
        monkeypatch.setitem(perform.STEPS, step, genuine)
        await asyncio.to_thread(storage.lab.heal, HOST)
        tried += 1
        said = outcomes(answer)
        print(
            step,
            when,
            kind,
            said,
            [(row.get("code"), row.get("server"), row.get("step")) for row in answer["provisioned"]],
        )
        assert answer["projectName"] == name
        for row in answer["provisioned"]:
            if row["outcome"] == "failed":
                assert row["server"] == HOST
                assert row["code"] in ("driver_unavailable", "timeout"), row
                assert row["nextStep"]
                assert row["step"] in (*STEPS, "check")
        again = await again_until_made(far, name)
        lost += sum(1 for row in again["provisioned"] if row["outcome"] == "failed")
        await check_usable(far, name)
        assert (storage.roles(database), storage.users(database)) == (2, 1)
        state = await history(far, name)
        assert set(values_of(state.current)) == NAMES
        assert set(values_of(state.master)) == NAMES, "the master is whole whatever happened"
        assert await far.world.services.registry.journals.open_runs() == []
    print(f"{tried} cuts tried, {lost} things lost")
    assert lost == 0


async def again_until_made(far: StoreWorld, name: str) -> dict[str, Any]:
    """The same call once the line is back; the dead connection may have to be noticed first."""
    async with asyncio.timeout(60):
        while True:
            answer = await provision(far, name)
            if "failed" not in outcomes(answer).values():
                return answer


async def test_a_server_that_is_away_from_the_beginning_leaves_a_project_without_stores(
    far: StoreWorld, storage: Storage, unique: str
) -> None:
    storage.lab.cut(HOST)
    try:
        answer = await provision(far, unique)
    finally:
        storage.lab.heal(HOST)
    assert outcomes(answer) == {"env": "made", "database": "failed", "redis": "failed"}
    assert {row.get("server") for row in answer["provisioned"]} == {None, HOST}
    assert await far.rows() == []
    assert set(far.variables(unique)) == {"LOG_LEVEL"}
    assert outcomes(await again_until_made(far, unique)) == {"env": "present", "database": "made", "redis": "made"}
    await check_usable(far, unique)
    values = {"DATABASE_URL": "postgres://a", "LOG_LEVEL": "info"}
    kept = await far.world.call("env_set", projectName=unique, environment="production", values=values)
    assert (kept["kept"], kept["changed"]) == (["DATABASE_URL"], ["LOG_LEVEL"]), (
        "protected, although the master lacks it"
    )
