"""workflow_init and workflow_scan: what they answer, to whom, and that they keep nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.dockerfiles import AppType
from codeb_mcp.model.errors import Conflict, Forbidden, InvalidRequest
from codeb_mcp.operations.catalog import ANSWER_LIMIT, CATALOG, load_all
from codeb_mcp.operations.invoke import validated
from tests.faces.payloads import others, texts
from tests.faces.world import World, open_world

SECRET = "ghp_" + "a1B2" * 9
GOOD: dict[str, Any] = {"projectName": "shop", "type": "nodejs"}


async def init(world: World, team: str = "acme", role: str = "member", **params: Any) -> dict[str, Any]:
    """The answer of workflow_init."""
    return await world.call("workflow_init", world.keys[team][role], **{**GOOD, **params})


async def scan(world: World, files: Any, **params: Any) -> dict[str, Any]:
    """The answer of workflow_scan."""
    return await world.call("workflow_scan", world.keys["acme"]["viewer"], files=files, **params)


async def test_the_answer_has_the_files_the_ports_and_what_is_to_be_done(shop: World) -> None:
    answer = await init(shop, database=True, redis=True)
    files = {file["path"]: file["content"] for file in answer["files"]}
    assert list(files) == [
        ".github/workflows/deploy.yml",
        ".github/workflows/preview.yml",
        "Dockerfile",
        ".dockerignore",
    ]
    assert answer["githubActionsWorkflow"] == files[".github/workflows/deploy.yml"]
    assert answer["dockerfile"] == files["Dockerfile"]
    assert answer["projectExists"] is True
    assert answer["ports"]["production"] == {"blue": 4000, "green": 4001}
    assert {row["name"] for row in answer["secrets"]} == {
        "CODEB_URL",
        "CODEB_API_KEY",
        "NPMRC",
        "DATABASE_URL",
        "REDIS_URL",
    }
    assert not [step for step in answer["nextSteps"] if "project_create" in step]
    said = " ".join(answer["nextSteps"])
    assert "token_create" in said
    assert [name for name in ("project_create", "project_update", "token_create") if name not in CATALOG] == []


async def test_a_project_that_is_not_there_yet_is_named_and_not_made(world: World) -> None:
    answer = await init(world, projectName="new-one")
    assert (answer["projectExists"], answer["ports"], answer["containerPort"]) == (False, {}, 8080)
    assert answer["nextSteps"][0] == "Create the project: project_create with projectName new-one."
    assert (await world.call("project_list", world.keys["acme"]["viewer"]))["data"] == []


async def test_a_strangers_project_and_none_at_all_are_the_same(shop: World) -> None:
    there = await init(shop, "other")
    nowhere = await init(shop, "other", projectName="ghost")
    assert json.dumps(there).replace("shop", "ghost") == json.dumps(nowhere)


async def test_the_projects_port_is_used_and_another_one_is_pointed_out(shop: World) -> None:
    await shop.call("project_update", shop.keys["acme"]["member"], projectName="shop", containerPort=3000)
    assert "EXPOSE 3000" in (await init(shop))["dockerfile"]
    answer = await init(shop, containerPort=4000)
    assert "EXPOSE 4000" in answer["dockerfile"]
    assert any("project_update with containerPort 4000" in step for step in answer["nextSteps"])


@pytest.mark.parametrize("kind", AppType)
async def test_every_answer_fits_and_is_the_same_each_time(world: World, kind: AppType) -> None:
    choices: list[dict[str, Any]] = [
        {"environment": environment, "runner": runner, "autoPromote": flag, "database": flag, "redis": flag}
        for environment, runner, flag in itertools.product(
            ("staging", "production", "preview"), ("self-hosted", "github-hosted"), (False, True)
        )
    ]
    for choice in choices:
        params = {"projectName": "a" * 40, "type": kind.value, "branch": "b" * 100, "containerPort": 65535, **choice}
        one, two = await init(world, **params), await init(world, **params)
        assert one == two
        assert len(json.dumps(one)) <= ANSWER_LIMIT, choice
        assert any("shorter name" in step for step in one["nextSteps"])


async def test_a_repository_for_pull_requests_only(world: World) -> None:
    answer = await init(world, environment="preview", previews=False)
    paths = [file["path"] for file in answer["files"]]
    assert paths == [".github/workflows/preview.yml", "Dockerfile", ".dockerignore"]
    assert answer["githubActionsWorkflow"] == answer["files"][0]["content"]
    without = await init(world, previews=False)
    assert ".github/workflows/preview.yml" not in [file["path"] for file in without["files"]]


async def test_who_may(world: World) -> None:
    with pytest.raises(Forbidden):
        await init(world, role="viewer")
    assert (await scan(world, {"Dockerfile": "FROM a:1"}))["filesRead"] == 1
    scoped = await world.key("acme", Role.MEMBER, scopes=("project:other-*",))
    with pytest.raises(Forbidden):
        await world.call("workflow_init", scoped, **GOOD)


def test_no_field_takes_a_hostile_value() -> None:
    load_all()
    free = {"projectName", "branch"}
    for field in ("projectName", "type", "environment", "runner", "branch", "autoPromote", "database", "containerPort"):
        for value in [*texts(), *others()]:
            try:
                request = validated(CATALOG["workflow_init"], {**GOOD, field: value})
            except InvalidRequest:
                continue
            got = request.model_dump(by_alias=True)[field]
            assert field not in free or all(char.isalnum() or char in "._/-" for char in got), (field, value)
            assert not isinstance(got, str) or got.isascii()


async def test_hostile_names_that_fit_are_harmless_in_every_file(world: World) -> None:
    for name in ("on", "no", "1e3", "null", "true", "0x1f", "default", "root", "a--b", "con"):
        for branch in ("a/b", "v1.2", "no", "1e3", "_x"):
            answer = await init(world, projectName=name, branch=branch)
            again = await scan(world, {file["path"]: file["content"] for file in answer["files"]})
            assert again["errors"] == again["warned"] == 0, again


async def test_a_scan_tells_what_to_correct_worst_first(shop: World) -> None:
    files = {"Dockerfile": "FROM node\nEXPOSE 3000\nCMD node server.js\n", "index.js": "listen(3000)"}
    answer = await scan(shop, files, projectName="shop")
    rules = [row["rule"] for row in answer["issues"]]
    assert rules[:2] == ["runs-as-root", "shell-form"]
    assert {"latest-tag", "port-differs", "no-health", "port-ignored", "no-dockerignore", "no-deploy-workflow"} <= set(
        rules
    )
    assert answer["total"] == len(rules)
    assert CATALOG["workflow_scan"].result.model_validate(answer).exit_code == 17


async def test_secrets_in_files_are_found_and_kept_nowhere(world: World, tmp_path: Path) -> None:
    answer = await scan(world, {"config.js": f"const key = '{SECRET}'"})
    assert [row["line"] for row in answer["issues"] if row["rule"] == "secret-in-file"] == [1]
    assert SECRET not in json.dumps(answer)
    await world.services.trail.flush()
    rows, _ = await world.services.registry.audit.page(team="acme", limit=10, offset=0)
    assert rows[0]["tool"] == "workflow_scan"
    assert SECRET not in json.dumps(rows)
    for path in world.services.settings.root.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    assert SECRET not in world.log.getvalue()


async def test_an_answer_about_very_bad_files_still_fits(world: World) -> None:
    steps = "".join(f"      - uses: {'x' * 150}/{number}@main\n" for number in range(500))
    text = f"on: push\njobs:\n  a:\n    steps:\n{steps}"
    answer = await scan(world, {f".github/workflows/{'é' * 150}{number}.yml": text for number in range(2)})
    assert answer["total"] > len(answer["issues"])
    assert len(json.dumps(answer, ensure_ascii=False)) <= ANSWER_LIMIT


TOO_MUCH: list[Any] = [
    {},
    {f"{number}.js": "" for number in range(41)},
    {"a.js": "x" * 200_001},
    {"a.js": "é" * 100_001},
    {"": "x"},
    {"a" * 201: "x"},
    {"a\nb": "x"},
    {"a\u202eb": "x"},
    {"a\x1b[31m": "x"},
    {"a": 1},
    {"a": None},
    {"a": {"b": "c"}},
    ["a"],
    "Dockerfile",
    None,
]


@pytest.mark.parametrize("files", TOO_MUCH, ids=[str(number) for number in range(len(TOO_MUCH))])
async def test_what_does_not_fit_is_refused_by_name(world: World, files: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await scan(world, files)
    assert caught.value.detail["fields"][0]["field"].startswith("files")


async def test_hostile_paths_and_texts_are_answered_as_harmless_lines(world: World) -> None:
    for text in texts()[::3]:
        try:
            answer = await scan(world, {text: text, "Dockerfile": text})
        except InvalidRequest:
            continue
        for row in answer["issues"]:
            assert all(str(value).isprintable() for value in row.values()), row


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    """An installation with two teams."""
    async with open_world(tmp_path / "codeb") as made:
        yield made


@pytest.fixture
async def shop(world: World) -> World:
    """The same with a project of the first team."""
    return await world.with_project()


async def test_a_key_for_previews_makes_previews_and_nothing_else(shop: World) -> None:
    """The scopes that the next steps tell to give the key of pull requests."""
    step = next(step for step in (await init(shop))["nextSteps"] if "key for preview" in step)
    scopes = tuple(step.partition("the scopes ")[2].rstrip(".").split(", "))
    key = await shop.key("acme", Role.MEMBER, scopes=scopes)
    made = await shop.call("preview_create", key, projectName="shop", pullRequest=12)
    child = {"projectName": made["previewProject"], "image": "ghcr.io/acme/shop:v1"}
    assert (await shop.call("deploy", key, **child, environment="preview", autoPromote=True))["promoted"]
    for environment in ("staging", "production"):
        with pytest.raises(Forbidden):
            await shop.call("deploy", key, projectName="shop", environment=environment, image="ghcr.io/acme/shop:v1")
    with pytest.raises(Forbidden):
        await shop.call("project_update", key, projectName="shop", keep=1)
    assert (await shop.call("preview_delete", key, projectName="shop", pullRequest=12))["deleted"]
    staging = await shop.key("acme", Role.MEMBER, scopes=("environment:staging",))
    with pytest.raises(Forbidden):
        await shop.call("preview_create", staging, projectName="shop", pullRequest=12)


# ── with create ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_with_create_the_project_is_made_and_the_same_again_changes_nothing(world: World) -> None:
    wish: dict[str, Any] = {"projectName": "fresh", "create": True, "domain": "www.example.com", "containerPort": 3000}
    answer = await init(world, **wish)
    assert (answer["created"], answer["projectExists"]) == (True, True)
    assert sorted(answer["ports"]) == ["production", "staging"]
    assert [(row["wish"], row["outcome"]) for row in answer["provisioned"]] == [("domain", "made")]
    assert not [step for step in answer["nextSteps"] if "project_create" in step or "project_update" in step]
    again = await init(world, **wish)
    assert (again["created"], again["provisioned"][0]["outcome"]) == (False, "present")
    assert again["files"] == answer["files"]
    assert answer["ports"] == again["ports"]


async def test_create_for_production_alone_makes_production_alone(world: World) -> None:
    answer = await init(world, projectName="fresh", environment="production", create=True)
    assert list(answer["ports"]) == ["production"]


async def test_create_needs_the_rights_of_project_create_and_refuses_before_anything_is_made(world: World) -> None:
    only = await world.key("acme", Role.MEMBER, scopes=("tool:workflow_init",))
    staging = await world.key("acme", Role.MEMBER, scopes=("environment:staging",))
    for key in (only, staging):
        assert (await world.call("workflow_init", key, **GOOD))["projectExists"] is False
        with pytest.raises(Forbidden):
            await world.call("workflow_init", key, **GOOD, create=True)
    with pytest.raises(Conflict):
        await init(world, create=True, database=True)  # the inventory has no server for it
    assert (await world.call("project_list", world.keys["acme"]["viewer"]))["data"] == []


async def test_without_create_the_wishes_are_said_in_the_next_step(world: World) -> None:
    answer = await init(world, projectName="fresh", database=True, streaming=True)
    assert answer["nextSteps"][0].endswith("projectName fresh, database, streaming; or repeat this call with create.")
    assert "created" not in answer
