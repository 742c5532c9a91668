"""project_create with wishes: what is refused before anything is made, and what each wish becomes. The data stores
themselves are in tests/e2e."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.operations.context import Event
from codeb_mcp.operations.provisioning import in_a_row
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.registry.store import update
from codeb_mcp.settings import DnsSettings
from tests.unit.operations.world import World, initialised, principal

DIGEST = "sha256:" + "0" * 64
STORAGE = {"host": "127.0.0.1", "role": "database", "connection": "local"}


async def with_server(world: World, **more: Any) -> None:
    """An inventory with these database servers."""
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": {"storage": STORAGE, **more}})


async def made(world: World) -> list[str]:
    """The projects that there are."""
    return sorted((await load_ssot(world.services.store)).get("projects", {}))


def rows(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Wish, environment and outcome."""
    return [(row["wish"], row["environment"], row["outcome"]) for row in answer["provisioned"]]


@pytest.mark.parametrize(
    ("code", "field", "wishes"),
    [
        ("conflict", "", {"redis": {"placement": "own"}}),
        ("conflict", "", {"database": {"port": 5450, "environments": ["production"]}}),
        ("not_found", "", {"database": {"server": "nowhere"}}),
        ("invalid_request", "database.environments", {"database": {"environments": ["preview"]}}),
        ("invalid_request", "redis.port", {"redis": {"placement": "own", "port": 6400}}),
        ("invalid_request", "domain", {"domain": "www.example.com", "environments": ["staging"]}),
        ("invalid_request", "env.API_KEY", {"env": {"API_KEY": "changeme"}}),
        ("invalid_request", "env.DATABASE_URL", {"env": {"DATABASE_URL": "postgres://a@b/c"}, "database": True}),
        ("invalid_request", "database.bogus", {"database": {"bogus": 1}}),
        ("invalid_request", "env.PORT", {"env": {"PORT": "80"}}),
        ("conflict", "", {"domain": "preview.codeb.localhost"}),
        ("conflict", "", {"streaming": True}),
    ],
)
async def test_a_wish_that_cannot_be_is_refused_before_anything_is_made(
    world: World, code: str, field: str, wishes: dict[str, Any]
) -> None:
    await with_server(world)
    before = dict(await load_ssot(world.services.store))
    problem = await world.refused(code, "project_create", projectName="worb", **wishes)
    named = [one["field"] for one in problem.detail.get("fields", [])]
    assert not field or any(one == field or one.startswith(field.partition(".")[0]) for one in named), named
    assert await load_ssot(world.services.store) == before
    assert await made(world) == []
    assert not (world.services.settings.root / "env-backup" / "worb").exists()


@pytest.mark.parametrize("servers", [{}, {"storage": STORAGE, "other": STORAGE}])
async def test_a_store_needs_a_server_that_is_certain(world: World, servers: dict[str, Any]) -> None:
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": servers})
    code = "invalid_request" if servers else "conflict"
    problem = await world.refused(code, "project_create", projectName="worb", database=True)
    assert "server" in problem.message
    assert await made(world) == []


async def test_a_streaming_server_of_another_team_is_known_beforehand(world: World) -> None:
    await with_server(world, live={"host": "127.0.0.1", "role": "streaming", "connection": "local"})
    await world.project("shop")
    await world.call("team_create", teamId="acme", name="Acme")
    entry = {"name": "shop", "server": "live", "state": "ready"}

    def stream(doc: Any) -> Any:
        shop = {**doc["projects"]["shop"], "streaming": {"production": entry}}
        return {**doc, "projects": {**doc["projects"], "shop": shop}}

    await update(world.services.store, "ssot", stream)
    stranger = principal(Role.OWNER, "acme")
    problem = await world.refused("conflict", "project_create", stranger, projectName="worb", streaming=True)
    assert "serves another team" in problem.message
    assert await made(world) == ["shop"]
    answer = await world.call("project_create", projectName="worb", environments=["production"], streaming=True)
    assert rows(answer) == [("streaming", "production", "failed")], "the own team is let in; there is no Centrifugo"
    assert answer["provisioned"][0]["nextStep"].endswith("it goes on where this one stopped.")


async def test_ports_that_are_taken_or_used_up_are_known_beforehand(tmp_path: Path) -> None:
    world = await initialised(tmp_path / "codeb")
    try:
        settings = world.settings
        databases = settings.databases.model_copy(update={"redis_image": f"redis@{DIGEST}"})
        world.settings = settings.model_copy(update={"databases": databases})
        world.restart()
        await with_server(world)
        own = {"placement": "own", "environments": ["production"]}
        await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "usedPorts": list(range(6380, 6500))})
        for wish in (own, {**own, "port": 6400}, {**own, "port": 6379}, {**own, "port": 80}):
            await world.refused("conflict", "project_create", projectName="worb", redis=wish)
        assert await made(world) == []
    finally:
        await world.close()


@pytest.mark.parametrize(
    ("scopes", "wishes", "allowed"),
    [
        (("tool:project_create",), {}, True),
        (("tool:project_create",), {"env": {"A": "1"}}, False),
        (("tool:project_create", "tool:env_set"), {"env": {"A": "1"}}, True),
        (("tool:project_create", "tool:env_set"), {"database": True}, False),
        (("tool:project_create",), {"redis": True}, False),
        (("tool:project_create",), {"streaming": True}, False),
        (("tool:project_create",), {"domain": "www.example.com"}, False),
        (("tool:project_create", "tool:domain_setup"), {"domain": "www.example.com"}, True),
        (("environment:staging",), {"environments": ["staging"], "env": {"A": "1"}}, True),
    ],
)
async def test_each_wish_needs_the_right_to_what_it_does(
    world: World, scopes: tuple[str, ...], wishes: dict[str, Any], *, allowed: bool
) -> None:
    await with_server(world)
    caller = principal(Role.MEMBER, "default", *scopes)
    if allowed:
        await world.call("project_create", caller, projectName="worb", **wishes)
    else:
        await world.refused("forbidden", "project_create", caller, projectName="worb", **wishes)
    assert await made(world) == (["worb"] if allowed else [])


async def test_a_key_of_one_environment_gets_no_domain_in_another(world: World) -> None:
    await world.project("worb", "production", "staging")
    staging = principal(Role.OWNER, "default", "environment:staging")
    wish = {"projectName": "worb", "environments": ["staging"], "domain": "www.example.com"}
    await world.refused("forbidden", "project_create", staging, **wish)
    assert (await world.call("domain_list"))["data"] == []


async def test_first_variables_are_the_master_and_a_repeat_adds_only_what_is_missing(world: World) -> None:
    wish: dict[str, Any] = {"projectName": "worb", "env": {"LOG_LEVEL": "debug", "GREETING": "it's $5\nand more"}}
    answer = await world.call("project_create", **wish)
    assert rows(answer) == [("env", "production", "made"), ("env", "staging", "made")]
    history = world.services.registry.env
    first = await history.snapshot("worb", "production")
    assert first.master == first.current
    assert b"GREETING" in (first.master or b"")
    again = await world.call("project_create", **wish)
    assert rows(again) == [("env", "production", "present"), ("env", "staging", "present")]
    assert (await history.snapshot("worb", "production")).entries == first.entries
    await world.call("env_set", projectName="worb", environment="production", values={"LOG_LEVEL": "info"})
    more = await world.call("project_create", projectName="worb", env={**wish["env"], "NEW": "1"})
    assert "1 of 3 names added" in more["provisioned"][0]["message"]
    found = await history.snapshot("worb", "production")
    assert b"LOG_LEVEL=info" in (found.current or b"")
    assert b"NEW=1" in (found.current or b"")
    assert found.master == first.master


async def test_values_of_first_variables_are_in_no_answer_and_no_trail(world: World) -> None:
    secret = "s3cr3t-of-the-app-" + "x" * 20
    other = "nothing-that-looks-like-one"
    answer = await world.call("project_create", projectName="worb", env={"APP_SECRET": secret, "GREETING": other})
    told = f"{answer} {await world.call('audit_list', limit=50)}"
    assert secret not in told
    assert other not in told
    kept = [
        path
        for path in world.services.settings.root.rglob("*")
        if path.is_file() and any(text.encode() in path.read_bytes() for text in (secret, other))
    ]
    assert {path.relative_to(world.services.settings.root).parts[0] for path in kept} == {"env-backup", "projects"}


async def test_a_domain_is_set_up_with_its_records_and_a_repeat_changes_nothing(tmp_path: Path) -> None:
    world = await initialised(tmp_path / "codeb")
    try:
        zones = {"example.com": {"provider": "cloudflare", "secret_file": "/nowhere"}}
        dns = DnsSettings.model_validate({"addresses": ["192.0.2.10"], "zones": zones})
        world.settings = world.settings.model_copy(update={"dns": dns})
        world.dns.zones = set(zones)
        world.restart()
        answer = await world.call("project_create", projectName="worb", domain="www.example.com")
        assert rows(answer) == [("domain", "production", "made")]
        assert "www.example.com" in answer["provisioned"][0]["message"]
        before = dict(await load_ssot(world.services.store))
        again = await world.call("project_create", projectName="worb", domain="www.example.com")
        assert rows(again) == [("domain", "production", "present")]
        assert again["created"] is False
        assert await load_ssot(world.services.store) == before
        assert [row["domain"] for row in (await world.call("domain_list"))["data"]] == ["www.example.com"]
    finally:
        await world.close()


async def test_a_domain_of_somebody_else_makes_no_project(world: World) -> None:
    await world.project("shop", domain="shop.example.com")
    await world.call(
        "domain_setup", projectName="shop", environment="production", domain="www.example.com", provider="manual"
    )
    for domain in ("shop.example.com", "www.example.com"):
        await world.refused("conflict", "project_create", projectName="worb", domain=domain)
    assert await made(world) == ["shop"]


async def test_a_wish_that_fails_leaves_the_project_and_says_what_to_do(world: World) -> None:
    databases = world.settings.databases.model_copy(update={"postgres_socket": "/nowhere/.s.PGSQL.5432"})
    world.settings = world.settings.model_copy(update={"databases": databases})
    world.restart()
    await with_server(world)
    answer = await world.call(
        "project_create", projectName="worb", environments=["production"], database=True, env={"A": "1"}
    )
    assert rows(answer) == [("env", "production", "made"), ("database", "production", "failed")]
    failed = answer["provisioned"][1]
    assert failed["code"] in ("driver_unavailable", "driver_refused")
    assert failed["server"] == "storage"
    assert "same call again" in failed["nextStep"]
    assert failed["nextStep"] in answer["nextSteps"][0]
    assert await made(world) == ["worb"]
    assert (await world.call("database_list"))["data"] == [], "nothing was reserved for a server that does not answer"
    state = await world.services.registry.env.snapshot("worb", "production")
    assert b"DATABASE_URL" not in (state.current or b""), "no variable leads to what is not there"


def test_the_steps_of_runs_in_a_row_are_counted_on() -> None:
    heard: list[tuple[int, int]] = []
    tell = in_a_row(lambda event: heard.append((event.position, event.total)))
    for run in ("op_1", "op_2", "op_3"):
        for position in (1, 2):
            tell(Event(run, "make", "started", position, 2))
    assert heard == [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)]
