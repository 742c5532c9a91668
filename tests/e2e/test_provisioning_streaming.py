"""Streaming as a wish of a project, on the real Centrifugo."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.streaming_world import StreamingWorld, centrifugo_on, installation
from tests.lab.centrifugo import LabCentrifugo
from tests.lab.hosts import LabHosts

pytestmark = pytest.mark.real("hosts", "centrifugo")


@pytest.fixture(scope="module")
def server(hosts: LabHosts) -> Iterator[LabCentrifugo]:
    with centrifugo_on(hosts) as made:
        yield made


@pytest.fixture
async def far(server: LabCentrifugo, tmp_path: Path) -> AsyncIterator[StreamingWorld]:
    async with installation(server, tmp_path / "codeb") as made:
        yield made


async def test_a_project_gets_a_namespace_in_each_environment_and_the_same_again_changes_nothing(
    far: StreamingWorld, unique: str
) -> None:
    wish = {"projectName": unique, "streaming": True, "env": {"LOG_LEVEL": "debug"}}
    made = await far.world.call("project_create", **wish)
    said = [(row["wish"], row["environment"], row["outcome"]) for row in made["provisioned"]]
    assert said == [
        (what, environment, "made") for environment in ("production", "staging") for what in ("env", "streaming")
    ]
    assert {row.get("server") for row in made["provisioned"] if row["wish"] == "streaming"} == {"streaming"}
    names = [name for name in far.namespaces() if unique in name]
    assert len(names) == 2
    for environment in ("production", "staging"):
        values = far.variables(unique, environment)
        assert values["CENTRIFUGO_NAMESPACE"] in names
        assert values["CENTRIFUGO_TOKEN_SECRET"] not in str(made)
    config, before = far.server.read_config(), far.variables(unique)
    again = await far.world.call("project_create", **wish)
    assert {row["outcome"] for row in again["provisioned"]} == {"present"}
    assert (far.server.read_config(), far.variables(unique)) == (config, before)


async def test_a_streaming_server_that_is_away_is_named_and_the_repeat_finishes(
    far: StreamingWorld, unique: str
) -> None:
    far.server.stop()
    wish = {"projectName": unique, "streaming": True, "environments": ["production"]}
    answer = await far.world.call("project_create", **wish)
    [row] = answer["provisioned"]
    assert (row["outcome"], row["server"], row["step"]) == ("failed", "streaming", "check"), row
    assert row["code"] in ("driver_unavailable", "timeout")
    assert far.variables(unique) == {}
    far.server.run()
    [row] = (await far.world.call("project_create", **wish))["provisioned"]
    assert row["outcome"] == "made"
