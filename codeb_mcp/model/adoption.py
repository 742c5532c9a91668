"""What an earlier installation left running, as documents of ours: decided from what is seen, never from what is written.

A container is recognised by its name `{project}-{environment}-{slot}`; which slot is live is told by the proxy alone. Whatever
does not fit together is left out, with the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from codeb_mcp.model.foreign import ForeignSite
from codeb_mcp.model.names import (
    VERSION_PATTERN,
    Domain,
    Environment,
    ProjectName,
    Slot,
    container_name,
    image_parts,
    split_environment_key,
)
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState

GRACE = timedelta(hours=48)
_DOMAIN: TypeAdapter[str] = TypeAdapter(Domain)
_PROJECT: TypeAdapter[str] = TypeAdapter(ProjectName)
_NAME = re.compile(rf"^(?P<key>.+-(?:{'|'.join(Environment)}))-(?P<slot>{'|'.join(Slot)})$")
Pair = dict[Slot, int]


@dataclass(frozen=True, slots=True)
class Running:
    """A container as the engine shows it; `ports` leads from each published port to the container's own."""

    name: str
    container_id: str
    image: str
    image_id: str
    labels: Mapping[str, str]
    state: str
    ports: Mapping[int, int]

    @property
    def up(self) -> bool:
        """Whether it serves."""
        return self.state == "running"

    @property
    def deployed_at(self) -> datetime | None:
        """What its label says."""
        try:
            found = datetime.fromisoformat(self.labels.get("codeb.deployed_at", ""))
        except ValueError:
            return None
        return found if found.tzinfo else None


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of one environment: its containers, its former document and ports, and the proxy's routes to it."""

    key: str
    containers: Mapping[Slot, Running] = field(default_factory=dict)
    document: Slots | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    sites: Sequence[ForeignSite] = ()

    @property
    def project(self) -> str:
        """Whose it is."""
        return split_environment_key(self.key)[0]

    @property
    def environment(self) -> Environment:
        """Which one it is."""
        return split_environment_key(self.key)[1]


@dataclass(frozen=True, slots=True)
class Adoptable:
    """What is to be written, and what somebody should know about it."""

    slots: Slots
    hosts: tuple[str, ...]
    container_port: int | None
    image: str | None
    notes: tuple[str, ...] = ()


class Unfit(Exception):
    """Why an environment is left out."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def place_of(name: str) -> tuple[str, Slot] | None:
    """`(environment key, slot)` that a container's name means; None for a name that is not of ours."""
    found = _NAME.match(name)
    if found is None:
        return None
    try:
        _PROJECT.validate_python(split_environment_key(found["key"])[0])
    except ValidationError:
        return None
    return found["key"], Slot(found["slot"])


def adoptable(seen: Seen, team: str, now: datetime, holders: Mapping[int, str]) -> Adoptable:
    """The documents of one environment. `holders`: who has a port, by name of container or key. Raises Unfit."""
    pair = _pair(seen)
    problems = [*_label_problems(seen), *_port_problems(seen, pair, holders)]
    if problems:
        raise Unfit(*problems)
    notes: list[str] = []
    sites = [site for site in seen.sites if set(site.ports) & set(pair.values())]
    active = _active(seen, sites, pair, notes)
    hosts = _hosts(sites, notes)
    records = {slot: _record(seen, slot, pair[slot], active, now, notes) for slot in Slot}
    waiting = [one for one in records.values() if one.state is SlotState.DEPLOYED]
    if len(waiting) == len(records):
        raise Unfit("both containers run and no route of the proxy leads to either")
    former = seen.document.model_extra or {} if seen.document else {}
    slots = Slots.model_validate(
        {
            **former,
            "project_name": seen.project,
            "team_id": team,
            "environment": seen.environment,
            "active_slot": active,
            "blue": records[Slot.BLUE],
            "green": records[Slot.GREEN],
            "last_updated": now,
            "adopted_route": True if sites else None,
        }
    )
    main = seen.containers.get(active) if active else next(iter(seen.containers.values()), None)
    inner = main.ports.get(pair[active or place(main)]) if main else None
    return Adoptable(slots, hosts, inner, main.image if main else None, tuple(notes))


def place(one: Running) -> Slot:
    """The slot that the container's name means."""
    return Slot(one.name.rpartition("-")[2])


def _pair(seen: Seen) -> Pair:
    """The ports that documents and containers tell; blue is one below green where only one is told."""
    told: Pair = {}
    for slot in Slot:
        ports = {name: port for name, port in _told(seen, slot).items() if port}
        if len(set(ports.values())) > 1:
            said = ", ".join(f"{port} by {name}" for name, port in ports.items())
            raise Unfit(f"the port of slot {slot} is told differently: {said}")
        if ports:
            told[slot] = next(iter(ports.values()))
    if not told:
        raise Unfit("no port is known of it: its containers publish none")
    told.setdefault(Slot.BLUE, told.get(Slot.GREEN, 0) - 1)
    told.setdefault(Slot.GREEN, told[Slot.BLUE] + 1)
    if told[Slot.BLUE] == told[Slot.GREEN] or not all(1 <= port <= 65535 for port in told.values()):
        raise Unfit(f"ports {told[Slot.BLUE]} and {told[Slot.GREEN]} are no pair")
    return told


def _told(seen: Seen, slot: Slot) -> dict[str, int | None]:
    container = seen.containers.get(slot)
    published = sorted(container.ports) if container else []
    if len(published) > 1:
        raise Unfit(f"container {container_name(seen.project, seen.environment, slot)} publishes several ports")
    return {
        "its slot file": seen.document.record(slot).port if seen.document else None,
        "ssot.json": seen.ports.get(slot.value),
        "its container": published[0] if published else None,
    }


def _label_problems(seen: Seen) -> list[str]:
    wanted = {"project": seen.project, "environment": seen.environment.value}
    return [
        f"container {one.name} is labelled codeb.{name}={one.labels[f'codeb.{name}']}"
        for slot, one in seen.containers.items()
        for name, value in {**wanted, "slot": slot.value}.items()
        if one.labels.get(f"codeb.{name}", value) != value
    ]


def _port_problems(seen: Seen, pair: Pair, holders: Mapping[int, str]) -> list[str]:
    return [
        f"port {port} of slot {slot} is held by {holders[port]}"
        for slot, port in pair.items()
        if holders.get(port, seen.key) not in (seen.key, f"{seen.key}-{slot}")
    ]


def _active(seen: Seen, sites: Sequence[ForeignSite], pair: Pair, notes: list[str]) -> Slot | None:
    """The slot that the proxy sends traffic to."""
    said = seen.document.active_slot if seen.document else None
    odd = next((site for site in sites if not site.replaceable), None)
    live = [slot for slot in Slot if any(pair[slot] in site.ports for site in sites)]
    if odd is not None:
        hosts = ", ".join(odd.hosts)
        raise Unfit(f"its route for {hosts} does more than send requests to one port: {_more(odd)}")
    if len(live) > 1:
        raise Unfit("the proxy sends traffic to both slots")
    if not live:
        _without_traffic(seen, said, notes)
        return None
    [active] = live
    container = seen.containers.get(active)
    if container is None or not container.up:
        state = container.state if container else "missing"
        raise Unfit(f"traffic goes to port {pair[active]}, but container {seen.key}-{active} is {state}")
    if said is not None and said is not active:
        notes.append(f"its slot file says {said}; traffic goes to {active}, which is recorded as live")
    return active


def _without_traffic(seen: Seen, said: Slot | None, notes: list[str]) -> None:
    if said is not None:
        raise Unfit(f"its slot file says that {said} is live, but no route of the proxy leads there")
    if any(one.up for one in seen.containers.values()):
        notes.append("no route of the proxy leads to it: what runs is recorded as waiting for traffic")


def _more(site: ForeignSite) -> str:
    parts = [*site.handlers]
    if len(site.ports) > 1:
        parts.append(f"ports {', '.join(map(str, site.ports))}")
    if not site.plain:
        parts.append("other upstreams or conditions")
    return ", ".join(parts)


def _hosts(sites: Sequence[ForeignSite], notes: list[str]) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(host for site in sites for host in site.hosts))
    for host in hosts:
        try:
            _DOMAIN.validate_python(host)
        except ValidationError:
            raise Unfit(f"its route asks for {host[:100]!r}, which is no full domain name") from None
    lost = sorted({name for site in sites for name in site.handlers})
    if lost:
        notes.append(f"with the first promote the former route ends, and with it: {', '.join(lost)}")
    return hosts


def _record(seen: Seen, slot: Slot, port: int, active: Slot | None, now: datetime, notes: list[str]) -> SlotRecord:
    container = seen.containers.get(slot)
    former = seen.document.record(slot) if seen.document else None
    extra: dict[str, Any] = dict(former.model_extra or {}) if former else {}
    if container is None:
        if former is not None and former.state is not SlotState.EMPTY:
            notes.append(f"slot {slot} was {former.state}, but its container is gone: recorded as empty")
        return SlotRecord.model_validate({**extra, "name": slot, "port": port})
    if not container.up:
        notes.append(f"container {container.name} is {container.state}: recorded as empty, the next deploy replaces it")
        return SlotRecord.model_validate({**extra, "name": slot, "port": port, "adopted_id": container.container_id})
    state = _state(seen, slot, active)
    ends = (former.grace_expires_at if former else None) or now + GRACE
    return SlotRecord.model_validate(
        {
            **extra,
            "name": slot,
            "port": port,
            "state": state,
            "version": _version(container, former),
            "image": container.image,
            "image_id": container.image_id,
            "container_name": container.name,
            "adopted_id": container.container_id,
            "health_status": "unknown",
            "deployed_at": container.deployed_at or (former.deployed_at if former else None),
            "deployed_by": former.deployed_by if former else None,
            "promoted_at": former.promoted_at if former else None,
            "promoted_by": former.promoted_by if former else None,
            "grace_expires_at": ends if state is SlotState.GRACE else None,
        }
    )


def _state(seen: Seen, slot: Slot, active: Slot | None) -> SlotState:
    """Live, or the way back when its file says so or it is older than what is live, else waiting."""
    if slot is active:
        return SlotState.ACTIVE
    former = seen.document.record(slot).state if seen.document else SlotState.EMPTY
    if active is None or former is SlotState.DEPLOYED:
        return SlotState.DEPLOYED
    if former in (SlotState.GRACE, SlotState.ACTIVE):
        return SlotState.GRACE
    mine, live = seen.containers[slot].deployed_at, seen.containers[active].deployed_at
    return SlotState.GRACE if mine and live and mine < live else SlotState.DEPLOYED


def _version(container: Running, former: SlotRecord | None) -> str:
    candidates = (
        container.labels.get("codeb.version"),
        former.version if former else None,
        image_parts(container.image)[1],
    )
    good = (text for text in candidates if text and re.fullmatch(VERSION_PATTERN, text))
    return next(good, container.image_id.removeprefix("sha256:")[:12])
