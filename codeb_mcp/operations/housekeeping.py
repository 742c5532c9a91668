"""What has to happen by itself: expire grace slots, take up open runs, refresh health, restore routes, collect garbage."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from codeb_mcp.model.errors import CodebError, Conflict, LockHeld, NotFound
from codeb_mcp.model.names import lease_name
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.answers import new_run_id
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.domain_work import look_after_domains
from codeb_mcp.operations.env_copies import catch_up
from codeb_mcp.operations.flags_seen import hidden_flags
from codeb_mcp.operations.garbage import collect_images
from codeb_mcp.operations.health import probe_slot
from codeb_mcp.operations.keys import KEY_USE, KeyRing
from codeb_mcp.operations.places import Place, every_place, on_all, placement_left, placement_of
from codeb_mcp.operations.previews import end_closed_previews, expire_previews
from codeb_mcp.operations.routing import ensure_flag
from codeb_mcp.operations.state import change_slots, environments, load_project, site_of
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.store import Change, update

PROBES_AT_ONCE = 16
KEEP_RUNS = 2000
DAY_SECONDS = 86_400.0
REQUESTS = "idempotency/"
GARBAGE_EVERY = timedelta(minutes=10)
DOMAINS_EVERY = timedelta(minutes=10)
PULLS_EVERY = timedelta(minutes=5)


@dataclass(slots=True)
class Report:
    """What one round did."""

    expired: list[str] = field(default_factory=list)
    previews_ended: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    health_changed: list[str] = field(default_factory=list)
    images_removed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Housekeeper:
    """Keeps one installation tidy; `ring` tells which keys were used.

    Every duty is on its own: one that fails does not keep the others from being done.
    """

    def __init__(self, services: Services, ring: KeyRing | None = None) -> None:
        self.services = services
        self.ring = ring or KeyRing()
        self._last_garbage: datetime | None = None
        self._last_domains: datetime | None = None
        self._asked_for_pulls: datetime | None = None

    async def run(self) -> None:
        """A round now and then every `housekeeping_seconds`, until cancelled."""
        for problem in hidden_flags(self.services.settings):
            self.services.log.warning("traffic flags", problem=problem)
        while True:
            report = await self.once()
            for problem in report.problems:
                self.services.log.warning("housekeeping", problem=problem)
            await asyncio.sleep(self.services.settings.housekeeping_seconds)

    async def once(self) -> Report:
        """One round; answers what it did."""
        report = Report()
        duties: tuple[Callable[[Report], Awaitable[None]], ...] = (
            self._resume,
            self._expire,
            self._end_previews,
            self._restore_routes,
            self._look_after_domains,
            self._refresh_health,
            self._note_use,
            self._copy_variables,
            self._collect,
        )
        for duty in duties:
            try:
                await duty(report)
            except CodebError as error:
                report.problems.append(f"{duty.__name__.strip('_')}: {error.message}")
            except Exception:
                self.services.log.exception("housekeeping crashed", duty=duty.__name__)
                report.problems.append(f"{duty.__name__.strip('_')}: crashed, see the log")
        report.problems = list(dict.fromkeys(report.problems))
        return report

    async def _resume(self, report: Report) -> None:
        report.resumed += await self.services.runs.resume_all()

    async def _expire(self, report: Report) -> None:
        now = self.services.drivers.clock.now()
        for slots in await environments(self.services.store, report.problems):
            for record in (slots.blue, slots.green):
                if record.grace_is_over(now):
                    await self._retire(slots, record, now, report)

    async def _retire(self, slots: Slots, record: SlotRecord, now: datetime, report: Report) -> None:
        header = RunHeader(
            run_id=new_run_id(now),
            kind="slot_cleanup",
            request={"projectName": slots.project_name, "environment": slots.environment.value},
            caller={
                "keyId": "housekeeper",
                "name": "housekeeper",
                "team": slots.team_id,
                "role": "admin",
                "via": "timer",
            },
            team=slots.team_id,
            project=slots.project_name,
            environment=slots.environment.value,
            created_at=now,
            correlation_id=new_run_id(now),
            dedupe=(),
            deadline_seconds=900,
        )
        try:
            await self.services.runs.start(header)
            await self.services.runs.wait(header.run_id)
        except LockHeld:
            return
        except CodebError as error:
            report.problems.append(f"{slots.key} {record.name} could not be retired: {error.message}")
            return
        report.expired.append(f"{slots.key}-{record.name}")

    async def _end_previews(self, report: Report) -> None:
        now = self.services.drivers.clock.now()
        report.previews_ended += await expire_previews(self.services, now, report.problems)
        if self._asked_for_pulls is None or now - self._asked_for_pulls >= PULLS_EVERY:
            self._asked_for_pulls = now
            report.previews_ended += await end_closed_previews(self.services, now, report.problems)

    async def _restore_routes(self, report: Report) -> None:
        """A proxy that came back without its configuration gets our sites again; nothing else is changed by itself."""
        every = await environments(self.services.store, report.problems)
        for place in await every_place(self.services):
            try:
                await self._restore_at(place, every, report)
            except CodebError as error:
                report.problems.append(f"routes of {place.named}: {error.message}")

    async def _restore_at(self, place: Place, every: Sequence[Slots], report: Report) -> None:
        """What is being deleted gets no route, and what was deleted meanwhile loses it again, so that no route outlives its
        site."""
        proxy, store = place.drivers.proxy, self.services.store
        present = set(await proxy.sites())
        sites = []
        for slots in every:
            if slots.key in present or slots.adopted_route or not await self._is_front(place, slots):
                continue
            try:
                await ensure_flag(self.services, slots, [place])
                sites.append(await site_of(store, self.services.settings, slots))
            except LockHeld:
                continue
            except CodebError as error:
                report.problems.append(f"route of {slots.key}: {error.message}")
        if not sites:
            return
        await proxy.apply(upsert=sites)
        gone = [site.key for site in sites if await store.get(f"slots/{site.key}") is None]
        if gone:
            await proxy.apply(remove=gone)
        report.routes += [site.key for site in sites if site.key not in gone]

    async def _is_front(self, place: Place, slots: Slots) -> bool:
        """Whether the environment is there, is not being deleted, and its traffic is led by that place's proxy."""
        try:
            fronts = (await placement_left(self.services, slots.key)).fronts
        except NotFound:
            return False
        being_deleted = await self.services.store.lease(lease_name(slots.project_name, None)) is not None
        return place.key in {one.key for one in fronts} and not being_deleted

    async def _look_after_domains(self, report: Report) -> None:
        """Those that wait or leave each round; those that serve now and then, so that nobody is surprised by an expired
        certificate."""
        now = self.services.drivers.clock.now()
        active = self._last_domains is None or now - self._last_domains >= DOMAINS_EVERY
        if active:
            self._last_domains = now
        report.domains += await look_after_domains(self.services, report.problems, active=active)

    async def _refresh_health(self, report: Report) -> None:
        bound = asyncio.Semaphore(PROBES_AT_ONCE)

        async def refresh(slots: Slots, record: SlotRecord) -> None:
            async with bound:
                await self._refresh_slot(slots, record, report)

        every = await environments(self.services.store, report.problems)
        async with asyncio.TaskGroup() as group:
            for slots in every:
                for record in (slots.blue, slots.green):
                    if record.state is not SlotState.EMPTY:
                        group.create_task(refresh(slots, record))

    async def _refresh_slot(self, slots: Slots, record: SlotRecord, report: Report) -> None:
        """Written only when it changed: a registry that is written every round wears out disks and hides real changes."""
        try:
            project = await load_project(self.services.store, slots.project_name)
            placement, health = await placement_of(self.services, slots.key), project.settings.health_check
            probed = await on_all(placement.apps, lambda place: probe_slot(placement, place, record, health))
            status = next((one for one, _ in probed if one != "healthy"), "healthy")
            if status == record.health_status:
                return
            now = self.services.drivers.clock.now()

            def change(present: Slots) -> Slots:
                there = present.record(record.name)
                same = there.run_id == record.run_id and there.state is record.state
                return present.checked(record.name, now, status) if same else present

            await change_slots(self.services.store, slots.key, change)
        except CodebError as error:
            report.problems.append(f"health of {slots.key}: {error.message}")
            return
        report.health_changed.append(f"{slots.key}-{record.name}: {status}")

    async def _copy_variables(self, report: Report) -> None:
        report.problems += await catch_up(self.services)

    async def _note_use(self, report: Report) -> None:
        """When each key was last used, written once a round at most."""
        used, self.ring.used = self.ring.used, {}
        if used:
            times = {key_id: utc_text(moment) for key_id, moment in used.items()}
            await update(self.services.store, KEY_USE, lambda doc: {**(doc or {}), **times})

    async def _forget_requests(self, now: datetime) -> None:
        """Requests can be joined for an hour; what is remembered of them goes after a day."""
        store = self.services.store
        for key in await store.keys(REQUESTS):
            stored = await store.get(key)
            if stored and now - datetime.fromisoformat(stored.doc["createdAt"]) > timedelta(seconds=DAY_SECONDS):
                with contextlib.suppress(Conflict):
                    await store.commit([Change(key, None, stored.version)])
        await store.forget_deleted(REQUESTS, older_than_seconds=DAY_SECONDS)

    async def _collect(self, report: Report) -> None:
        now = self.services.drivers.clock.now()
        if self._last_garbage is not None and now - self._last_garbage < GARBAGE_EVERY:
            return
        self._last_garbage = now
        await self.services.registry.journals.prune(KEEP_RUNS)
        await self._forget_requests(now)
        await asyncio.to_thread(self.services.registry.limiter.prune, older_than_seconds=DAY_SECONDS)
        report.images_removed += await collect_images(self.services)
