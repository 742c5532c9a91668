"""Secrets of fifty kinds in arguments and in container logs: none comes out in an answer, a log line, the audit trail, a
journal or any other file of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.operations.catalog import load_all
from tests.faces.canaries import NAMED, SECRETS, SHAPED, cores
from tests.faces.story import LIVE, image
from tests.faces.test_hostile import _put, fields
from tests.faces.test_rights import arguments
from tests.faces.ways import ERAS, in_process, over_http
from tests.faces.world import Served, World

load_all()


def test_there_are_at_least_fifty_kinds() -> None:
    assert len(SECRETS) >= 50
    assert len({core for secret in SECRETS.values() for core in cores(secret)}) >= 50
    assert all(cores(secret) for secret in SECRETS.values())


def _found(text: str, *, where: Any) -> None:
    for kind, secret in SECRETS.items():
        for core in cores(secret):
            assert core not in text, (kind, where)


def is_env(path: Path) -> bool:
    """A live env file, or a version of one."""
    return path.suffix == ".env" or path.name.startswith(".env.")


def _everything_written(world: World) -> str:
    """Logs and all files, but for those that are there to hold variables (mode 0600)."""
    root = world.services.settings.root
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in [one for one in files if is_env(one)]:
        assert path.stat().st_mode & 0o077 == 0, path
    parts = [path.read_text(encoding="utf-8", errors="replace") for path in files if not is_env(path)]
    return "\n".join([world.log.getvalue(), *parts])


async def test_a_secret_in_an_argument_is_neither_answered_nor_kept(served: Served) -> None:
    key = served.world.keys["acme"]["owner"]
    for tool, path in fields():
        for secret in SECRETS.values():
            reply = await served.tool(tool, key, _put(arguments(tool, "acme"), path, secret))
            _found(reply.text, where=(tool, path))
            assert reply.status_code != 500
    await served.world.services.trail.flush()
    _found(_everything_written(served.world), where="files")


@pytest.mark.parametrize("era", ERAS)
async def test_a_secret_in_the_place_of_a_name_is_not_echoed_over_mcp(shop: World, era: str) -> None:
    async with in_process(shop, shop.keys["acme"]["owner"], era) as client:
        for secret in SECRETS.values():
            for call in (
                client.call_tool("slot_status", {secret: "x"}),
                client.call_tool("slot_status", {"projectName": secret}),
                client.call_tool(secret, {}),
                client.read_resource(f"codeb://slots/{secret}/production"),
            ):
                try:
                    answer: Any = (await call).model_dump_json()
                except Exception as error:
                    answer = f"{error} {getattr(error, 'error', '')}"
                _found(answer, where=secret[:12])
    await shop.services.trail.flush()
    _found(_everything_written(shop), where="files")


async def test_a_secret_as_tool_key_or_header_is_not_echoed(served: Served) -> None:
    good = served.world.keys["acme"]["viewer"]
    for secret in SECRETS.values():
        line = secret.replace("\n", " ")
        for reply in (
            await served.tool(secret, good),
            await served.tool("slot_list", line),
            await served.tool("slot_list", good, headers={"X-Correlation-ID": line}),
            await served.http.get("/api/audit", params={"tool": secret, "colour": secret}, headers={"X-API-Key": good}),
            await served.http.get("/api/logs/stream", params={"project": secret}, headers={"X-API-Key": good}),
        ):
            _found(f"{reply.text} {reply.headers}", where=secret[:12])
    await served.world.services.trail.flush()
    _found(_everything_written(served.world), where="files")


async def test_an_unmistakable_secret_is_refused_and_says_where(served: Served) -> None:
    key = served.world.keys["acme"]["owner"]
    await served.tool("deploy", key, image("v2"))
    await served.tool("promote", key, LIVE)
    for secret in SHAPED.values():
        reply = await served.tool("rollback", key, {**LIVE, "reason": f"leaked {secret}"})
        assert reply.status_code == 422
        assert reply.json()["details"][0]["field"] == "reason"


async def test_a_secret_in_free_text_is_masked_before_it_is_kept(served: Served) -> None:
    key = served.world.keys["acme"]["owner"]
    await served.tool("deploy", key, image("v2"))
    await served.tool("promote", key, LIVE)
    reply = await served.tool("rollback", key, {**LIVE, "reason": " ".join(NAMED.values())[:500]})
    assert reply.status_code == 200
    await served.world.services.trail.flush()
    _found(_everything_written(served.world), where="files")


@pytest.mark.parametrize("era", ERAS)
async def test_secrets_in_container_logs_are_masked(served: Served, era: str) -> None:
    container = served.world.engine.containers["shop-production-blue"]
    for kind, secret in SECRETS.items():
        if "\n" not in secret:
            container.say(f"{kind} {secret} end")
            container.say(f"connecting with {secret}, retrying")
    key = served.world.keys["acme"]["viewer"]
    asked = {**LIVE, "tail": 1000}
    reply = await served.tool("logs_get", key, asked)
    assert len(reply.json()["result"]["lines"]) > 50
    _found(reply.text, where="api")
    async with over_http(served, key, era) as client:
        _found((await client.call_tool("logs_get", asked)).model_dump_json(), where="mcp")
    seen = []
    async with served.http.stream(
        "GET", "/api/logs/stream?project=shop&environment=production", headers={"X-API-Key": key}
    ) as s:
        async for line in s.aiter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]).get("line", ""))
            if "retrying" in line and len(seen) > 90:
                break
    _found("\n".join(seen), where="stream")


async def test_what_a_container_says_in_a_failure_is_masked(served: Served) -> None:
    for number, secret in enumerate(SECRETS.values()):
        served.world.engine.publish(f"ghcr.io/acme/shop:bad{number}", f"bad{number}", HEALTH="fail", APP_VERSION=secret)
    key = served.world.keys["acme"]["member"]
    await served.tool(
        "project_update", key, {"projectName": "shop", "healthCheck": {"deadlineSeconds": 1, "intervalSeconds": 0.5}}
    )
    for number in range(0, len(SECRETS), 10):
        reply = await served.tool("deploy", key, image(f"bad{number}"))
        assert reply.status_code == 424
        _found(reply.text, where=number)
    listed = await served.tool("operation_list", key, {})
    for row in listed.json()["data"]:
        _found((await served.tool("operation_get", key, {"operationId": row["operationId"]})).text, where=row)
    _found(served.world.log.getvalue(), where="log")


async def test_keys_are_shown_once_and_kept_as_hashes_only(world: World, tmp_path: Path) -> None:
    owner = world.keys["acme"]["owner"]
    made = await world.call("token_create", owner, name="ci", role="member")
    invited = await world.call("member_invite", owner, name="Mia")
    for text in (made["token"]["key"], invited["apiKey"]):
        assert text.startswith("codeb_acme_")
        for tool in ("token_list", "member_list", "audit_list"):
            assert text not in json.dumps(await world.call(tool, owner))
        await world.services.trail.flush()
        assert text not in _everything_written(world)
