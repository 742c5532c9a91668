"""Drift: where the registry and the observed world differ, and the one repair we would propose for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from codeb_mcp.model.names import Slot, container_name
from codeb_mcp.model.routes import RivalRoute
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState


class Repair(StrEnum):
    """What can be done by itself. `none`: a person has to look."""

    START = "start_container"
    RECREATE = "recreate_container"
    REMOVE = "remove_container"
    EMPTY = "empty_slot"
    SWITCH = "switch_traffic"
    ROUTE = "apply_route"
    UNROUTE = "remove_route"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SeenContainer:
    """A container of ours as the engine has it."""

    name: str
    project: str
    environment: str
    slot: str
    team: str
    version: str
    image_id: str
    running: bool
    state: str
    host_ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublicAnswer:
    """What came back over the public address `host`; `slot` None: no slot of ours sent it."""

    host: str
    status: int
    slot: str | None


@dataclass(frozen=True, slots=True)
class World:
    """What was observed on one app server. `apps`: keys of the environments whose containers belong there, `fronts`: of those
    whose traffic its proxy leads; None for all. `routes`: per environment key whether the proxy has exactly our site; None when the proxy could
    not be asked. `images`: image ids that are on the engine. `rivals`: routes of others before ours. `public`: per
    environment key what a user got, where there was an answer at all."""

    containers: Mapping[str, SeenContainer]
    images: frozenset[str]
    live: Mapping[str, Slot | None]
    routes: Mapping[str, bool] | None
    foreign_ports: frozenset[int]
    rivals: tuple[RivalRoute, ...] = ()
    public: Mapping[str, PublicAnswer] = field(default_factory=dict)
    apps: frozenset[str] | None = None
    fronts: frozenset[str] | None = None

    def runs(self, key: str) -> bool:
        """Whether the environment's containers belong there."""
        return self.apps is None or key in self.apps

    def leads(self, key: str) -> bool:
        """Whether its proxy leads the environment's traffic."""
        return self.fronts is None or key in self.fronts


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference, on the app server `server` (empty: the one beside the control plane). `id` is the same at every check
    as long as the difference stands."""

    kind: str
    key: str
    message: str
    repair: Repair
    proposal: str
    slot: str | None = None
    subject: str = ""
    server: str = ""

    @property
    def id(self) -> str:
        """Short and stable: made of what differs, not of when it was seen."""
        text = "|".join((self.kind, self.key, self.slot or "", self.subject, *([self.server] if self.server else [])))
        return "drift_" + hashlib.sha256(text.encode()).hexdigest()[:12]


def drift_of(environments: Sequence[Slots], world: World, busy: Iterable[str] = ()) -> list[Drift]:
    """Every difference, sorted by environment. `busy`: environments in which a run is under way; their containers are
    being changed and are left out."""
    leave = frozenset(busy)
    found: list[Drift] = []
    known: set[str] = set()
    for slots in environments:
        records = (slots.blue, slots.green) if world.runs(slots.key) else ()
        known |= {_name(slots, record) for record in records}
        if slots.key in leave:
            continue
        own = [one for record in records for one in _slot_drift(slots, record, world)]
        if world.leads(slots.key):
            own += _traffic_drift(slots, world)
            own += _rival_drift(slots, world)
            own += _public_drift(slots, world, own)
        found += own
    keys = {slots.key for slots in environments if world.leads(slots.key)}
    found += [_stray(seen) for seen in world.containers.values() if seen.name not in known and _key(seen) not in leave]
    found += [
        Drift(
            "route_unknown",
            key,
            f"the proxy serves {key}, which is not in the registry",
            Repair.UNROUTE,
            "remove the route",
        )
        for key in (world.routes or {})
        if key not in keys
    ]
    return sorted(found, key=lambda drift: (drift.key, drift.kind, drift.slot or ""))


def _key(seen: SeenContainer) -> str:
    return f"{seen.project}-{seen.environment}"


def _name(slots: Slots, record: SlotRecord) -> str:
    return record.container_name or container_name(slots.project_name, slots.environment, record.name)


def _slot_drift(slots: Slots, record: SlotRecord, world: World) -> list[Drift]:
    name = _name(slots, record)
    seen = world.containers.get(name)
    slot = record.name.value
    if record.state is SlotState.EMPTY:
        if seen is not None:
            said = f"slot {slot} is empty in the registry, but container {name} exists"
            return [Drift("container_unknown", slots.key, said, Repair.REMOVE, f"remove {name}", slot, name)]
        return _taken_port(slots, record, world)
    if seen is None:
        return [_missing(slots, record, name, world)]
    if record.image_id is not None and seen.image_id != record.image_id:
        said = f"container {name} runs image {seen.image_id[:19]}, the registry says {record.image_id[:19]}"
        return [Drift("container_wrong_image", slots.key, said, *_again(record, world, name), slot=slot, subject=name)]
    if not seen.running:
        said = f"container {name} of slot {slot} ({record.state}) is {seen.state}"
        return [Drift("container_stopped", slots.key, said, Repair.START, f"start {name}", slot, name)]
    if seen.host_ports and record.port not in seen.host_ports:
        said = f"container {name} is on port {seen.host_ports[0]}, the registry says {record.port}"
        return [Drift("container_wrong_port", slots.key, said, *_again(record, world, name), slot=slot, subject=name)]
    return []


def _again(record: SlotRecord, world: World, name: str) -> tuple[Repair, str]:
    if record.image_id in world.images:
        return Repair.RECREATE, f"create {name} again from image {record.digest or record.image_id}"
    return Repair.NONE, "deploy the version again: its image is no longer on the engine"


def _missing(slots: Slots, record: SlotRecord, name: str, world: World) -> Drift:
    slot = record.name.value
    said = f"slot {slot} is {record.state} with {record.version}, but container {name} is gone"
    if record.image_id in world.images:
        repair, proposal = _again(record, world, name)
    elif record.state is SlotState.ACTIVE:
        repair, proposal = Repair.NONE, f"deploy {record.version} again and promote it: its image is gone as well"
    else:
        repair, proposal = Repair.EMPTY, f"mark slot {slot} empty: neither container nor image is there any more"
    return Drift("container_missing", slots.key, said, repair, proposal, slot, name)


def _taken_port(slots: Slots, record: SlotRecord, world: World) -> list[Drift]:
    if record.port not in world.foreign_ports:
        return []
    said = f"port {record.port} of the empty slot {record.name} is used by something else"
    proposal = "stop what listens there; a deploy to this slot would fail"
    return [Drift("port_taken", slots.key, said, Repair.NONE, proposal, record.name.value, str(record.port))]


def _traffic_drift(slots: Slots, world: World) -> list[Drift]:
    found = []
    live = world.live.get(slots.key)
    if live is not slots.active_slot and (slots.key in world.live or slots.active_slot is not None):
        said = f"traffic goes to {live or 'nothing'}, the registry says {slots.active_slot or 'nothing'}"
        proposal = f"send traffic to {slots.active_slot or 'nothing'}"
        found.append(Drift("traffic_differs", slots.key, said, Repair.SWITCH, proposal, slots.active_slot))
    if world.routes is not None and not world.routes.get(slots.key, False):
        what = "has another route for" if slots.key in world.routes else "has no route for"
        proposal = "write the route into the proxy"
        found.append(Drift("route_missing", slots.key, f"the proxy {what} {slots.key}", Repair.ROUTE, proposal))
    return found


def _rival_drift(slots: Slots, world: World) -> list[Drift]:
    if slots.adopted_route:
        return []  # the former route serves on purpose until the first switch
    return [
        Drift(
            "host_taken",
            slots.key,
            f"{one.host} is answered by {one.where}, which stands before ours",
            Repair.NONE,
            f"remove {one.where}, or put it behind ours; until then promote and rollback are taken back",
            subject=one.host,
        )
        for one in world.rivals
        if one.key == slots.key
    ]


_NO_UPSTREAM = (502, 504)


def _public_drift(slots: Slots, world: World, own: Sequence[Drift]) -> list[Drift]:
    """A wrong answer that none of the environment's other differences explains."""
    answer, live = world.public.get(slots.key), slots.active_slot
    explained = any(one.kind in ("traffic_differs", "route_missing", "host_taken") or one.slot == live for one in own)
    if answer is None or answer.slot == live or explained or slots.adopted_route:
        return []
    if answer.slot is not None:
        said = f"{answer.host} is answered by slot {answer.slot}, the registry says {live or 'nothing'}"
        proposal = "let the proxy's user look into the folder of the traffic flags; health_check says what hides it"
        return [Drift("public_wrong_slot", slots.key, said, Repair.NONE, proposal, live, answer.host)]
    if answer.status in _NO_UPSTREAM:
        return []  # the slot does not answer the proxy: a matter of health
    said = f"{answer.host} is answered with {answer.status}, but not by a slot of ours"
    proposal = f"find out who answers {answer.host} before our route, in the proxy or in front of it, and take it away"
    return [Drift("public_not_ours", slots.key, said, Repair.NONE, proposal, live, answer.host)]


def _stray(seen: SeenContainer) -> Drift:
    said = f"container {seen.name} carries our labels, but the registry does not know it"
    return Drift("container_unknown", _key(seen), said, Repair.REMOVE, f"remove {seen.name}", seen.slot, seen.name)
