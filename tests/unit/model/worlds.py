"""Environments that may exist, and a world that is exactly as they say."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from codeb_mcp.model.drift import SeenContainer, World
from codeb_mcp.model.names import Environment, Slot, container_name
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from tests.unit.model.plans import NOW

PAIRS = [
    (SlotState.EMPTY, SlotState.EMPTY), (SlotState.DEPLOYED, SlotState.EMPTY), (SlotState.ACTIVE, SlotState.EMPTY),
    (SlotState.ACTIVE, SlotState.DEPLOYED), (SlotState.ACTIVE, SlotState.GRACE),
]  # fmt: skip
NAMES = st.sampled_from(["worb", "w-homepage", "da-rak", "shop-staging", "a"])


def record(project: str, environment: Environment, slot: Slot, port: int, state: SlotState, **more: Any) -> SlotRecord:
    """A slot in that state, with a release unless it is empty."""
    if state is SlotState.EMPTY:
        return SlotRecord(name=slot, port=port)
    age = {SlotState.GRACE: 3, SlotState.ACTIVE: 2, SlotState.DEPLOYED: 1}[state]
    facts: dict[str, Any] = {
        "name": slot, "port": port, "state": state, "version": f"v-{slot}", "image": f"ghcr.io/acme/{project}:v-{slot}",
        "digest": f"sha256:digest-{slot}", "image_id": f"sha256:{project}-{environment}-{slot}", "run_id": f"op_{project}_{slot}",
        "container_name": container_name(project, environment, slot), "health_path": "/health", "health_status": "healthy",
        "deployed_at": NOW - timedelta(days=age), "deployed_by": "key_1",
        "grace_expires_at": NOW + timedelta(hours=20) if state is SlotState.GRACE else None,
    }  # fmt: skip
    return SlotRecord(**{**facts, **more})


def slots_of(
    project: str = "worb",
    environment: Environment = Environment.PRODUCTION,
    states: tuple[SlotState, SlotState] = (SlotState.ACTIVE, SlotState.DEPLOYED),
    first_port: int = 4000,
) -> Slots:
    """Blue and green in these states."""
    blue, green = (
        record(project, environment, slot, first_port + number, state)
        for number, (slot, state) in enumerate(zip(Slot, states, strict=True))
    )
    active = next((one.name for one in (blue, green) if one.state is SlotState.ACTIVE), None)
    return Slots(project_name=project, environment=environment, active_slot=active, blue=blue, green=green)


@st.composite
def environments(draw: st.DrawFn) -> list[Slots]:
    """Any number of environments with ports of their own."""
    chosen = draw(st.lists(st.tuples(NAMES, st.sampled_from(Environment)), unique=True, max_size=6))
    made = []
    for number, (project, environment) in enumerate(chosen):
        states = draw(st.sampled_from(PAIRS))
        turned = draw(st.booleans())
        made.append(slots_of(project, environment, states[::-1] if turned else states, 4000 + 2 * number))
    return made


def seen(slots: Slots, one: SlotRecord, **more: Any) -> SeenContainer:
    """The container of a slot as it should be."""
    facts: dict[str, Any] = {
        "name": container_name(slots.project_name, slots.environment, one.name), "project": slots.project_name,
        "environment": slots.environment.value, "slot": one.name.value, "team": slots.team_id, "version": one.version or "",
        "image_id": one.image_id or "", "running": True, "state": "running", "host_ports": (one.port,),
    }  # fmt: skip
    return SeenContainer(**{**facts, **more})


def world_of(environments: list[Slots], **more: Any) -> World:
    """What would be observed if the registry is right in everything."""
    full = [
        (slots, one) for slots in environments for one in (slots.blue, slots.green) if one.state is not SlotState.EMPTY
    ]
    facts: dict[str, Any] = {
        "containers": {container.name: container for container in (seen(slots, one) for slots, one in full)},
        "images": frozenset(one.image_id for _, one in full),
        "live": {slots.key: slots.active_slot for slots in environments},
        "routes": {slots.key: True for slots in environments},
        "foreign_ports": frozenset(),
    }  # fmt: skip
    return World(**{**facts, **more})
