"""The end of a slot on which a request still runs: what is waited for, what is told, and what the request gets."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.lab.daemons import wait_until
from tests.lab.engine import Engine
from tests.lab.installation import Installation, Reply
from tests.lab.samples import SampleImages

PRODUCTION: dict[str, Any] = {"environment": "production"}
FOREVER = "/sleep?s=300"
"""A request that outlasts everything here."""
Answered = tuple[int, str]


class Watched:
    """What the engine says happened to one container: signals sent to it, and how it ended."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def _events(self, kind: str, attribute: str) -> list[str]:
        rows = [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        return [row["Actor"]["Attributes"][attribute] for row in rows if row["Action"] == kind]

    @property
    def signals(self) -> list[str]:
        """Numbers of the signals, in order."""
        return self._events("kill", "signal")

    @property
    def exit_codes(self) -> list[str]:
        """One for each end."""
        return self._events("die", "exitCode")


@contextmanager
def watched(engine: Engine, container: str, folder: Path) -> Iterator[Watched]:
    """Follow the container's events for the time of the block."""
    log = folder / f"{container}.events"
    filters = quote(json.dumps({"container": [container], "event": ["kill", "die"]}))
    url = f"http://engine/events?since={int(time.time()) - 1}&filters={filters}"
    with log.open("wb") as out:
        argv = ["curl", "-sN", "--unix-socket", engine.host.removeprefix("unix://"), url]
        process = subprocess.Popen(argv, stdout=out)
    try:
        yield Watched(log)
    finally:
        process.terminate()
        process.wait(10)


def ask(installation: Installation, host: str, path: str) -> Answered:
    """Status and body of one patient request over the proxy; status 0 when the connection was cut."""
    connection = http.client.HTTPConnection("127.0.0.1", installation.caddy.port, timeout=120)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


class Story:
    """v1 served, a slow request began on it, then v2 went live; `slow` is that request's answer."""

    def __init__(self, installation: Installation, project: str, pool: ThreadPoolExecutor) -> None:
        self.installation, self.project, self.pool = installation, project, pool
        self.former = f"{project}-production-blue"
        self.slow: Future[Answered] = Future()

    async def prepare(self, images: SampleImages, *, drain: float, stop: int = 20, term: str = "drain") -> None:
        """v1 live in blue, v2 waiting in green."""
        call = self.installation.call
        limits = {"stopTimeoutSeconds": stop}
        assert call("project_create", projectName=self.project, environments=["production"], limits=limits).ok
        assert call("project_update", projectName=self.project, drainSeconds=drain, **PRODUCTION).ok
        for version, promote in (("v1", True), ("v2", False)):
            image = await images.pushed(version, TERM=term)
            reply = call("deploy", projectName=self.project, image=image, autoPromote=promote, **PRODUCTION)
            assert reply.ok, reply.body

    def switch_under(self, path: str) -> None:
        """Begin the slow request, and promote v2 when it has arrived at v1."""
        self.slow = self.pool.submit(ask, self.installation, f"{self.project}.apps.test", path)
        self.promote()
        assert not self.slow.done(), "the slow request was not slow enough"

    def promote(self) -> None:
        """Promote v2 while v1 has one request."""
        wait_until(self._arrived, 20, "the slow request never arrives")
        promoted = self.installation.call("promote", projectName=self.project, **PRODUCTION)
        assert promoted.ok, promoted.body
        assert self.installation.ask_public(self.project) == (200, "v2", "green")

    def _arrived(self) -> bool:
        return b'"num_requests":1' in self.installation.caddy.ask("GET", "/reverse_proxy/upstreams")

    def cleanup(self) -> Future[Reply]:
        """Begin to empty the former slot."""
        return self.pool.submit(
            self.installation.call, "slot_cleanup", projectName=self.project, force=True, **PRODUCTION
        )

    def check_emptied(self) -> None:
        """Only the new slot is left, and it serves."""
        assert self.installation.slots(self.project)["blue"]["state"] == "empty"
        assert set(self.installation.containers(self.project)) == {f"{self.project}-production-green"}
        assert self.installation.ask_public(self.project) == (200, "v2", "green")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that last."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


async def test_what_outlasts_the_drain_is_told_and_goes_on_as_long_as_its_app_does(
    served: Installation, sample_images: SampleImages, unique: str, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    story = Story(served, unique, pool)
    await story.prepare(sample_images, drain=0.5, stop=60)
    async with aiohttp.ClientSession() as session:
        address = f"http://127.0.0.1:{served.caddy.port}/ws"
        with watched(served.engine, story.former, tmp_path) as container:
            async with session.ws_connect(address, headers={"Host": f"{unique}.apps.test"}) as socket:
                story.promote()
                cleaning = story.cleanup()
                wait_until(lambda: container.signals, 60, "the slot is never stopped")
                assert served.slots(unique)["blue"]["state"] == "empty", "the registry comes before the container"
                assert served.ask_public(unique) == (200, "v2", "green")
                await socket.send_str("still there?")
                assert await socket.receive_str(timeout=20) == "still there?"
            cleaned = cleaning.result(60)
            wait_until(lambda: container.exit_codes, 10, "the end is never told")
    assert cleaned.ok, cleaned.body
    assert (cleaned.body["drained"], cleaned.body["inFlight"]) == (False, 1)
    assert (container.signals, container.exit_codes) == (["15"], ["0"])
    story.check_emptied()


@pytest.mark.parametrize(
    ("term", "signals"), [("exit", ["15"]), ("ignore", ["15", "9"])], ids=["ends at SIGTERM", "does not hear SIGTERM"]
)
async def test_a_request_that_an_app_gives_up_at_its_end_gets_502_and_the_cleanup_says_that_it_ran(
    installation: Installation, sample_images: SampleImages, unique: str, pool: ThreadPoolExecutor, tmp_path: Path,
    term: str, signals: list[str],
) -> None:  # fmt: skip
    installation.serve()
    story = Story(installation, unique, pool)
    await story.prepare(sample_images, drain=0.5, stop=1, term=term)
    with watched(installation.engine, story.former, tmp_path) as container:
        story.switch_under(FOREVER)
        cleaned = story.cleanup().result(60)
        wait_until(lambda: container.exit_codes, 10, "the end is never told")
    assert cleaned.ok, cleaned.body
    assert (cleaned.body["drained"], cleaned.body["inFlight"]) == (False, 1)
    assert story.slow.result(30)[0] == 502
    assert container.signals == signals
    story.check_emptied()


async def test_a_cleanup_that_waits_long_enough_stops_nothing_that_runs(
    served: Installation, sample_images: SampleImages, unique: str, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    story = Story(served, unique, pool)
    await story.prepare(sample_images, drain=60, term="exit")
    with watched(served.engine, story.former, tmp_path) as container:
        story.switch_under("/sleep?s=4")
        cleaned = story.cleanup().result(90)
        wait_until(lambda: container.exit_codes, 10, "the end is never told")
    assert cleaned.ok, cleaned.body
    assert (cleaned.body["drained"], cleaned.body["inFlight"]) == (True, 0)
    assert story.slow.result(30) == (200, "v1"), "an app that ends at SIGTERM was stopped too early"
    assert container.signals == ["15"]
    story.check_emptied()


@pytest.mark.parametrize(
    ("drain", "path", "answered", "told"),
    [
        (0.5, FOREVER, 502, {"drained": False, "inFlight": 1}),
        (60, "/sleep?s=4", 200, {"drained": True, "inFlight": 0}),
    ],
    ids=["runs out of time", "ends in time"],
)
async def test_an_expired_slot_is_drained_and_the_run_tells_how_that_went(
    installation: Installation, sample_images: SampleImages, unique: str, pool: ThreadPoolExecutor, tmp_path: Path,
    drain: float, path: str, answered: int, told: dict[str, Any],
) -> None:  # fmt: skip
    installation.serve()
    story = Story(installation, unique, pool)
    await story.prepare(sample_images, drain=drain, term="exit")
    assert installation.call("project_update", projectName=unique, graceHours=0, **PRODUCTION).ok
    with watched(installation.engine, story.former, tmp_path) as container:
        story.switch_under(path)
        wait_until(
            lambda: container.exit_codes, 60, "the grace slot never expires", log=installation.root / "server.log"
        )
    assert story.slow.result(30)[0] == answered
    assert container.signals == ["15"]

    def ended() -> dict[str, Any]:
        newest = installation.call("operation_list").body["data"][0]
        assert (newest["kind"], newest["createdBy"]) == ("slot_cleanup", "housekeeper")
        return newest if newest["status"] == "succeeded" else {}

    wait_until(ended, 30, "the expiry never ends")
    run = installation.call("operation_get", operationId=ended()["operationId"]).body
    drained = run["result"]["result"]["facts"]["drain"]
    assert {name: drained[name] for name in told} == told
    story.check_emptied()
