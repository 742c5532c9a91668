"""Slots from what is really there: labels of containers and the traffic flag. Used when a document is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from codeb_mcp.model.names import Environment, Slot, split_environment_key
from codeb_mcp.model.project import EnvironmentSettings, public_host
from codeb_mcp.model.routes import Site
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState

GRACE = timedelta(hours=48)


@dataclass(frozen=True, slots=True)
class Remains:
    """A container of ours as its labels tell. `deployed_at` None: the label is missing or unreadable."""

    name: str
    project: str
    environment: Environment
    slot: Slot
    team: str
    version: str
    image: str
    image_id: str
    digest: str
    run_id: str
    port: int
    deployed_at: datetime | None


@dataclass(frozen=True, slots=True)
class LastSwitch:
    """The latest promote or rollback that succeeded: which slot lost the traffic, since when, and how long it stays."""

    from_slot: Slot | None
    at: datetime
    grace_expires_at: datetime | None

    def left(self, one: Remains) -> bool:
        """Whether this container is what had the traffic before: a later one in the same slot waits."""
        return one.slot is self.from_slot and one.deployed_at is not None and one.deployed_at <= self.at


@dataclass(frozen=True, slots=True)
class Told:
    """What others tell of an environment: its ports (blue, green) by the proxy, its last switch by the journals."""

    ports: tuple[int, int] | None = None
    switch: LastSwitch | None = None


UNTOLD = Told()


def slots_from_remains(
    remains: Sequence[Remains], live: Slot | None, former: Slots | None, now: datetime, told: Told = UNTOLD
) -> Slots:
    """The slots of one environment. A record of `former` is kept where the same release still stands; a container without
    traffic that is older than the live one counts as the way back, a newer one as waiting.

    Raises ValueError when there are neither containers nor a former document to tell the ports.
    """
    by_slot = {one.slot: one for one in remains}
    if former is None and not remains:
        raise ValueError("nothing is left of this environment")
    first = remains[0] if remains else None
    ports = _ports(by_slot, former, told)
    active = live if live in by_slot else None
    records = {
        slot: _record(slot, ports[slot], by_slot, active, former.record(slot) if former else None, now) for slot in Slot
    }
    if active is not None and told.switch is not None:
        idle = active.other
        records[idle] = _graced(records[idle], by_slot.get(idle), told.switch)
    return Slots(
        project_name=first.project if first else former.project_name if former else "",
        team_id=first.team if first and first.team else former.team_id if former else "default",
        environment=first.environment if first else former.environment if former else Environment.STAGING,
        active_slot=active,
        blue=records[Slot.BLUE],
        green=records[Slot.GREEN],
        last_updated=now,
    )


def _graced(record: SlotRecord, one: Remains | None, switch: LastSwitch) -> SlotRecord:
    """The record of the slot without traffic: the way back when the last switch took the traffic from it, else waiting."""
    if one is None or record.state not in (SlotState.DEPLOYED, SlotState.GRACE):
        return record
    if not switch.left(one):
        return record.model_copy(update={"state": SlotState.DEPLOYED, "grace_expires_at": None})
    return record.model_copy(update={"state": SlotState.GRACE, "grace_expires_at": switch.grace_expires_at})


def _ports(by_slot: Mapping[Slot, Remains], former: Slots | None, told: Told) -> dict[Slot, int]:
    """Blue has the even port of the pair, green the odd one above it."""
    if former is not None:
        return {slot: former.record(slot).port for slot in Slot}
    if told.ports is not None:
        return dict(zip((Slot.BLUE, Slot.GREEN), told.ports, strict=True))
    one = next(iter(by_slot.values()))
    blue = one.port if one.slot is Slot.BLUE else one.port - 1
    return {Slot.BLUE: blue, Slot.GREEN: blue + 1}


def _record(
    slot: Slot,
    port: int,
    by_slot: Mapping[Slot, Remains],
    active: Slot | None,
    former: SlotRecord | None,
    now: datetime,
) -> SlotRecord:
    one = by_slot.get(slot)
    if one is None:
        return former.emptied() if former else SlotRecord(name=slot, port=port)
    same = former is not None and former.run_id == one.run_id and former.state is not SlotState.EMPTY
    if former is not None and same and (former.state is SlotState.ACTIVE) == (slot is active):
        return former
    state = _state(slot, one, by_slot.get(active) if active else None, slot is active)
    found: dict[str, Any] = {
        "name": slot, "port": port, "state": state, "version": one.version, "image": one.image, "digest": one.digest,
        "image_id": one.image_id, "container_name": one.name, "run_id": one.run_id, "deployed_at": one.deployed_at,
        "health_status": "unknown", "grace_expires_at": now + GRACE if state is SlotState.GRACE else None,
        "health_path": former.health_path if same and former else None,
    }  # fmt: skip
    return SlotRecord(**found)


def _state(slot: Slot, one: Remains, live: Remains | None, is_live: bool) -> SlotState:  # noqa: FBT001 - a decision table
    if is_live:
        return SlotState.ACTIVE
    if live is None or one.deployed_at is None or live.deployed_at is None:
        return SlotState.DEPLOYED
    return SlotState.GRACE if one.deployed_at < live.deployed_at else SlotState.DEPLOYED


@dataclass(frozen=True, slots=True)
class Known:
    """What `ssot` can still tell: its projects, and whether nothing of it is lost. Projects that it does not name are told
    by their routes."""

    projects: Mapping[str, Any]
    whole: bool
    base_domain: str

    def public_host(self, project: str, environment: Environment) -> str | None:
        """The one host that the environment has by itself, default or chosen; None for a project that is not known."""
        entry = self.projects.get(project)
        return None if entry is None else _public_host(project, environment, entry, self.base_domain)

    def public_hosts(self) -> dict[str, str]:
        """The host that each environment has by itself, and whose it is."""
        return {
            _public_host(project, environment, entry, self.base_domain): f"{project}-{environment}"
            for project, entry in self.projects.items()
            for environment in Environment
            if environment.value in entry.get("ports", {})
        }


def _public_host(project: str, environment: Environment, entry: Mapping[str, Any], base_domain: str) -> str:
    settings = entry.get("settings", {}).get("environments", {}).get(environment.value, {})
    chosen = EnvironmentSettings.model_construct(domain=settings.get("domain"))
    return public_host(project, environment, chosen, base_domain)


def further_domains(sites: Sequence[Site], known: Known) -> dict[str, list[dict[str, str]]]:
    """By project, the entries of its document of domains: every host that a route serves beyond the one that the
    environment has by itself. A host that by now is another environment's own is left to that."""
    taken = known.public_hosts()
    found: dict[str, list[dict[str, str]]] = {}
    for site in sites:
        project, environment = split_environment_key(site.key)
        for host in _beyond(site, known.public_host(project, environment), whole=known.whole):
            if taken.get(host, site.key) == site.key:
                entry = {"domain": host, "environment": environment.value}
                found.setdefault(project, []).append(entry)
    return found


def _beyond(site: Site, own: str | None, *, whole: bool) -> Sequence[str]:
    """A route names the environment's own host first. When a whole `ssot` knows that one by another name, the route is
    older than the change, and the former name must not come back."""
    if own is None or (whole and own not in site.hosts):
        return site.hosts[1:]
    return [host for host in site.hosts if host != own]
