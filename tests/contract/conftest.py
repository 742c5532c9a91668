"""The edge under test: the fake and both supported Caddys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.contract.edges import Case, FakeCase, RealCase
from tests.lab.caddy import BINARIES, CaddyServer, left_out, running_caddy
from tests.lab.ports import FreePorts


@pytest.fixture
def ports() -> Iterator[FreePorts]:
    """Ports that no other test process gets."""
    taken = FreePorts()
    yield taken
    taken.release()


def _caddy(which: str, ports: FreePorts) -> AbstractContextManager[CaddyServer]:
    if left_out(which):
        pytest.skip(f"CODEB_TEST_WITHOUT names {which}")
    return running_caddy(which, ports())


@pytest.fixture(params=BINARIES)
def caddy(request: pytest.FixtureRequest, ports: FreePorts) -> Iterator[CaddyServer]:
    """A real Caddy that has no configuration but its admin endpoint, in both versions."""
    with _caddy(request.param, ports) as server:
        yield server


@pytest.fixture
async def real(caddy: CaddyServer, ports: FreePorts) -> AsyncIterator[RealCase]:
    """Real Caddy, real flags, real HTTP."""
    case = RealCase(caddy, ports)
    yield case
    await case.close()


@pytest.fixture(params=["fake", *BINARIES])
async def edge(request: pytest.FixtureRequest, ports: FreePorts) -> AsyncIterator[Case]:
    """The fake and both real ones."""
    if request.param == "fake":
        yield FakeCase(ports)
        return
    with _caddy(request.param, ports) as server:
        case = RealCase(server, ports)
        yield case
        await case.close()
