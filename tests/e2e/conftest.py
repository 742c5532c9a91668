"""An installation on real parts for whole stories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.caddy import BINARIES, left_out
from tests.lab.engine import Engine
from tests.lab.installation import Installation, installed
from tests.lab.ports import FreePorts


@pytest.fixture
def installation(engine: Engine, free_ports: FreePorts) -> Iterator[Installation]:
    """Initialised, with its own Caddy; not served yet."""
    with installed(engine, free_ports(), free_ports()) as made:
        yield made


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.real(name)) for name in BINARIES])
def served(request: pytest.FixtureRequest, engine: Engine, free_ports: FreePorts) -> Iterator[Installation]:
    """A served installation, once for each Caddy."""
    assert not left_out(request.param)
    with installed(engine, free_ports(), free_ports(), which=request.param) as made:
        made.serve()
        yield made
