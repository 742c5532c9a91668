"""PostgreSQL databases of environments on a real server behind a real sshd: whose they are, who gets in, what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from codeb_mcp.drivers.postgres import PostgresStore, first_sql
from codeb_mcp.model.errors import CodebError, InsufficientStorage
from codeb_mcp.operations import databases
from codeb_mcp.registry.env_history import EnvHistories
from tests.e2e.store_world import HOST, StoreWorld, cluster, installation, settings_of
from tests.faces.payloads import others, texts
from tests.lab.hosts import LabHosts
from tests.lab.stores import LabPostgres
from tests.unit.operations.mortality import run_until, take_up
from tests.unit.operations.world import bounded

pytestmark = pytest.mark.real("hosts", "postgres")
LIVE = {"environment": "production", "kind": "postgres"}
MOMENTS = 40


@pytest.fixture(scope="module")
def postgres(hosts: LabHosts) -> Iterator[LabPostgres]:
    with cluster(hosts) as made:
        yield made


@pytest.fixture
async def far(hosts: LabHosts, postgres: LabPostgres, tmp_path: Path) -> AsyncIterator[StoreWorld]:
    assert databases.__all__
    async with installation(hosts, tmp_path / "codeb", **settings_of(postgres)) as made:
        yield made


async def ask(url: str, sql: str) -> Any:
    """The first value of what a client with exactly this URL gets to hear."""
    link = await asyncpg.connect(url, ssl=False, timeout=10, passfile="/nonexistent")
    try:
        return await link.fetchval(sql, timeout=10)
    finally:
        await link.close(timeout=5)


async def refused(url: str) -> str:
    """How the server turns a client away."""
    with pytest.raises(asyncpg.PostgresError) as caught:
        await ask(url, "SELECT 1")
    return type(caught.value).__name__


async def test_a_client_with_the_url_of_the_variables_owns_its_database_and_nothing_else(
    far: StoreWorld, postgres: LabPostgres, unique: str
) -> None:
    await far.world.project(unique, "production", "staging")
    said = await far.create(unique)
    assert (said["status"], said["name"], said["server"], said["port"]) == ("succeeded", unique, HOST, postgres.port)
    assert [one for one in said["warnings"] if "Backup server" not in one] == []
    values = far.variables(unique)
    assert sorted(values) == sorted(said["variables"])
    assert await ask(values["DATABASE_URL"], "SELECT current_database() || ' ' || current_user") == f"{unique} {unique}"
    await ask(values["DATABASE_URL"], "CREATE TABLE t (n int)")
    rights = f"SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolconnlimit FROM pg_roles WHERE rolname = '{unique}'"
    assert postgres.sql(rights) == "f|f|f|f|f|20"
    assert (
        postgres.sql(f"SELECT rolpassword LIKE 'SCRAM-SHA-256$4096:%' FROM pg_authid WHERE rolname = '{unique}'") == "t"
    )
    entry = (await far.ssot())["projects"][unique]
    assert entry["database"] == {"name": unique, "server": HOST}
    assert entry["databases"]["production"]["postgres"]["state"] == "ready"
    staging = await far.create(unique, environment="staging")
    assert staging["name"] == f"{unique}_staging"
    assert (await far.ssot())["projects"][unique]["database"] == {"name": unique, "server": HOST}
    assert [row["state"] for row in await far.rows()] == ["ready", "ready"]


async def test_two_projects_cannot_see_each_others_data(far: StoreWorld, unique: str) -> None:
    urls = []
    for name in (f"{unique}-a", f"{unique}-b"):
        await far.world.project(name)
        await far.create(name)
        urls.append(far.variables(name)["DATABASE_URL"])
    await ask(urls[0], "CREATE TABLE secrets AS SELECT 42 AS n")
    theirs = urls[1].rpartition("/")[0] + "/" + urls[0].rpartition("/")[2]
    assert await refused(theirs) == "InsufficientPrivilegeError"
    with pytest.raises(asyncpg.PostgresError):
        await ask(urls[1], f'SET ROLE "{unique}_a"')
    with pytest.raises(asyncpg.PostgresError):
        await ask(urls[1], f'GRANT "{unique}_a" TO "{unique}_b"')
    with pytest.raises(asyncpg.PostgresError):
        await ask(urls[1], f'ALTER ROLE "{unique}_b" SUPERUSER')


async def test_the_password_stands_in_the_variables_and_nowhere_else(
    far: StoreWorld, postgres: LabPostgres, unique: str
) -> None:
    await far.world.project(unique)
    answers = [await far.create(unique)]
    former = far.variables(unique)["POSTGRES_PASSWORD"]
    answers.append(await far.rotate(unique))
    password = far.variables(unique)["POSTGRES_PASSWORD"]
    answers.append(await far.world.call("operation_get", operationId=answers[0]["operationId"]))
    answers.append(await far.world.call("database_list"))
    assert password != former
    assert len(password) >= 40
    for secret in (password, former):
        assert far.files_with(secret) == []
        assert secret not in postgres.log()
        assert secret not in repr(answers)
    verifier = postgres.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{unique}'")
    assert far.files_with(verifier) == []
    assert verifier in postgres.log(), "what the server got is not what was looked for"


async def test_the_same_again_changes_nothing(far: StoreWorld, postgres: LabPostgres, unique: str) -> None:
    await far.world.project(unique)
    first = await far.create(unique)
    before, values = await far.ssot(), far.variables(unique)
    hashed = postgres.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{unique}'")
    again = await far.create(unique)
    assert again["unchanged"] is True
    assert again["name"] == first["name"]
    assert (await far.ssot(), far.variables(unique)) == (before, values)
    assert postgres.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{unique}'") == hashed
    await far.world.refused("conflict", "database_create", projectName=unique, **LIVE, placement="own")


async def test_after_a_rotation_only_the_new_password_opens(far: StoreWorld, unique: str) -> None:
    await far.world.project(unique)
    await far.create(unique)
    former = far.variables(unique)
    said = await far.rotate(unique)
    now = far.variables(unique)
    assert await refused(former["DATABASE_URL"]) == "InvalidPasswordError"
    assert await ask(now["DATABASE_URL"], "SELECT 1") == 1
    assert {name for name in now if now[name] != former[name]} == {"DATABASE_URL", "POSTGRES_PASSWORD"}
    assert (
        said["version"]
        == (await far.world.call("env_backup_list", projectName=unique, environment="production"))["data"][0]["version"]
    )


async def test_a_deletion_waits_for_no_client_to_be_there_and_puts_the_data_aside(
    far: StoreWorld, postgres: LabPostgres, unique: str
) -> None:
    await far.world.project(unique)
    await far.world.call("env_set", projectName=unique, environment="production", values={"OTHER": "stays"})
    await far.create(unique)
    url = far.variables(unique)["DATABASE_URL"]
    await ask(url, "CREATE TABLE kept AS SELECT 42 AS n")
    link = await asyncpg.connect(url, ssl=False, passfile="/nonexistent")
    problem = await far.world.refused("conflict", "database_delete", projectName=unique, **LIVE, confirm=unique)
    assert problem.detail["connections"] == 1
    assert await link.fetchval("SELECT n FROM kept") == 42
    await far.world.refused("invalid_request", "database_delete", projectName=unique, **LIVE, confirm="other")
    said = await far.delete(unique, force=True)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await link.fetchval("SELECT 1")
    link.terminate()
    assert far.variables(unique) == {"OTHER": "stays"}
    assert await far.rows() == []
    assert "database" not in (await far.ssot())["projects"][unique]
    assert postgres.sql("SELECT n FROM kept", database=said["aside"]) == "42"
    assert await refused(url) in ("InvalidPasswordError", "InvalidAuthorizationSpecificationError")
    locked = f"SELECT rolcanlogin, rolpassword IS NULL FROM pg_authid WHERE rolname = '{said['aside']}'"
    assert postgres.sql(locked) == "f|t"
    await far.create(unique)
    assert await ask(far.variables(unique)["DATABASE_URL"], "SELECT to_regclass('kept') IS NULL") is True


CALLS: dict[str, dict[str, Any]] = {
    "database_create": {}, "database_rotate": {}, "database_delete": {"confirm": True},
}  # fmt: skip


@pytest.mark.parametrize("tool", CALLS)
async def test_a_run_that_lost_its_process_at_any_moment_ends_well_when_it_is_taken_up_or_repeated(
    far: StoreWorld, postgres: LabPostgres, unique: str, tool: str
) -> None:
    moments = 0
    for at in range(MOMENTS):
        name = f"{unique}-{at}"
        await far.world.project(name)
        if tool != "database_create":
            await far.create(name)
        more = {"confirm": name} if CALLS[tool] else {}
        stopped = await run_until(far.world, at, tool, projectName=name, **LIVE, **more)
        await take_up(far.world)
        if stopped is None:
            break
        moments += 1
        states = {row["projectName"]: row["state"] for row in await far.rows()}
        if at % 2 and not (
            tool == "database_delete" and name not in states
        ):  # every other one is repeated by its caller
            await far.world.call(tool, projectName=name, **LIVE, **more)
        elif tool == "database_create" and name not in states:
            continue  # it never began
        states = {row["projectName"]: row["state"] for row in await far.rows()}
        gone = postgres.sql(f"SELECT count(*) FROM pg_database WHERE datname = '{name.replace('-', '_')}'") == "0"
        if tool == "database_delete" and name not in states:
            assert gone, stopped.where
            assert far.variables(name) == {}, stopped.where
        else:
            assert states[name] == "ready", stopped.where
            assert await ask(far.variables(name)["DATABASE_URL"], "SELECT 1") == 1, stopped.where
        assert await far.world.services.registry.journals.open_runs() == []
    assert moments >= (6 if tool == "database_rotate" else 10)
    print(f"{tool}: stopped at {moments} moments, lost 0")


async def test_a_server_that_is_away_is_named_and_nothing_is_reserved(
    far: StoreWorld, postgres: LabPostgres, unique: str
) -> None:
    await far.world.project(unique)
    before = await far.ssot()
    postgres.stop()
    try:
        problem = await far.world.refused("driver_unavailable", "database_create", projectName=unique, **LIVE)
    finally:
        postgres.run()
    assert problem.detail["server"] == HOST
    assert HOST in problem.message
    assert (await far.ssot())["projects"] == before["projects"]
    assert far.variables(unique) == {}
    assert (await far.create(unique))["status"] == "succeeded"


async def test_a_rotation_that_cannot_be_done_leaves_the_former_password(
    far: StoreWorld, postgres: LabPostgres, unique: str
) -> None:
    await far.world.project(unique)
    await far.create(unique)
    live = far.root / f"projects/{unique}/.env.production"
    former = live.read_text(encoding="utf-8")
    url = far.variables(unique)["DATABASE_URL"]
    live.write_text(former + "BY_HAND=1\n", encoding="utf-8")
    await far.world.refused("conflict", "database_rotate", projectName=unique, **LIVE)
    live.write_text(former, encoding="utf-8")
    assert await ask(url, "SELECT 1") == 1
    postgres.stop()
    try:
        await far.world.refused("driver_unavailable", "database_rotate", projectName=unique, **LIVE)
    finally:
        postgres.run()
    assert await ask(url, "SELECT 1") == 1


@pytest.mark.parametrize("role", ["missing", "weak"])
async def test_a_role_without_the_rights_is_told_the_sql_to_run(
    hosts: LabHosts, postgres: LabPostgres, tmp_path: Path, unique: str, role: str
) -> None:
    settings = settings_of(postgres)
    if role == "missing":
        settings["postgres_role"] = f"{unique}_admin"
        wanted = first_sql(f"{unique}_admin")
    else:
        postgres.sql("ALTER ROLE codeb NOCREATEDB")
        wanted = 'ALTER ROLE "codeb" CREATEROLE CREATEDB'
    try:
        async with installation(hosts, tmp_path / "codeb", **settings) as far:
            await far.world.project(unique)
            problem = await far.world.refused("driver_refused", "database_create", projectName=unique, **LIVE)
            assert wanted in problem.hint, problem.hint
            assert await far.rows() == []
    finally:
        postgres.sql("ALTER ROLE codeb CREATEROLE CREATEDB")


async def test_what_is_not_ours_is_never_touched(far: StoreWorld, postgres: LabPostgres, unique: str) -> None:
    await far.world.project(unique)
    postgres.sql(f'CREATE DATABASE "{unique}"')
    problem = await far.world.refused("conflict", "database_create", projectName=unique, **LIVE)
    assert "not ours" in problem.message
    postgres.sql(f'DROP DATABASE "{unique}"')
    await far.world.call(
        "env_set", projectName=unique, environment="production", values={"DATABASE_URL": "postgresql://a:b@db.test/c"}
    )
    await far.world.refused("conflict", "database_create", projectName=unique, **LIVE)
    assert await far.rows() == []
    assert far.variables(unique) == {"DATABASE_URL": "postgresql://a:b@db.test/c"}
    await far.create(unique, overwriteVariables=True)
    assert await ask(far.variables(unique)["DATABASE_URL"], "SELECT 1") == 1


@pytest.mark.parametrize("tool", ["database_create", "database_rotate"])
async def test_a_process_that_dies_between_the_server_and_the_variables_leaves_no_password_that_does_not_fit(
    far: StoreWorld, unique: str, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.world.project(unique)
    if tool == "database_rotate":
        await far.create(unique)
    set_password, reached = PostgresStore.set_password, asyncio.Event()

    async def then_dies(self: PostgresStore, *words: Any) -> None:
        await set_password(self, *words)
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(PostgresStore, "set_password", then_dies)
    call = asyncio.create_task(far.world.call(tool, projectName=unique, **LIVE))
    await bounded(reached.wait())
    monkeypatch.setattr(PostgresStore, "set_password", set_password)
    await take_up(far.world)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await ask(far.variables(unique)["DATABASE_URL"], "SELECT 1") == 1
    assert [row["state"] for row in await far.rows()] == ["ready"]
    assert await far.world.services.registry.journals.open_runs() == []


async def test_variables_that_cannot_be_written_bring_the_former_password_back(
    far: StoreWorld, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.world.project(unique)
    await far.create(unique)
    url = far.variables(unique)["DATABASE_URL"]

    async def full(*words: Any) -> None:
        raise InsufficientStorage("the disk is full", hint="Free some space.")

    with monkeypatch.context() as patch:
        patch.setattr(EnvHistories, "change", full)
        await far.world.refused("insufficient_storage", "database_rotate", projectName=unique, **LIVE)
    assert far.variables(unique)["DATABASE_URL"] == url
    assert await ask(url, "SELECT 1") == 1


async def test_a_project_with_data_is_not_deleted(far: StoreWorld, unique: str) -> None:
    await far.world.project(unique)
    await far.create(unique)
    await far.world.refused("conflict", "project_delete", projectName=unique, confirm=unique)
    assert await ask(far.variables(unique)["DATABASE_URL"], "SELECT 1") == 1
    await far.delete(unique)
    assert (await far.world.call("project_delete", projectName=unique, confirm=unique))["status"] == "succeeded"


FIELDS = ("projectName", "environment", "kind", "placement", "server", "port", "confirm")


async def test_hostile_words_in_any_field_do_nothing_on_the_server(
    far: StoreWorld, postgres: LabPostgres, tmp_path: Path, unique: str
) -> None:
    await far.world.project(unique)
    canary, victim = f"/tmp/{unique}-canary", tmp_path / "victim"
    victim.write_text("untouched", encoding="utf-8")
    words = [text.replace("{canary}", canary).replace("{victim}", str(victim)) for text in texts()]
    assert len(words) >= 400
    catalog = "SELECT (SELECT string_agg(datname, ',' ORDER BY 1) FROM pg_database), (SELECT string_agg(rolname, ',' ORDER BY 1) FROM pg_roles)"
    before, ssot, tried = postgres.sql(catalog), await far.ssot(), 0
    for field in FIELDS:
        tool = "database_delete" if field == "confirm" else "database_create"
        for word in [*words, *(one for one in others() if one is not None)]:
            given: dict[str, Any] = {"projectName": unique, **LIVE} | (
                {"confirm": unique} if tool == "database_delete" else {}
            )
            with pytest.raises(CodebError) as caught:
                await far.world.call(tool, **given | {field: word})
            assert 400 <= caught.value.http_status < 500, (field, word, caught.value.as_dict())
            tried += 1
    assert tried >= 400 * len(FIELDS)
    assert (postgres.sql(catalog), await far.ssot()) == (before, ssot)
    assert victim.read_text(encoding="utf-8") == "untouched"
    assert not Path(canary).exists()
    assert far.lab.exec(HOST, "ls", canary, check=False).returncode != 0
    print(f"hostile words tried: {tried}, effects: 0")
