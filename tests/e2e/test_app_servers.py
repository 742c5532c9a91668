"""One environment on two app servers behind SSH, each with its own engine, registry and proxy; and what happens to it when the
line to one of them is cut at any step."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp import app
from codeb_mcp.model.errors import CodebError, Conflict
from codeb_mcp.model.machine import Action
from codeb_mcp.operations import perform
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.invoke import Call, invoke
from codeb_mcp.registry.store import update
from tests.lab.engine import Engine
from tests.lab.far_servers import PUBLIC, FarServers, far_servers
from tests.lab.hammer import Hammer
from tests.lab.hosts import LabHosts
from tests.lab.installation import Installation, installed
from tests.lab.ports import FreePorts
from tests.unit.operations.world import OWNER

pytestmark = pytest.mark.real("hosts", "docker", "registry", "caddy", "caddy-debian")

FIRST, SECOND = "app", "spare"
SECONDS = 180.0


@pytest.fixture(scope="module")
def far(hosts: LabHosts) -> Iterator[FarServers]:
    """Two app servers."""
    with far_servers(hosts, FIRST, SECOND) as made:
        yield made


@pytest.fixture
def placed(far: FarServers, engine: Engine, free_ports: FreePorts) -> Iterator[Installation]:
    """An installation whose inventory has them."""
    with installed(engine, free_ports(), free_ports(), extra=far.toml()) as made:
        far.tidy()
        for name in far.names:
            far.lab.exec(name, "install", "-d", "-m", "755", "-o", "codeb", "/srv/codeb-flags")
        yield made


@asynccontextmanager
async def at_work(placed: Installation, far: FarServers, project: str) -> AsyncIterator[Services]:
    """The installation in this process, with the project placed on both servers."""
    async with app.opened(placed.settings) as services:
        entries = far.entries()
        await update(services.store, "ssot", lambda doc: {**(doc or {}), "servers": entries})
        await call(services, "project_create", projectName=project, environments=["production"])
        done = await call(services, "project_place", **live(project), servers=list(far.names))
        assert (done["changed"], done["warnings"]) == (True, [])
        yield services
        await call(services, "project_delete", projectName=project, confirm=project)


async def call(services: Services, tool: str, **arguments: Any) -> dict[str, Any]:
    """One call as the owner."""
    async with asyncio.timeout(SECONDS):
        return (await invoke(services, Call(tool, arguments, OWNER))).body


def live(project: str) -> dict[str, Any]:
    """The environment of these tests."""
    return {"projectName": project, "environment": "production"}


def visits(far: FarServers, project: str) -> list[tuple[int, str, str]]:
    """What visitors get at each server."""
    return [far.ask(name, f"{project}.apps.test") for name in far.names]


async def test_two_servers_over_ssh_are_deployed_switched_and_rolled_back_under_load(
    placed: Installation, far: FarServers, unique: str
) -> None:
    first, second = [await far.image(unique, version) for version in ("v1", "v2")]
    async with at_work(placed, far, unique) as services:
        await call(services, "deploy", **live(unique), image=first)
        assert [status for status, _, _ in visits(far, unique)] == [503, 503]
        await call(services, "promote", **live(unique))
        assert visits(far, unique) == [(200, "v1", "blue")] * 2
        loads = [
            Hammer(PUBLIC, f"{unique}.apps.test", careful=True, address=far.lab.address(name)) for name in far.names
        ]
        with loads[0], loads[1]:
            await call(services, "deploy", **live(unique), image=second)
            await call(services, "promote", **live(unique))
            assert visits(far, unique) == [(200, "v2", "green")] * 2
            await call(services, "rollback", **live(unique))
            assert visits(far, unique) == [(200, "v1", "blue")] * 2
        print([f"{load.answered} requests, {load.failed} lost" for load in loads])
        assert [load.lost for load in loads] == [[], []]
        assert [set(load.answers) for load in loads] == [{200}, {200}]
        images = [far.containers(name, unique) for name in far.names]
        assert images[0] == images[1]
        assert sorted(images[0]) == [f"{unique}-production-blue", f"{unique}-production-green"]
        assert placed.containers(unique) == {}, "nothing runs beside the control plane"
        assert (await call(services, "registry_check"))["data"] == []
        health = await call(services, "health_check", **live(unique))
        assert health["status"] == "healthy", health
        lines = (await call(services, "logs_get", **live(unique), server=SECOND))["lines"]
        assert lines


STEPS = (
    ("deploy", "pull_image"),
    ("deploy", "remove_container"),
    ("deploy", "start_container"),
    ("deploy", "check_health"),
    ("deploy", "publish_preview"),
    ("promote", "check_target"),
    ("promote", "check_flags"),
    ("promote", "switch_traffic"),
    ("promote", "verify_public"),
)


CUTS = (
    *(("in", *one) for one in STEPS),
    ("out", "deploy", "start_container"),
    ("out", "promote", "switch_traffic"),
    ("out", "promote", "verify_public"),
)


class Cut:
    """Cuts the line to a server when an action begins, and heals it when told to."""

    def __init__(self, lab: LabHosts, server: str, name: str, direction: str) -> None:
        self._lab, self._server, self._name, self._direction = lab, server, name, direction
        self._former = perform.STEPS[name]
        self.done = False

    async def _step(self, run: perform.Performer, action: Action) -> Mapping[str, Any]:
        if not self.done:
            self.done = True
            self._lab.drop(self._server, 22, direction=self._direction)
        return await self._former(run, action)

    def __enter__(self) -> Cut:
        perform.STEPS[self._name] = self._step
        return self

    def __exit__(self, *_: object) -> None:
        perform.STEPS[self._name] = self._former
        self._lab.undrop(self._server)


async def settled(services: Services) -> None:
    """Every run has ended."""
    async with asyncio.timeout(SECONDS):
        while await services.registry.journals.open_runs():
            await services.runs.resume_all()
            await services.runs.drain()
            await asyncio.sleep(0.2)


async def test_a_line_that_is_cut_at_any_step_leaves_before_or_after_and_the_server_is_named(
    placed: Installation, far: FarServers, unique: str
) -> None:
    versions = [await far.image(unique, f"v{number}") for number in range(len(CUTS) + 2)]
    tried = 0
    async with at_work(placed, far, unique) as services:
        await call(services, "deploy", **live(unique), image=versions.pop())
        await call(services, "promote", **live(unique))
        for direction, kind, name in CUTS:
            if name == "check_flags" and visits(far, unique)[0][2] == "blue":
                # The look at the flags comes before a switch to blue only.
                await call(services, "deploy", **live(unique), image=versions.pop())
                await call(services, "promote", **live(unique))
                await cleaned(services, unique)
            if kind == "promote":
                await call(services, "deploy", **live(unique), image=versions.pop())
            before = visits(far, unique)
            assert before[0] == before[1]
            problem: CodebError | None = None
            with Cut(far.lab, SECOND, name, direction) as cut:
                arguments = {**live(unique), **({"image": versions.pop()} if kind == "deploy" else {})}
                try:
                    await call(services, kind, **arguments)
                except CodebError as error:
                    problem = error
            tried += 1
            where = f"{kind} cut {direction} at {name}"
            assert cut.done, where
            if problem is not None:
                assert SECOND in problem.message, f"{where}: {problem.message}"
                assert problem.detail["steps"], where
            else:  # a preview address that does not answer is a warning
                assert name == "publish_preview", f"{where} had no effect"
            await settled(services)
            after = visits(far, unique)
            assert after[0] == after[1], f"{where}: {after}"
            assert after == before, f"{where}: {before} became {after}"
            assert (await call(services, "registry_check"))["data"] == [], where
            await cleaned(services, unique)
    print(f"faults tried {tried}, things lost 0")


async def cleaned(services: Services, project: str) -> None:
    """The idle slot is empty for the next round."""
    with contextlib.suppress(Conflict):
        await call(services, "slot_cleanup", **live(project), force=True)


async def test_a_server_without_power_leaves_the_other_on_the_old_version(
    placed: Installation, far: FarServers, unique: str, tmp_path: Path
) -> None:
    first, second = [await far.image(unique, version) for version in ("v1", "v2")]
    async with at_work(placed, far, unique) as services:
        await call(services, "deploy", **live(unique), image=first)
        await call(services, "promote", **live(unique))
        far.lab.cut(SECOND)
        try:
            with pytest.raises(CodebError) as refused:
                await call(services, "deploy", **live(unique), image=second)
            assert SECOND in refused.value.message
            assert far.ask(FIRST, f"{unique}.apps.test") == (200, "v1", "blue")
            kinds = {(row["kind"], row["server"]) for row in (await call(services, "registry_check"))["data"]}
            assert ("server_unreachable", SECOND) in kinds
        finally:
            far.lab.heal(SECOND)
        await settled(services)
        assert visits(far, unique) == [(200, "v1", "blue")] * 2
        assert (await call(services, "registry_check"))["data"] == []


async def test_an_edge_in_front_of_two_servers_switches_both_and_passes_over_one_that_is_gone(
    placed: Installation, far: FarServers, unique: str
) -> None:
    first, second = [await far.image(unique, version) for version in ("v1", "v2")]
    async with at_work(placed, far, unique) as services:
        done = await call(services, "project_place", **live(unique), servers=list(far.names), edge=True)
        assert (done["changed"], done["warnings"]) == (True, [])
        await call(services, "deploy", **live(unique), image=first)
        await call(services, "promote", **live(unique))
        assert placed.ask_public(unique) == (200, "v1", "blue")
        for name in far.names:
            blue = f"{unique}-production-blue"
            assert far.published(name, blue) == [far.lab.inner_address(name)], "nobody else reaches it"
            assert far.ask(name, f"{unique}.apps.test")[1:] == ("", ""), "its own proxy does not serve it"
        with Hammer(placed.caddy.port, f"{unique}.apps.test", careful=True) as hammer:
            await call(services, "deploy", **live(unique), image=second)
            await call(services, "promote", **live(unique))
            await call(services, "rollback", **live(unique))
            await call(services, "rollback", **live(unique))
        print(f"{hammer.answered} requests, {hammer.failed} lost")
        assert (hammer.lost, set(hammer.answers)) == ([], {200})
        assert (await call(services, "registry_check"))["data"] == []
        far.kill(SECOND, f"{unique}-production-green")
        answers = [placed.ask_public(unique)[:2] for _ in range(50)]
        assert set(answers) == {(200, "v2")}, "the other one answers"
        [row] = (await call(services, "registry_check"))["data"]
        assert (row["kind"], row["server"]) == ("container_missing", SECOND)
        assert (await call(services, "registry_repair", driftIds=[row["id"]]))["repaired"] == 1
        assert far.published(SECOND, f"{unique}-production-green") == [far.lab.inner_address(SECOND)]
        assert (await call(services, "registry_check"))["data"] == []


def _freeze_sshd(lab: LabHosts) -> None:
    lab.exec(SECOND, "pkill", "-STOP", "sshd")


def _thaw_sshd(lab: LabHosts) -> None:
    lab.exec(SECOND, "pkill", "-CONT", "sshd")


def _kill_engine(lab: LabHosts) -> None:
    lab.exec(SECOND, "pkill", "-KILL", "dockerd")


OTHER_FAULTS: dict[str, tuple[str, str, Callable[[LabHosts], object], Callable[[LabHosts], object]]] = {
    "sshd hangs at start_container": ("deploy", "start_container", _freeze_sshd, _thaw_sshd),
    "sshd hangs at switch_traffic": ("promote", "switch_traffic", _freeze_sshd, _thaw_sshd),
    "the engine is killed at start_container": (
        "deploy", "start_container", _kill_engine, lambda lab: lab.start_engine(SECOND)
    ),
    "the engine is killed at check_target": (
        "promote", "check_target", _kill_engine, lambda lab: lab.start_engine(SECOND)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_FAULTS)
async def test_a_hanging_sshd_or_a_killed_engine_leaves_the_old_version_on_both(
    placed: Installation, far: FarServers, unique: str, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    kind, name, hurt, heal = OTHER_FAULTS[case]
    first, second = [await far.image(unique, version) for version in ("v1", "v2")]
    former, hit = perform.STEPS[name], asyncio.Event()

    async def step(run: perform.Performer, action: Action) -> Mapping[str, Any]:
        if not hit.is_set():
            hit.set()
            await asyncio.to_thread(hurt, far.lab)
        return await former(run, action)

    async with at_work(placed, far, unique) as services:
        await call(services, "deploy", **live(unique), image=first)
        await call(services, "promote", **live(unique))
        if kind == "promote":
            await call(services, "deploy", **live(unique), image=second)
        monkeypatch.setitem(perform.STEPS, name, step)
        with pytest.raises(CodebError) as refused:
            await call(services, kind, **live(unique), **({"image": second} if kind == "deploy" else {}))
        assert SECOND in refused.value.message
        assert far.ask(FIRST, f"{unique}.apps.test") == (200, "v1", "blue")
        await asyncio.to_thread(heal, far.lab)
        await settled(services)
        # Containers of a killed engine are started again by it.
        async with asyncio.timeout(30):
            while visits(far, unique) != [(200, "v1", "blue")] * 2:
                await asyncio.sleep(0.1)
        assert (await call(services, "registry_check"))["data"] == []


async def test_a_slow_line_only_takes_longer_and_another_host_key_stops_everything(
    placed: Installation, far: FarServers, unique: str
) -> None:
    first, second = [await far.image(unique, version) for version in ("v1", "v2")]
    async with at_work(placed, far, unique) as services:
        far.lab.slow(SECOND, megabits=0.5)
        try:
            await call(services, "deploy", **live(unique), image=first)
            await call(services, "promote", **live(unique))
        finally:
            far.lab.fast(SECOND)
        assert visits(far, unique) == [(200, "v1", "blue")] * 2
        entries = far.entries()
        other = {**entries, SECOND: {**entries[SECOND], "hostKey": entries[FIRST]["hostKey"]}}
        await update(services.store, "ssot", lambda doc: {**(doc or {}), "servers": other})
        with pytest.raises(CodebError) as refused:
            await call(services, "deploy", **live(unique), image=second)
        assert (refused.value.code, SECOND in refused.value.message) == ("host_key_changed", True)
        await update(services.store, "ssot", lambda doc: {**(doc or {}), "servers": entries})
        await settled(services)
        assert visits(far, unique) == [(200, "v1", "blue")] * 2
        assert (await call(services, "registry_check"))["data"] == []
