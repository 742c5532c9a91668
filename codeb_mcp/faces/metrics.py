"""What Prometheus reads at `/metrics`.

Labels are bounded: tools are the catalog's, results its error codes, projects those of the registry. The guide's alert
names `codeb_slot_deploy_errors`; it is a counter, so its series is `codeb_slot_deploy_errors_total`, as Prometheus
wants counters to end. Alert on `increase(codeb_slot_deploy_errors_total[10m]) > 0`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest

from codeb_mcp import __version__
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.slot import Slots, SlotState
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.runs import RunView
from codeb_mcp.operations.state import parse_slots

FRESH_SECONDS = 2.0
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600)


class Metrics:
    """Counters of this process, and gauges read from the registry when somebody looks."""

    content_type = CONTENT_TYPE

    def __init__(self, services: Services) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # twice as many series, and nobody asks when a counter was born
        own = self.registry = CollectorRegistry()
        self._operations = Counter(
            "codeb_operations", "Calls by operation and result (ok or an error code)", ["tool", "result"], registry=own
        )
        self._seconds = Histogram(
            "codeb_operation_duration_seconds", "How long calls took", ["tool"], buckets=BUCKETS, registry=own
        )
        environment = ["project", "environment"]
        self._errors = Counter(
            "codeb_slot_deploy_errors", "Deploys that failed since this process started", environment, registry=own
        )
        slot = [*environment, "slot"]
        self._state = Gauge("codeb_slot_state", "1 for the state that the slot is in", [*slot, "state"], registry=own)
        self._healthy = Gauge("codeb_slot_healthy", "1 if the slot's last health check passed", slot, registry=own)
        self._open = Gauge("codeb_open_runs", "Runs that have not ended", registry=own)
        build = Gauge("codeb_build_info", "Always 1; the version is in the label", ["version"], registry=own)
        build.labels(__version__).set(1)
        self._known: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        services.runs.on_end(self._ended)

    def observe(self, tool: str, result: str, seconds: float) -> None:
        """Count one call."""
        known = self._known.get((tool, result))
        if known is None:
            known = self._operations.labels(tool, result), self._seconds.labels(tool)
            self._known[tool, result] = known
        known[0].inc()
        known[1].observe(seconds)

    def _ended(self, view: RunView) -> None:
        if view.header.kind == "deploy" and view.status == "failed":
            self._errors.labels(view.header.project, view.header.environment or "").inc()

    async def text(self, services: Services) -> bytes:
        """The exposition; the registry is read again when the last reading is older than two seconds."""
        async with self._reading:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                await self._read(services)
                self._read_at = time.monotonic()
        return generate_latest(self.registry)

    async def _read(self, services: Services) -> None:
        found = []
        for key in await services.store.keys("slots/"):
            try:
                stored = await services.store.get(key)
                if stored is not None:
                    found.append(parse_slots(key, stored.doc))
            except CodebError as error:
                services.log.warning("metrics leave out a damaged document", key=key, problem=error.message)
        self._open.set(len(await services.registry.journals.open_runs()))
        self._show(found)

    def _show(self, found: Iterable[Slots]) -> None:
        self._state.clear()
        self._healthy.clear()
        for slots in found:
            project, environment = slots.project_name, slots.environment.value
            self._errors.labels(project, environment)
            for record in (slots.blue, slots.green):
                for state in SlotState:
                    value = 1 if record.state is state else 0
                    self._state.labels(project, environment, record.name.value, state.value).set(value)
                if record.state is not SlotState.EMPTY:
                    healthy = record.health_status == "healthy"
                    self._healthy.labels(project, environment, record.name.value).set(healthy)
