"""From empty servers to a site: see walk_story.py, which runs on a lab of its own."""

from __future__ import annotations

import os

import pytest

from tests.lab.apart import run_apart
from tests.lab.centrifugo import centrifugo
from tests.lab.daemons import LabError


@pytest.mark.real("hosts", "systemd", "docker", "caddy", "dns", "postgres", "redis", "registry")
def test_from_empty_servers_to_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    if "centrifugo" not in os.environ.get("CODEB_TEST_WITHOUT", "").split(","):
        try:
            monkeypatch.setenv("CODEB_CENTRIFUGO", str(centrifugo()))
        except LabError as error:
            print(f"without Centrifugo: {error}")
    status, said = run_apart("tests/e2e/walk_story.py", seconds=300)
    print(said)
    assert status == 0
