"""Namespaces of environments in a real Centrifugo behind a real sshd, as real clients see them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.centrifugo import SECRET_NAMES, initial_text
from codeb_mcp.model.errors import CodebError, Conflict, DriverUnavailable
from codeb_mcp.operations.streaming_state import way_to
from tests.e2e.streaming_world import LIVE, CutAt, StreamingWorld, centrifugo_on, installation, listened, token
from tests.faces.payloads import texts
from tests.lab.centrifugo import VERSION, LabCentrifugo
from tests.lab.hosts import LabHosts
from tests.unit.operations.mortality import run_until, take_up
from tests.unit.operations.world import principal

MOMENTS = 40
pytestmark = pytest.mark.real("hosts", "centrifugo")


@pytest.fixture(scope="module")
def server(hosts: LabHosts) -> Iterator[LabCentrifugo]:
    with centrifugo_on(hosts) as made:
        yield made


@pytest.fixture
async def far(server: LabCentrifugo, tmp_path: Path) -> AsyncIterator[StreamingWorld]:
    async with installation(server, tmp_path / "codeb") as made:
        yield made


def address(server: LabCentrifugo) -> str:
    """Where a client of the test process connects."""
    return f"ws://{server.lab.address(server.host)}:{server.port}/connection/websocket"


def publisher(values: dict[str, str], channel: str, data: Any) -> Callable[[], Awaitable[None]]:
    """Publishes as an app does that has these variables."""

    async def publish() -> None:
        headers = {"X-API-Key": values["CENTRIFUGO_API_KEY"]}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.post(
                f"{values['CENTRIFUGO_API_URL']}/publish", json={"channel": channel, "data": data}, headers=headers
            ) as answer,
        ):
            assert (await answer.json()) == {"result": {}}

    return publish


async def as_client(
    server: LabCentrifugo,
    values: dict[str, str],
    channel: str,
    secret: str | None = None,
    signed_for: str | None = None,
) -> Any:
    """What a client gets to hear whose tokens are signed with the secret, that of the variables if none is given."""
    signer = secret or values["CENTRIFUGO_TOKEN_SECRET"]
    subscription = token(signer, channel=signed_for or channel)
    publish = publisher(values, channel, {"n": 42})
    return await listened(address(server), token(signer), channel, subscription, publish)


async def test_a_client_with_a_token_of_the_variables_hears_what_the_app_publishes(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    await far.world.project(unique)
    said = await far.setup(unique)
    assert (said["namespace"], said["server"], said["url"]) == (
        unique, "streaming", "wss://ws.codeb.test/connection/websocket",
    )  # fmt: skip
    values = far.variables(unique)
    assert sorted(values) == sorted(said["variables"])
    assert await as_client(server, values, f"{unique}:news") == {
        "connection": "connected", "subscription": "subscribed", "publication": {"n": 42},
    }  # fmt: skip
    # With a token for another channel, or for one of a namespace that is not there, nothing is heard.
    other = await as_client(server, values, f"{unique}:news", signed_for=f"{unique}:other")
    assert other == {"connection": "connected", "subscription": "disconnected 3500"}
    nowhere = await as_client(server, values, "nowhere:news")
    assert nowhere == {"connection": "connected", "subscription": "unsubscribed 102"}


async def test_the_first_configuration_passes_centrifugos_strict_check(server: LabCentrifugo) -> None:
    path = f"{server.folder}/first.json"
    text = initial_text(allowed_origins=["https://*.example.com"])
    server.lab.exec(server.host, "tee", path, stdin=text.encode())
    done = server.lab.exec(server.host, server.program, "checkconfig", "-s", "-c", path, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_again_changes_nothing_at_all(far: StreamingWorld, server: LabCentrifugo, unique: str) -> None:
    await far.world.project(unique)
    first = await far.setup(unique)
    before = (server.read_config(), server.log(), far.variables(unique), await far.entry(unique))
    again = await far.setup(unique)
    assert (again["unchanged"], again["version"]) == (True, first["version"])
    after = (server.read_config(), server.log(), far.variables(unique), await far.entry(unique))
    assert (after[0], after[2:]) == (before[0], before[2:])
    assert after[1].count("reloading configuration") == before[1].count("reloading configuration")


async def test_a_token_of_another_server_is_not_let_in(
    far: StreamingWorld, server: LabCentrifugo, hosts: LabHosts, tmp_path: Path, unique: str
) -> None:
    await far.world.project(unique)
    await far.setup(unique)
    with centrifugo_on(hosts) as second:
        async with installation(second, tmp_path / "other") as other:
            await other.world.project(unique)
            await other.setup(unique)
            theirs = other.variables(unique)["CENTRIFUGO_TOKEN_SECRET"]
    said = await as_client(server, far.variables(unique), f"{unique}:news", theirs)
    assert said == {"connection": "disconnected 3500"}


async def test_what_is_said_of_namespaces_on_one_server_is_so_and_the_answer_warns(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    """Documented in docs/decisions/0011: the open-source server has one secret, so a namespace does not protect from projects
    that share it. Should this fail some day, the documents and the warning are to be corrected."""
    for name in (f"{unique}-a", f"{unique}-b"):
        await far.world.project(name)
        said = await far.setup(name)
    assert [one for one in said["warnings"] if "they also open its" in one]
    theirs, values = far.variables(f"{unique}-a")["CENTRIFUGO_TOKEN_SECRET"], far.variables(f"{unique}-b")
    assert theirs == values["CENTRIFUGO_TOKEN_SECRET"]
    assert (await as_client(server, values, f"{unique}-b:news", theirs))["publication"] == {"n": 42}


async def test_another_team_gets_no_secret_of_the_server_unless_the_operator_says_so(
    far: StreamingWorld, server: LabCentrifugo, tmp_path: Path, unique: str
) -> None:
    acme = principal(Role.OWNER, "acme")
    await far.world.project(unique)
    await far.setup(unique)
    await far.world.project(f"{unique}-acme", caller=acme)
    before = server.read_config()
    wanted = {"projectName": f"{unique}-acme", **LIVE}
    problem = await far.world.refused("conflict", "streaming_setup", acme, **wanted)
    assert "another team" in problem.message
    assert unique not in problem.message + problem.hint
    assert (server.read_config(), far.variables(f"{unique}-acme")) == (before, {})
    shared = far.world.settings.streaming.model_copy(update={"share_between_teams": True})
    far.world.settings = far.world.settings.model_copy(update={"streaming": shared})
    far.world.restart()
    assert (await far.world.call("streaming_setup", acme, **wanted))["namespace"] == f"{unique}-acme"


async def test_other_namespaces_and_what_nobody_here_knows_survive(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    config = server.read_config()
    config |= {
        "log": {"level": "info"},
        "somebodys_own": {"deep": [1, {"x": "\u00fc \u2028"}], "n": 12345678901234567890},
    }
    config["channel"]["namespaces"] += [
        {"name": f"{unique}-own", "history_size": 10, "history_ttl": "60s"},
        {"name": f"{unique}-x"},
    ]
    server.write_config(config)
    await far.world.project(unique)
    await far.setup(unique)
    config["channel"]["namespaces"].append({"name": unique})
    config["client"]["allowed_origins"].append(f"http://{unique}.codeb.localhost")
    assert server.read_config() == config
    # One that was there already is used as it is, and is still there in the end.
    await far.world.project(f"{unique}-own")
    await far.setup(f"{unique}-own")
    await far.remove(f"{unique}-own")
    config["client"]["allowed_origins"] = server.read_config()["client"]["allowed_origins"]
    assert server.read_config() == config
    await far.remove(unique)
    assert unique not in far.namespaces()
    assert f"{unique}-own" in far.namespaces()
    assert f"http://{unique}.codeb.localhost" not in server.read_config()["client"]["allowed_origins"]


async def test_many_at_once_lose_nothing(far: StreamingWorld, server: LabCentrifugo, unique: str) -> None:
    names = [f"{unique}-{number}" for number in range(6)]
    for name in names:
        await far.world.project(name)
    results = await asyncio.gather(*(far.setup(name) for name in names))
    assert [one["status"] for one in results] == ["succeeded"] * 6
    assert set(names) <= set(far.namespaces())
    for name in names:
        assert (await as_client(server, far.variables(name), f"{name}:news"))["subscription"] == "subscribed"


async def test_an_operators_edit_in_between_is_kept(far: StreamingWorld, server: LabCentrifugo, unique: str) -> None:
    way = await way_to(far.world.services, "streaming")
    before = await way.read()
    server.write_config({**server.read_config(), "edited": unique})
    with pytest.raises(Conflict, match="streaming"):
        await way.replace(before, before.text.replace("{", "{ ", 1))
    assert server.read_config()["edited"] == unique


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
async def test_what_came_over_a_line_that_was_cut_is_not_put_in_place(
    far: StreamingWorld, server: LabCentrifugo, part: float
) -> None:
    class Short:
        """A server that gets the beginning of what it is sent."""

        key = "streaming"

        async def run(self, argv: list[str], *, stdin: bytes = b"", **more: Any) -> Any:
            return await real.run(argv, stdin=stdin[: int(len(stdin) * part)], **more)

    way = await way_to(far.world.services, "streaming")
    before, real = await way.read(), way._host
    way._host = Short()  # type: ignore[assignment]
    config = server.read_config()
    with pytest.raises(DriverUnavailable, match="streaming"):
        await way.replace(before, before.text.replace("{", "{  ", 1))
    assert server.read_config() == config
    assert b".codeb-new" not in server.lab.exec(server.host, "ls", "-A", server.folder).stdout


async def test_owner_and_mode_stay(far: StreamingWorld, server: LabCentrifugo, unique: str) -> None:
    def rights() -> bytes:
        return server.lab.exec(server.host, "stat", "-c", "%a %U %G", server.config).stdout

    before = rights()
    await far.world.project(unique)
    await far.setup(unique)
    assert (rights(), before) == (before, b"640 codeb codeb\n")
    server.lab.exec(server.host, "chown", "root:root", server.config)
    server.lab.exec(server.host, "chmod", "644", server.config)
    try:
        problem = await far.world.refused(
            "driver_refused", "streaming_remove", projectName=unique, **LIVE, confirm=unique
        )
        assert "owner" in problem.message
        assert (rights(), unique in far.namespaces()) == (b"644 root root\n", True)
    finally:
        server.write_config(server.read_config())
    await far.remove(unique)


async def test_what_centrifugos_own_check_refuses_is_never_put_in_place(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    good = server.read_config()
    bad = json.loads(json.dumps(good))
    bad["channel"]["namespaces"].append({"name": f"{unique}-bad", "history_size": 10})
    server.write_config(bad)
    await far.world.project(unique)
    try:
        problem = await far.world.refused("driver_refused", "streaming_setup", projectName=unique, **LIVE)
        assert "streaming" in problem.message
        assert "history ttl" in problem.message
        assert server.read_config() == bad
        assert far.variables(unique) == {}
    finally:
        server.write_config(good)
    assert (await far.setup(unique))["status"] == "succeeded"


@pytest.mark.parametrize("text", ["", "{", "[]", "{\"channel\": []}", "\ufeff{}", "[" * 100_000, "{\"a\":1,\"A\":2}",
                                  "{\"channel\": {\"namespaces\": {}}}", "{\"channel\": {\"namespaces\": [1]}}"],
                         ids=lambda text: text[:30])  # fmt: skip
async def test_a_configuration_that_cannot_be_understood_is_left_alone(
    far: StreamingWorld, server: LabCentrifugo, unique: str, text: str
) -> None:
    good = server.read_config()
    server.write_config(text)
    await far.world.project(unique)
    try:
        problem = await far.world.refused("driver_refused", "streaming_setup", projectName=unique, **LIVE)
        assert "streaming" in problem.message
        assert server.lab.exec(server.host, "cat", server.config).stdout.decode() == text
        assert await far.entry(unique) is None or far.variables(unique) == {}
    finally:
        server.write_config(good)


async def test_what_the_running_server_does_not_take_is_put_back(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    """It was started with another file than the one that the settings name."""
    other = f"{server.folder}/other.json"
    server.lab.exec(server.host, "cp", "-p", server.config, other)
    before = server.lab.exec(server.host, "cat", other).stdout
    moved = far.world.settings.streaming.model_copy(update={"config": other})
    far.world.settings = far.world.settings.model_copy(update={"streaming": moved})
    far.world.restart()
    await far.world.project(unique)
    problem = await far.world.refused("driver_refused", "streaming_setup", projectName=unique, **LIVE)
    assert "did not take" in problem.message
    assert server.lab.exec(server.host, "cat", other).stdout == before
    assert far.variables(unique) == {}
    assert server.lab.exec(server.host, "sh", "-c", 'ls -A "$0"', server.folder).stdout.count(b".codeb-new") == 0


async def test_no_secret_gets_out_of_the_variables(far: StreamingWorld, server: LabCentrifugo, unique: str) -> None:
    await far.world.project(unique)
    said = [await far.setup(unique), await far.setup(unique)]
    said.append(await far.world.call("server_check", serverKey="streaming"))
    server.stop()
    problem = await far.world.refused("driver_unavailable", "streaming_setup", projectName=unique, **LIVE)
    server.run()
    said += [problem.as_dict(), await far.remove(unique)]
    for secret in server.secrets().values():
        assert secret not in json.dumps(said)
        assert far.files_with(secret) == []
        assert secret not in str(far.world.logged.entries)
        assert secret not in server.log()


async def test_secrets_that_were_changed_on_the_server_are_handed_out_anew(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    await far.world.project(unique)
    await far.setup(unique)
    former = far.variables(unique)
    server.new_secrets()
    problem = await far.world.refused("driver_refused", "streaming_setup", projectName=unique, **LIVE)
    assert "does not take the key" in problem.message
    assert far.variables(unique) == former
    server.stop()
    server.run()
    again = await far.setup(unique)
    assert again.get("unchanged") is None
    values = far.variables(unique)
    assert values["CENTRIFUGO_TOKEN_SECRET"] != former["CENTRIFUGO_TOKEN_SECRET"]
    assert (await as_client(server, values, f"{unique}:news"))["publication"] == {"n": 42}


async def test_variables_that_lead_elsewhere_are_not_replaced_unless_told(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    await far.world.project(unique)
    elsewhere = {"CENTRIFUGO_URL": "wss://elsewhere.test/connection/websocket", "OTHER": "kept"}
    await far.world.call("env_set", projectName=unique, **LIVE, values=elsewhere)
    before = server.read_config()
    problem = await far.world.refused("conflict", "streaming_setup", projectName=unique, **LIVE)
    assert "CENTRIFUGO_URL" in problem.message
    assert (server.read_config(), far.variables(unique)) == (before, elsewhere)
    await far.setup(unique, overwriteVariables=True)
    assert far.variables(unique)["OTHER"] == "kept"
    assert far.variables(unique)["CENTRIFUGO_NAMESPACE"] == unique


async def test_a_removal_leaves_nothing_and_clients_hear_nothing_more(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    await far.world.project(unique)
    await far.world.call("env_set", projectName=unique, **LIVE, values={"OTHER": "kept"})
    config = server.read_config()
    await far.setup(unique)
    values = far.variables(unique)
    await far.world.refused("invalid_request", "streaming_remove", projectName=unique, **LIVE, confirm="other")
    said = await far.remove(unique)
    assert sorted(said["variables"]) == sorted(name for name in values if name != "OTHER")
    assert (server.read_config(), far.variables(unique)) == (config, {"OTHER": "kept"})
    assert await far.entry(unique) is None
    assert (await as_client(server, values, f"{unique}:news"))["subscription"] == "unsubscribed 102"
    await far.world.refused("not_found", "streaming_remove", projectName=unique, **LIVE, confirm=unique)


@pytest.mark.parametrize("tool", ["streaming_setup", "streaming_remove"])
async def test_a_process_that_dies_at_any_moment_leaves_before_or_after(
    far: StreamingWorld, server: LabCentrifugo, unique: str, tool: str
) -> None:
    more = {"confirm": unique} if tool == "streaming_remove" else {}
    await far.world.project(unique)
    moments = 0
    for at in range(MOMENTS):
        if tool == "streaming_remove":
            await far.setup(unique)
        elif await far.entry(unique) is not None:
            await far.remove(unique)
        stopped = await run_until(far.world, at, tool, projectName=unique, **LIVE, **more)
        there = unique in far.namespaces()
        await take_up(far.world)
        if stopped is None:
            break
        moments += 1
        entry, values = await far.entry(unique), far.variables(unique)
        assert there or unique in far.namespaces() or entry is None or tool == "streaming_setup", stopped.where
        if entry is not None:
            assert (entry["state"], unique in far.namespaces()) == ("ready", True), stopped.where
            assert (await as_client(server, values, f"{unique}:news"))["publication"] == {"n": 42}, stopped.where
        else:
            assert (values, unique in far.namespaces()) == ({}, False), stopped.where
        assert await far.world.services.registry.journals.open_runs() == []
    assert moments >= 6
    print(f"{tool}: stopped at {moments} moments, lost 0")


async def test_a_centrifugo_that_is_killed_at_each_call_leaves_before_or_after(
    hosts: LabHosts, tmp_path: Path, unique: str
) -> None:
    with centrifugo_on(hosts, "spare", alone=True) as server:
        cuts: list[CutAt] = []

        def wrapped(real: Any) -> CutAt:
            cuts.append(CutAt(server, real))
            return cuts[0]

        async with installation(server, tmp_path / "codeb", wrapped) as far:
            await far.world.project(unique)
            cuts[0].killing = True
            codes = []
            before = server.read_config()
            for number in range(1, 60):
                cuts[0].calls, cuts[0].at_call = 0, number
                codes.append(await _code(far.setup(unique)))
                reached, cuts[0].at_call = cuts[0].calls >= number, None
                assert codes[-1] in ("ok", "driver_unavailable", "driver_refused"), codes
                now = server.read_config()
                assert now == before or unique in far.namespaces()
                if not reached:
                    break
                server.stop()
                server.run()
                await take_up(far.world)
                assert (await far.setup(unique))["status"] == "succeeded"
                await far.remove(unique)
                assert server.read_config() == before
            assert len(codes) >= 10
            print(f"killed at {len(codes) - 1} calls, 0 torn, 0 lost")


async def test_hostile_texts_in_a_configuration_are_carried_over_and_do_nothing(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    canary, victim = f"/tmp/canary-{unique}", f"/tmp/victim-{unique}"
    server.lab.exec(server.host, "sh", "-c", 'echo whole > "$1"; chmod 666 "$1"', "x", victim)
    good = server.read_config()
    told = [one.replace("{canary}", canary).replace("{victim}", victim) for one in texts()]
    hostile = [one for one in told if not any("\ud800" <= letter <= "\udfff" for letter in one)]
    assert len(hostile) >= 400
    keys = {f"x{number}": {one: one} for number, one in enumerate(hostile)}
    server.write_config({**good, "somebodys_own": keys})
    try:
        await far.world.project(unique)
        await far.setup(unique)
        assert server.read_config()["somebodys_own"] == keys
        assert unique in far.namespaces()
        way = await way_to(far.world.services, "streaming")
        opened = (await way.read()).secrets
        for one in hostile:
            with contextlib.suppress(CodebError):
                await way.has_namespace(one, opened)
        await far.remove(unique)
    finally:
        server.write_config(good)
    assert server.lab.exec(server.host, "cat", victim).stdout == b"whole\n"
    assert server.lab.exec(server.host, "ls", canary, check=False).returncode != 0
    print(f"{len(hostile)} hostile texts, no effect")


@pytest.mark.parametrize("after", [False, True], ids=["before the effect", "after the effect"])
async def test_a_line_cut_at_each_call_names_the_host_and_the_same_call_goes_on(
    hosts: LabHosts, tmp_path: Path, unique: str, *, after: bool
) -> None:
    with centrifugo_on(hosts, "spare", alone=True) as server:
        cuts: list[CutAt] = []

        def wrapped(real: Any) -> CutAt:
            cuts.append(CutAt(server, real))
            return cuts[0]

        async with installation(server, tmp_path / "codeb", wrapped) as far:
            await far.world.project(unique)
            cut, tried = cuts[0], 0
            cut.after = after
            for number in range(1, 60):
                cut.calls, cut.at_call = 0, number
                before = server.read_config()
                code = await _code(far.setup(unique))
                if code == "ok":
                    break
                assert code in ("driver_unavailable", "timeout"), code
                tried += 1
                server.lab.heal(server.host)
                now = server.read_config()
                assert now == before or unique in far.namespaces()
                cut.at_call = None
                await take_up(far.world)
                assert (await far.setup(unique))["status"] == "succeeded"
                await far.remove(unique)
                assert server.read_config() == before
            assert tried >= 10
            print(f"{tried} calls cut {'after' if after else 'before'} their effect, 0 torn, 0 lost")


async def _code(work: Awaitable[Any]) -> str:
    try:
        await work
    except CodebError as error:
        return error.code if "streaming" in error.message else f"names no host: {error.message}"
    return "ok"


async def test_a_full_disk_leaves_the_former_configuration(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    folder = f"{server.folder}/small"
    config = server.read_config()
    server.lab.exec(server.host, "install", "-d", "-o", "codeb", "-g", "codeb", folder)
    server.lab.exec(server.host, "mount", "-t", "tmpfs", "-o", "size=16k,uid=2000,gid=2000", "tmpfs", folder)
    try:
        server.lab.exec(server.host, "cp", "-p", server.config, f"{folder}/config.json")
        server.lab.exec(server.host, "sh", "-c", f"head -c 1M /dev/zero > {folder}/filler", check=False)
        moved = far.world.settings.streaming.model_copy(update={"config": f"{folder}/config.json"})
        far.world.settings = far.world.settings.model_copy(update={"streaming": moved})
        far.world.restart()
        await far.world.project(unique)
        problem = await far.world.refused("insufficient_storage", "streaming_setup", projectName=unique, **LIVE)
        assert "streaming" in problem.message
        assert json.loads(server.lab.exec(server.host, "cat", f"{folder}/config.json").stdout) == config
        assert sorted(server.lab.exec(server.host, "ls", "-A", folder).stdout.split()) == [b"config.json", b"filler"]
    finally:
        server.lab.exec(server.host, "umount", folder, check=False)


async def test_server_check_tells_what_is_wrong_with_a_streaming_server(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    async def found() -> dict[str, tuple[str, str]]:
        said = await far.world.call("server_check", serverKey="streaming")
        return {
            one["check"].removeprefix("centrifugo_"): (one["status"], one["message"])
            for one in said["checks"]
            if one["check"].startswith("centrifugo")
        }

    async def changed(**sections: Any) -> dict[str, tuple[str, str]]:
        server.write_config({**good, **sections})
        server.stop()
        server.run()
        return await found()

    await far.world.project(unique)
    await far.setup(unique)
    good = server.read_config()
    well = await found()
    assert {status for status, _ in well.values()} == {"ok"}, well
    assert VERSION in well["api"][1]
    try:
        bad = await changed(client={"insecure": True, "allowed_origins": ["*"]})
        assert bad["options"][0] == "fail"
        assert "client.insecure" in bad["options"][1]
        missing = await changed(channel={"namespaces": []})
        assert (missing["namespaces"][0], unique in missing["namespaces"][1]) == ("fail", True)
        server.new_secrets()
        assert (await found())["api"][0] == "fail"
        own = server.secrets()[SECRET_NAMES[1]]
        await changed()
        server.new_secrets()  # the API's key stays, the tokens' secret is another one
        server.lab.exec(
            server.host, "sed", "-i", f"s/^{SECRET_NAMES[1]}=.*/{SECRET_NAMES[1]}={own}/", server.settings["secrets"]
        )
        assert (await found())["tokens"][0] == "fail"
        server.stop()
        assert (await found())["centrifugo"][0] == "fail"
    finally:
        server.write_config(good)
        server.stop()
        server.run()
    server.write_config({**good, "health": {"enabled": False}})
    server.stop()
    try:
        server.run(wait=False)
        async with asyncio.timeout(20):
            while "off" not in (await found())["centrifugo"][1]:
                pass
    finally:
        server.stop()
        server.write_config(good)
        server.run()


async def test_a_project_that_is_deleted_leaves_no_namespace_and_a_server_that_is_away_keeps_none_alive(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    config = server.read_config()
    for name in (unique, f"{unique}-b"):
        await far.world.project(name)
        await far.setup(name)
    said = await far.world.call("project_delete", projectName=unique, confirm=unique)
    assert (said["status"], said["warnings"]) == ("succeeded", [])
    assert unique not in far.namespaces()
    server.stop()
    try:
        said = await far.world.call("project_delete", projectName=f"{unique}-b", confirm=f"{unique}-b")
    finally:
        server.run()
    assert said["status"] == "succeeded"
    assert [one for one in said["warnings"] if "streaming" in one], said["warnings"]
    server.write_config(config)
    server.signal("HUP")


async def test_a_project_is_made_with_its_namespaces_and_again_changes_nothing(
    far: StreamingWorld, server: LabCentrifugo, unique: str
) -> None:
    wanted = {"projectName": unique, "environments": ["production", "staging"], "streaming": True}
    await far.world.call("project_create", **wanted)
    assert {unique, f"{unique}-staging"} <= set(far.namespaces())
    for environment, namespace in (("production", unique), ("staging", f"{unique}-staging")):
        values = far.variables(unique, environment)
        assert (await as_client(server, values, f"{namespace}:news"))["publication"] == {"n": 42}
    before = (server.read_config(), far.variables(unique), far.variables(unique, "staging"))
    await far.world.call("project_create", **wanted)
    assert (server.read_config(), far.variables(unique), far.variables(unique, "staging")) == before
