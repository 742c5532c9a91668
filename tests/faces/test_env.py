"""Values of variables: no face, file, log or journal shows them; an admin may see them on the machine, and that is kept."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.operations.catalog import load_all
from tests.faces.canaries import SECRETS, cores
from tests.faces.cli_world import CliWorld
from tests.faces.story import LIVE, image
from tests.faces.test_hostile import Canaries, _asking, _judge
from tests.faces.ways import ERAS, in_process
from tests.faces.world import Served, World, open_world

load_all()
VALUES = {f"CANARY_{number}": secret for number, secret in enumerate(SECRETS.values())}


def _without_env_files(world: World) -> str:
    """Everything that the installation ever wrote or said, except where variables are kept."""
    root = world.services.settings.root
    parts = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".env" and not path.name.startswith(".env.")
    ]
    return "\n".join([world.log.getvalue(), *parts])


def _require_clean(text: str, where: Any) -> None:
    for kind, secret in SECRETS.items():
        for core in cores(secret):
            assert core not in text, (kind, where)


async def test_fifty_kinds_of_values_are_in_no_answer_log_audit_journal_or_exception(served: Served) -> None:
    key = served.world.keys["acme"]["owner"]
    assert len(VALUES) >= 50
    answers = []

    async def ask(tool: str, **more: Any) -> int:
        reply = await served.tool(tool, key, {**LIVE, **more})
        answers.append(f"{tool} {reply.text} {reply.headers}")
        assert reply.status_code != 500, reply.text
        return reply.status_code

    assert await ask("env_set", values=VALUES, allowPlaceholders=True) == 200
    assert await ask("env_set", values={**VALUES, "BAD-NAME": "x"}) == 422
    assert await ask("env_set", values={"A": [*VALUES.values()]}) == 422
    assert await ask("env_set", values=[*VALUES.values()]) == 422
    assert await ask("env_set", values={value: "x" for value in VALUES.values()}) == 422
    assert await ask("env_set", values=VALUES, ifVersion="none") == 409
    assert await ask("env_set", values={"A": VALUES["CANARY_0"] + "${X}"}) == 422
    rules = {name: {"pattern": "never", "required": True} for name in VALUES}
    assert (await served.tool("project_update", key, {"projectName": "shop", "envContract": rules})).status_code == 200
    assert await ask("deploy", image=image("v2")["image"]) == 409
    await served.tool("project_update", key, {"projectName": "shop", "envContract": {}})
    assert await ask("deploy", image=image("v2")["image"]) == 200
    for tool, more in (
        ("env_get", {"limit": 200}), ("env_scan", {}), ("env_diff", {"contract": True}), ("env_diff", {"against": "staging"}),
        ("env_backup_list", {}), ("env_verify", {}), ("env_sync", {}), ("env_unset", {"names": ["CANARY_1"]}),
        ("env_restore", {"to": "master"}), ("slot_status", {}), ("audit_list", {}), ("operation_list", {}), ("promote", {}),
    ):  # fmt: skip
        await ask(tool, **more)
    live = served.world.services.settings.projects / "shop/.env.production"
    live.write_bytes(live.read_bytes() + b"BY_HAND=canary\n'broken " + SECRETS["postgres url"].encode() + b"\n")
    assert await ask("env_set", values={"B": "2"}) == 409
    assert await ask("env_sync") == 409
    await served.world.services.trail.flush()
    _require_clean("\n".join(answers), "answers")
    _require_clean(_without_env_files(served.world), "files and log")
    audit = await served.world.call("audit_list", key, tool="env_set", limit=1, offset=0)
    assert audit["total"] >= 6


@pytest.mark.parametrize("era", ERAS)
async def test_values_are_in_no_answer_of_mcp(shop: World, era: str) -> None:
    async with in_process(shop, shop.keys["acme"]["owner"], era) as client:
        for tool, more in (("env_set", {"values": VALUES, "allowPlaceholders": True}), ("env_get", {"limit": 200})):
            _require_clean((await client.call_tool(tool, {**LIVE, **more})).model_dump_json(), tool)
        for uri in ("codeb://registry/ssot", "codeb://slots/shop/production"):
            _require_clean((await client.read_resource(uri)).model_dump_json(), uri)


async def test_the_audit_trail_keeps_the_names_and_who_it_was(served: Served) -> None:
    key = served.world.keys["acme"]["member"]
    await served.tool("env_set", key, {**LIVE, "values": {"A": "first-canary", "B": "second-canary"}})
    [row] = (await served.world.call("audit_list", key, tool="env_set"))["data"]
    assert row["arguments"]["values"] == {"A": "***", "B": "***"}
    assert (row["actor"], row["outcome"]) == ("acme member", "ok")


async def test_names_rules_and_versions_let_no_hostile_value_through(tmp_path: Path) -> None:
    from tests.faces.payloads import others, texts

    canaries = Canaries(tmp_path / "outside")
    payloads: list[Any] = [*(canaries.fill(text) for text in texts()), *others()]
    assert len(payloads) >= 400
    async with open_world(tmp_path / "codeb") as world:
        await world.with_project()
        ask = _asking(world)
        await ask(json.dumps({"tool": "env_set", "params": {**LIVE, "values": {"A": "1"}}}).encode())
        for payload in payloads:
            rule: list[dict[str, Any]] = [
                {name: payload} for name in ("pattern", "description", "environments", "required")
            ]
            contracts: list[Any] = [payload, {"A": payload}, *({"A": one} for one in rule)]
            contracts += [{payload: {"required": False}}] if isinstance(payload, str) else []
            calls = [("project_update", {"projectName": "shop", "envContract": one}) for one in contracts]
            values: list[Any] = [payload, {"A": payload}, *([{payload: "x"}] if isinstance(payload, str) else [])]
            calls += [("env_set", {**LIVE, "values": one, "allowPlaceholders": True}) for one in values]
            for tool, params in calls:
                status, answer = await ask(json.dumps({"tool": tool, "params": params}).encode())
                _judge((tool, params), status, answer)
        canaries.check(world)
        assert "operation crashed" not in world.log.getvalue()
        verified = await world.call("env_verify", world.keys["acme"]["viewer"], **LIVE)
        assert verified["ok"], verified


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CliWorld:
    """A command line with a project that has variables."""
    made = CliWorld(tmp_path / "codeb", capsys).initialised().with_project()
    source = tmp_path / "shop.env"
    source.write_text("API_KEY='clear canary'\nMODE=dev\n", encoding="utf-8")
    assert made("env", "set", "shop", "--environment", "production", "--values", str(source)).code == 0
    return made


def test_an_admin_on_the_machine_sees_values_and_leaves_a_trace(cli: CliWorld) -> None:
    said = cli("env", "reveal", "shop", "production")
    assert (said.code, said.out) == (0, "API_KEY='clear canary'\nMODE=dev\n")
    assert cli("env", "reveal", "shop", "production", "MODE").out == "MODE=dev\n"
    assert cli("env", "reveal", "shop", "production", "API_KEY", "--json").json == {"API_KEY": "clear canary"}
    rows = cli("audit", "list", "--tool", "env_reveal", "--json").json["data"]
    assert [row["arguments"]["names"] for row in rows] == [["API_KEY"], ["MODE"], []]
    assert "clear canary" not in json.dumps(rows)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.MEMBER])
def test_who_is_no_admin_sees_nothing_and_leaves_a_trace_as_well(cli: CliWorld, role: Role) -> None:
    key = cli("token", "create", "--name", "ci", "--role", role.value, "--json").json["token"]["key"]
    said = cli("env", "reveal", "shop", "production", environ={"CODEB_API_KEY": key})
    assert said.code == 12
    assert "canary" not in said.out + said.err
    [row] = cli("audit", "list", "--tool", "env_reveal", "--json").json["data"]
    assert row["outcome"] == "forbidden"


def test_an_admin_of_another_team_or_with_narrow_scopes_sees_nothing(cli: CliWorld) -> None:
    other = cli("team", "create", "acme", "--name", "Acme", "--json").json["ownerKey"]
    assert cli("env", "reveal", "shop", "production", environ={"CODEB_API_KEY": other}).code == 13
    for scope in ("project:blog", "environment:staging", "tool:env_get", "source:192.0.2.0/24"):
        made = cli("token", "create", "--name", "x", "--role", "admin", "--scopes", scope, "--json").json
        said = cli("env", "reveal", "shop", "production", environ={"CODEB_API_KEY": made["token"]["key"]})
        assert said.code == 12, scope
        assert "canary" not in said.out + said.err


def test_no_tool_of_the_catalog_shows_values() -> None:
    assert [name for name in load_all() if "reveal" in name] == []


@pytest.mark.parametrize(
    "words", [("shop", "production", "no such"), ("../x", "production"), ("shop", "production", "NOT_THERE")]
)
def test_reveal_refuses_what_is_not_there(cli: CliWorld, words: tuple[str, ...]) -> None:
    said = cli("env", "reveal", *words)
    assert said.code in (10, 13)
    assert "canary" not in said.out + said.err


def test_values_are_read_from_stdin_json_and_files_only(
    cli: CliWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("env", "set", "shop", "--environment", "production", "--values")

    def stdin(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    stdin(b'{"MODE": "from json"}')
    assert cli(*where, "-").code == 0
    stdin(b"ODD=\"a\\nb 'c' $d\"\n")
    assert cli(*where, "-").code == 0
    assert cli("env", "reveal", "shop", "production", "MODE", "ODD", "--json").json == {
        "MODE": "from json",
        "ODD": "a\nb 'c' $d",
    }
    broken = tmp_path / "broken.env"
    for data in (b"A=1\n'oops secret-canary\n", b"A=\xff", b"{oops secret-canary"):
        broken.write_bytes(data)
        said = cli(*where, str(broken))
        assert said.code == 10
        assert "secret-canary" not in said.out + said.err
    assert cli(*where, str(tmp_path / "nowhere")).code == 10
    assert cli(*where, "API_KEY=typed").code == 10
