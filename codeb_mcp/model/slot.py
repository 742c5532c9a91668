"""Slots of an environment and every move they may make.

`empty → deployed → active → grace → empty`; a rollback moves `grace → active` and the former active to `grace`.
The document's keys are those of the infrastructure guide §3; unknown keys survive a round trip.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment, Slot, environment_key
from codeb_mcp.model.times import Moment, utc_text


class SlotState(StrEnum):
    """What a slot holds."""

    EMPTY = "empty"
    DEPLOYED = "deployed"
    ACTIVE = "active"
    GRACE = "grace"


class Move(StrEnum):
    """What can happen to one slot."""

    DEPLOY = "deploy"
    PROMOTE = "promote"
    DEMOTE = "demote"
    ROLL_BACK = "roll_back"
    CLEAN = "clean"


MOVES: Mapping[tuple[SlotState, Move], SlotState] = {
    (SlotState.EMPTY, Move.DEPLOY): SlotState.DEPLOYED,
    (SlotState.DEPLOYED, Move.PROMOTE): SlotState.ACTIVE,
    (SlotState.ACTIVE, Move.DEMOTE): SlotState.GRACE,
    (SlotState.GRACE, Move.ROLL_BACK): SlotState.ACTIVE,
    (SlotState.DEPLOYED, Move.CLEAN): SlotState.EMPTY,
    (SlotState.GRACE, Move.CLEAN): SlotState.EMPTY,
    (SlotState.EMPTY, Move.CLEAN): SlotState.EMPTY,
}


def moved(state: SlotState, move: Move) -> SlotState:
    """The state after the move; raises Conflict when the table does not know it."""
    try:
        return MOVES[state, move]
    except KeyError:
        raise Conflict(f"a slot that is {state} cannot {move.replace('_', ' ')}", hint="Look at slot_status.") from None


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    def dump(self) -> dict[str, Any]:
        """The JSON form: camelCase, without keys that have no value."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class SlotRecord(_Document):
    """One slot as the registry knows it. `adopted_id`: the container of an earlier installation that stands, or stood, there
    and may be replaced although it does not carry our labels."""

    name: Slot
    state: SlotState = SlotState.EMPTY
    port: int
    version: str | None = None
    image: str | None = None
    digest: str | None = None
    image_id: str | None = None
    container_name: str | None = None
    run_id: str | None = None
    health_path: str | None = None
    health_status: str | None = None
    health_checked_at: Moment | None = None
    env_hash: str | None = None
    deployed_at: Moment | None = None
    deployed_by: str | None = None
    promoted_at: Moment | None = None
    promoted_by: str | None = None
    grace_expires_at: Moment | None = None
    rolled_back_at: Moment | None = None
    adopted_id: str | None = None

    def emptied(self) -> SlotRecord:
        """The slot with nothing in it; only its name and port stay, the id of a container that is still to be removed, and
        keys we do not know."""
        known = {"name": self.name, "port": self.port, "state": SlotState.EMPTY, "adopted_id": self.adopted_id}
        return SlotRecord.model_validate({**(self.model_extra or {}), **known})

    def grace_is_over(self, now: datetime) -> bool:
        """Whether a grace slot may be taken away; a grace slot without an end never expires by itself."""
        return self.state is SlotState.GRACE and self.grace_expires_at is not None and self.grace_expires_at <= now


class Slots(_Document):
    """Both slots of one environment: the document `slots/{project}-{environment}.json`. `adopted_route`: the proxy serves it
    by the route of an earlier installation, until the first switch puts ours in its place."""

    project_name: str
    team_id: str = "default"
    environment: Environment
    active_slot: Slot | None = None
    blue: SlotRecord
    green: SlotRecord
    last_updated: Moment | None = None
    adopted_route: bool | None = None

    @classmethod
    def fresh(cls, project: str, team: str, environment: Environment, ports: tuple[int, int], now: datetime) -> Slots:
        """Two empty slots on their ports (blue, green)."""
        return cls(
            project_name=project,
            team_id=team,
            environment=environment,
            blue=SlotRecord(name=Slot.BLUE, port=ports[0]),
            green=SlotRecord(name=Slot.GREEN, port=ports[1]),
            last_updated=now,
        )

    @property
    def key(self) -> str:
        """`{project}-{environment}`."""
        return environment_key(self.project_name, self.environment)

    def record(self, slot: Slot) -> SlotRecord:
        """The record of one slot."""
        return self.blue if slot is Slot.BLUE else self.green

    @property
    def active(self) -> SlotRecord | None:
        """The slot that has the traffic, if one has."""
        return self.record(self.active_slot) if self.active_slot else None

    def in_state(self, state: SlotState) -> SlotRecord | None:
        """The first slot in that state."""
        return next((record for record in (self.blue, self.green) if record.state is state), None)

    def _with(self, now: datetime, *records: SlotRecord, **fields: Any) -> Slots:
        changed = {record.name.value: record for record in records}
        return self.model_copy(update={**changed, **fields, "last_updated": now})

    def deployed(self, slot: Slot, now: datetime, by: str, release: Mapping[str, Any]) -> Slots:
        """The release stands in the slot, proven healthy, without live traffic. `release`: version, image, digest,
        image_id, container_name, run_id, health_path, health_status, env_hash."""
        before = self.record(slot)
        state = moved(before.state, Move.DEPLOY)
        update = {**release, "state": state, "deployed_at": now, "deployed_by": by, "health_checked_at": now}
        update["adopted_id"] = None
        return self._with(now, before.emptied().model_copy(update=update))

    def promoted(self, slot: Slot, now: datetime, by: str, grace: timedelta) -> Slots:
        """The slot gets the traffic; the former active one stays warm for `grace`. An empty slot is never made a grace
        slot, so there is no rollback target that does not exist."""
        target = self.record(slot)
        move = Move.ROLL_BACK if target.state is SlotState.GRACE else Move.PROMOTE
        update: dict[str, Any] = {"state": moved(target.state, move), "grace_expires_at": None}
        update |= {"rolled_back_at": now} if move is Move.ROLL_BACK else {"promoted_at": now, "promoted_by": by}
        records = [target.model_copy(update=update)]
        former = self.active
        if former is not None and former.name is not slot:
            state = moved(former.state, Move.DEMOTE)
            records.append(former.model_copy(update={"state": state, "grace_expires_at": now + grace}))
        return self._with(now, *records, active_slot=slot, adopted_route=None)

    def cleaned(self, slot: Slot, now: datetime) -> Slots:
        """The slot is empty; raises Conflict for the active one."""
        record = self.record(slot)
        moved(record.state, Move.CLEAN)
        return self._with(now, record.emptied())

    def checked(self, slot: Slot, now: datetime, status: str) -> Slots:
        """The slot's health as just seen."""
        return self._with(now, self.record(slot).model_copy(update={"health_status": status, "health_checked_at": now}))


class Refusal(BaseModel):
    """Why a slot may not be taken."""

    message: str
    hint: str
    detail: dict[str, Any] = Field(default_factory=dict)


def choose_slot(slots: Slots, now: datetime, *, force: bool) -> Slot | Refusal:
    """The slot a new release goes to: the one without traffic. An unexpired grace slot is the way back and is not taken
    unless `force` says so."""
    idle = slots.record(slots.active_slot.other if slots.active_slot else _idle_of_two(slots))
    if idle.state is SlotState.GRACE and not idle.grace_is_over(now) and not force:
        until = utc_text(idle.grace_expires_at) if idle.grace_expires_at else "no end"
        return Refusal(
            message=f"slot {idle.name} still is the way back to version {idle.version} (grace until {until})",
            hint="Wait, run slot_cleanup, or repeat with force: true; then a rollback is no longer possible.",
            detail={"wouldLose": idle.version, "graceExpiresAt": until, "slot": idle.name.value},
        )
    return idle.name


def _idle_of_two(slots: Slots) -> Slot:
    """With nothing live, a waiting release is replaced rather than joined by a second one; else a free slot is taken."""
    idle = slots.in_state(SlotState.DEPLOYED) or slots.in_state(SlotState.EMPTY)
    return idle.name if idle else Slot.BLUE


def rollback_target(slots: Slots, now: datetime) -> SlotRecord | Refusal:
    """The slot to go back to: warm and inside its grace period."""
    target = slots.in_state(SlotState.GRACE)
    if target is None:
        return Refusal(
            message=f"{slots.key} has no slot in grace to go back to",
            hint="Deploy the version you want and promote it.",
        )
    if (ended := target.grace_expires_at) and target.grace_is_over(now):
        return Refusal(
            message=f"the grace period of slot {target.name} ended at {utc_text(ended)}",
            hint=f"Deploy version {target.version} again and promote it.",
        )
    return target
