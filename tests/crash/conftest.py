"""An installation on real parts for tests that kill it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.engine import Engine
from tests.lab.installation import Installation, installed
from tests.lab.ports import FreePorts


@pytest.fixture
def installation(engine: Engine, free_ports: FreePorts) -> Iterator[Installation]:
    """Initialised, with its own Caddy; not served yet."""
    with installed(engine, free_ports(), free_ports()) as made:
        yield made
