"""Fixtures of the real parts, and the rule that no real part is skipped silently.

`CODEB_TEST_WITHOUT=docker,caddy` leaves out the tests that need these parts; the end of the run then says so. Without
it, a missing part fails every test that needs it.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.lab.engine import Engine, PrivateEngine, shared_engine
from tests.lab.engine import spare_engine as start_spare_engine
from tests.lab.hosts import LabHosts, shared_hosts
from tests.lab.ports import FreePorts
from tests.lab.registry import Registry, shared_registry
from tests.lab.samples import SampleImages

# Examples take as long as the machine needs; a failing one prints how to repeat it.
hypothesis.settings.register_profile(
    "codeb", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("codeb")

PARTS = frozenset(
    {
        "actionlint",
        "docker",
        "spare-engine",
        "registry",
        "caddy",
        "caddy-debian",
        "strace",
        "node",
        "hosts",
        "dns",
        "pebble",
        "postgres",
        "redis",
        "systemd",
        "centrifugo",
    }
)
NEEDED_BY_FIXTURE = {
    "hosts": {"hosts"},
    "engine": {"docker"},
    "spare_engine": {"docker", "spare-engine"},
    "registry": {"registry"},
    "locked_registry": {"registry"},
    "sample_images": {"docker", "registry"},
}
SWITCH = "CODEB_TEST_WITHOUT"


def pytest_configure() -> None:
    """Refuse an unknown part at once: in a worker of pytest-xdist the refusal would not be seen."""
    _unwanted_parts()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs an unwanted part. A test names its parts by `@pytest.mark.real("docker", ...)` or simply
    by using their fixtures."""
    unwanted = _unwanted_parts()
    for item in items:
        missing = sorted(unwanted & _needed_parts(item))
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"{SWITCH} names {', '.join(missing)}"))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the very end which real parts were left out."""
    reasons = []
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if SWITCH in reason:
            reasons.append(set(re.findall(r"[a-z-]+", reason)))
    for part in sorted(_unwanted_parts()):
        number = sum(1 for words in reasons if part in words)
        terminalreporter.write_line(f"NOT TESTED: {part} ({number} tests left out by {SWITCH})", red=True)


def _leave_out_without(*parts: str) -> None:
    """For a fixture that a test asks for while it runs, which nobody sees when the tests are collected."""
    missing = sorted(_unwanted_parts().intersection(parts))
    if missing:
        pytest.skip(f"{SWITCH} names {', '.join(missing)}")


def _unwanted_parts() -> set[str]:
    unwanted = {part.strip() for part in os.environ.get(SWITCH, "").split(",") if part.strip()}
    if unwanted - PARTS:
        unknown, known = ", ".join(sorted(unwanted - PARTS)), ", ".join(sorted(PARTS))
        raise pytest.UsageError(f"{SWITCH}: {unknown} is no part; parts are {known}")
    return unwanted


def _needed_parts(item: pytest.Item) -> set[str]:
    needed: set[str] = set()
    for marker in item.iter_markers("real"):
        needed.update(marker.args)
    for name in getattr(item, "fixturenames", ()):
        needed |= NEEDED_BY_FIXTURE.get(name, set())
    return needed


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A container engine that all tests of the run share: use own names, leave others' containers alone."""
    _leave_out_without(*NEEDED_BY_FIXTURE["engine"])
    found, hold = shared_engine()
    yield found
    if hold is not None:
        hold.release()


@pytest.fixture(scope="session")
def hosts() -> Iterator[LabHosts]:
    """Five servers that all tests of the machine share: `hosts.alone("spare")` before you break one."""
    _leave_out_without(*NEEDED_BY_FIXTURE["hosts"])
    lab, hold = shared_hosts()
    yield lab
    hold.release()


@pytest.fixture
def spare_engine() -> Iterator[PrivateEngine]:
    """An engine for this test alone: `kill()` and `start()` as you like."""
    _leave_out_without(*NEEDED_BY_FIXTURE["spare_engine"])
    own = start_spare_engine()
    yield own
    own.stop()


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """An image registry without users that all tests of the run share."""
    _leave_out_without(*NEEDED_BY_FIXTURE["registry"])
    found, hold = shared_registry()
    yield found
    hold.release()


@pytest.fixture
def locked_registry(free_ports: FreePorts) -> Iterator[Registry]:
    """A registry for this test alone that wants a login: user `anna`, password `right-horse`."""
    _leave_out_without(*NEEDED_BY_FIXTURE["locked_registry"])
    with tempfile.TemporaryDirectory(prefix="codeb-registry-") as folder:
        own = Registry(Path(folder, "registry"), free_ports(), {"anna": "right-horse"})
        own.start()
        yield own
        own.remove()


@pytest.fixture
def free_ports() -> Iterator[FreePorts]:
    """Call it for a free TCP port; no other test process gets the same one meanwhile."""
    ports = FreePorts()
    yield ports
    ports.release()


@pytest.fixture
def unique() -> str:
    """A short text that no other test has, for names of projects, containers and images: `t` and eight hex digits."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def sample_images(engine: Engine, registry: Registry, unique: str) -> Iterator[SampleImages]:
    """Makes versions of the sample application under image names of this test alone, and removes them."""
    images = SampleImages(engine, registry.address, unique)
    yield images
    images.remove_all()
