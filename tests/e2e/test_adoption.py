"""Adoption on a real engine and both Caddys: the guide's projects come in as they are, and go on serving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lab.daemons import LabError, locked, state_folder, wait_until
from tests.lab.hammer import Hammer
from tests.lab.installation import Installation
from tests.lab.samples import SampleImages

GUIDE = {
    ("worb", "production"): (4000, 4001),
    ("worb", "staging"): (4500, 4501),
    ("w-homepage", "production"): (4002, 4003),
    ("da-rak", "production"): (4004, 4005),
}
LIVE: dict[str, Any] = {"environment": "production"}
CLOSED = ("ConnectionResetError", "BrokenPipeError", "RemoteDisconnected")
MOST_LOST_AT_A_RELOAD = 12
"""Of four busy clients; measured: 0 to 4."""


class Earlier:
    """What an earlier installation left: containers of its kind, and routes as a Caddyfile of two lines makes them."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.made: list[str] = []

    def container(self, name: str, image: str, port: int, labels: Mapping[str, str]) -> str:
        """A running container on a fixed port; answers its id."""
        call = self.installation.engine.call
        body = {
            "Image": image,
            "Labels": dict(labels),
            "Env": ["PORT=8080"],
            "ExposedPorts": {"8080/tcp": {}},
            "HostConfig": {"PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}},
        }
        identity: str = call("POST", f"/containers/create?name={name}", body)["Id"]
        self.made.append(identity)
        call("POST", f"/containers/{identity}/start")
        return identity

    def routes(self, sites: Mapping[str, int]) -> None:
        """Caddy's own routes: host to port."""
        routes = [
            {
                "match": [{"host": [host]}],
                "handle": [
                    {
                        "handler": "subroute",
                        "routes": [
                            {"handle": [{"handler": "reverse_proxy", "upstreams": [{"dial": f"localhost:{port}"}]}]}
                        ],
                    }
                ],
                "terminal": True,
            }
            for host, port in sites.items()
        ]
        server = {"listen": [self.installation.caddy.listen], "automatic_https": {"disable": True}, "routes": routes}
        self.installation.caddy.ask("POST", "/config/apps", {"http": {"servers": {"srv0": server}}})

    def state(self) -> dict[str, Any]:
        """When each container was started, how often, and from which image."""
        call = self.installation.engine.call
        shown = {one: call("GET", f"/containers/{one}/json") for one in self.made}
        return {one: (it["State"]["StartedAt"], it["RestartCount"], it["Image"]) for one, it in shown.items()}

    def remove(self) -> None:
        """Take away what is left."""
        for one in self.made:
            try:
                self.installation.engine.call("DELETE", f"/containers/{one}?force=1&v=1")
            except LabError:
                continue  # replaced by a deploy


def drift(served: Installation, project: str) -> list[Any]:
    """What registry_check finds about a project; other tests have containers on the same engine."""
    rows = served.call("registry_check", limit=200).body["data"]
    return [row for row in rows if str(row.get("environment", "")).startswith(f"{project}-")]


@pytest.fixture
def earlier(served: Installation) -> Iterator[Earlier]:
    """An earlier installation on the same engine and proxy."""
    left = Earlier(served)
    yield left
    left.remove()


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "bare"])
async def test_an_adopted_site_is_promoted_and_rolled_back_under_load(
    served: Installation,
    earlier: Earlier,
    sample_images: SampleImages,
    unique: str,
    labelled: bool,
) -> None:
    first = int(served.settings.ports.production[0][0]) + int(unique[1:], 16) % 100 * 2
    labels = {"codeb.project": unique, "codeb.environment": "production", "codeb.slot": "blue", "codeb.version": "v1"}
    earlier.container(f"{unique}-production-blue", await sample_images.local("v1"), first, labels if labelled else {})
    earlier.routes({f"{unique}.apps.test": first, "others.test": 9})
    wait_until(lambda: served.ask_public(unique)[:2] == (200, "v1"), 30, "the earlier site does not come up")
    before, config = earlier.state(), served.caddy.ask("GET", "/config/")
    with Hammer(served.caddy.port, f"{unique}.apps.test", careful=True) as hammer:
        found = served.call("adopt", apply=True, projects=[unique])
        assert found.ok, found.body
        [mine] = found.body["data"]
        assert (mine["status"], mine["activeSlot"], mine["slots"]["blue"]) == (
            "written",
            "blue",
            f"{first} active v1",
        ), mine
        assert earlier.state() == before
        assert served.caddy.ask("GET", "/config/")[-200:] == config[-200:]
        assert drift(served, unique) == []
        image = await sample_images.pushed("v2")
        deployed = served.call("deploy", projectName=unique, image=image, **LIVE)
        assert deployed.ok, deployed.body
        assert served.ask_public(unique)[1] == "v1"
        assert hammer.lost == []
        promoted = served.call("promote", projectName=unique, **LIVE)
        assert promoted.ok, promoted.body
        assert served.ask_public(unique) == (200, "v2", "green")
        # Each client has sent several requests since, on connections that it opened or kept after the change.
        answered = hammer.answered
        wait_until(lambda: hammer.answered > answered + 100, 30, "the load does not go on")
        at_the_change = list(hammer.lost)
        back = served.call("rollback", projectName=unique, **LIVE)
        assert back.ok, back.body
        assert served.ask_public(unique) == (200, "v1", "blue")
    print(f"{sum(hammer.answers.values())} requests, {hammer.reopened} connections reopened, {hammer.failed} lost")
    assert set(hammer.answers) == {200}, hammer.answers
    # The one change of the proxy's configuration: a Caddy that reloads resets who has just come to its former listener, and
    # closes a connection that was idle until just then. Nothing else may lose anything.
    assert all(any(kind in one for kind in CLOSED) for one in at_the_change), at_the_change
    assert len(at_the_change) <= MOST_LOST_AT_A_RELOAD, at_the_change
    assert hammer.lost == at_the_change


async def test_the_guides_table_is_adopted_as_it_is(
    served: Installation, earlier: Earlier, sample_images: SampleImages
) -> None:
    with ExitStack() as stack:
        stack.enter_context(locked(state_folder() / "guide-table.lock"))
        stack.callback(earlier.remove)
        image = await sample_images.local("v1.2.3")
        sites = {}
        for (project, environment), (blue, green) in GUIDE.items():
            live = green if project == "da-rak" else blue
            slot = "green" if project == "da-rak" else "blue"
            labels = {"codeb.project": project, "codeb.environment": environment, "codeb.slot": slot}
            earlier.container(f"{project}-{environment}-{slot}", image, live, labels)
            sites[f"{project}-{environment}.example.test"] = live
        earlier.routes(sites)
        before, names = earlier.state(), sorted({project for project, _ in GUIDE})
        plan = served.call("adopt", projects=names)
        assert {
            row["status"] for row in plan.body["data"] if row["projectName"] in ("worb", "w-homepage", "da-rak")
        } == {"new"}
        assert not (served.root / "registry/slots").exists() or not list(
            (served.root / "registry/slots").glob("worb-*")
        )
        for status in ("written", "present"):
            done = served.call("adopt", apply=True, projects=names)
            found = {(row["projectName"], row["environment"]): row for row in done.body["data"]}
            assert {found[key]["status"] for key in GUIDE} == {status}, done.body
        for (project, environment), (blue, green) in GUIDE.items():
            slots = served.slots(project, environment)
            assert (slots["blue"]["port"], slots["green"]["port"]) == (blue, green)
            assert slots["activeSlot"] == ("green" if project == "da-rak" else "blue")
        assert earlier.state() == before
        assert [found for project, _ in GUIDE for found in drift(served, project)] == []
        for name in names:  # before the lock ends: others use these names as well
            deleted = served.call("project_delete", projectName=name, confirm=name)
            assert deleted.ok, deleted.body
