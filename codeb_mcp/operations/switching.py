"""Actions that lead traffic to a slot, and prove that it arrives: on every proxy in front of the environment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import timedelta
from typing import Any

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.errors import CodebError, DriverRefused
from codeb_mcp.model.machine import Action
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import Site
from codeb_mcp.model.slot import Slots, SlotState
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.flags_seen import advice, require_flags_seen
from codeb_mcp.operations.health_gate import require_image
from codeb_mcp.operations.perform import Performer, healthy_everywhere, step
from codeb_mcp.operations.places import Place, on_all
from codeb_mcp.operations.routing import ensure_site
from codeb_mcp.operations.state import site_of, url_of

VERIFY_TRIES = 5
VERIFY_PAUSE_SECONDS = 0.1
DRAIN_PAUSE_SECONDS = 0.1


@step("publish_preview")
async def publish_preview(run: Performer, action: Action) -> Mapping[str, Any]:
    """See that the slot's preview address really answers; raises DriverRefused when it does not."""
    slots = await run.slots(action.detail["key"])
    slot = Slot(action.detail["slot"])
    site = await site_of(run.store, run.services.settings, slots)
    await on_all((await run.places(action)).fronts, lambda place: _publish_at(run, place, slots, site, slot))
    return {"previewUrl": url_of(run.services.settings, _preview_host(site, slot))}


def _preview_host(site: Site, slot: Slot) -> str:
    return (site.blue_preview if slot is Slot.BLUE else site.green_preview) or ""


async def _publish_at(run: Performer, place: Place, slots: Slots, site: Site, slot: Slot) -> None:
    await _prepare_flag(run, place, slots)
    # The route is there but for once, so it is asked for together with what it leads to.
    asked = (slots, site, _preview_host(site, slot), slots.record(slot).health_path or "/")
    routed, answers = await asyncio.gather(place.drivers.proxy.has(site), _who_answers(run, place, *asked))
    if not routed:
        if slots.adopted_route:
            raise DriverRefused(
                f"{slots.key} is served by the route of the earlier installation until its first promote",
                hint="Promote: that puts our route in its place, and the preview addresses with it.",
            )
        await place.drivers.proxy.apply(upsert=[site])
        answers = await _who_answers(run, place, *asked)
    preview, unseen = answers
    if preview.status is None or preview.slot != slot.value:
        said = f"{_preview_host(site, slot)} does not reach slot {slot}: {_words(preview)}"
        raise DriverRefused(said, hint="Run registry_check.")
    if unseen is not None:
        raise unseen


async def _who_answers(
    run: Performer, place: Place, slots: Slots, site: Site, preview: str, path: str
) -> tuple[Answer, CodebError | None]:
    """What the preview address answers, and what is wrong with who answers the public one."""
    return await asyncio.gather(
        place.drivers.prober.public(preview, path, timeout_seconds=5),
        _problem_of(require_flags_seen(run.services, place, slots.key, site.hosts[0], path)),
    )


@step("check_target")
async def check_target(run: Performer, action: Action) -> Mapping[str, Any]:
    """The container runs the deployed image and is healthy right now."""
    detail = action.detail
    await on_all(
        (await run.places(action)).apps,
        lambda place: require_image(place.drivers.containers, detail["name"], detail["imageId"]),
    )
    return await healthy_everywhere(run, action)


@step("ensure_route")
async def ensure_route(run: Performer, action: Action) -> Mapping[str, Any]:
    """The proxy has both slots of the environment; changes nothing when it has."""
    slots = await run.slots(action.detail["key"])
    site = await site_of(run.store, run.services.settings, slots)

    async def ensure(place: Place) -> bool:
        await _prepare_flag(run, place, slots)
        return await ensure_site(place, site, take_over=bool(slots.adopted_route))

    changed = await on_all((await run.places(action)).fronts, ensure)
    return {"changed": any(changed), "hosts": list(site.hosts)}


async def _prepare_flag(run: Performer, place: Place, slots: Slots) -> None:
    """An environment that never had traffic is switched off before its route exists, so that nothing unproven serves."""
    if await place.drivers.traffic.live(slots.key) is None:
        await place.drivers.traffic.switch(slots.key, slots.active_slot, fence=run.fence.token)


@step("check_flags")
async def check_flags(run: Performer, action: Action) -> Mapping[str, Any]:
    """The slot that is to get the traffic has none yet, so that its answer will prove the switch."""
    detail = action.detail
    await on_all(
        (await run.places(action)).fronts,
        lambda place: require_flags_seen(run.services, place, detail["key"], detail["host"], detail["path"]),
    )
    return {}


@step("switch_traffic")
async def switch_traffic(run: Performer, action: Action) -> Mapping[str, Any]:
    """One atomic rename of a flag file, on each proxy."""
    key, slot = action.detail["key"], Slot(action.detail["slot"]) if action.detail["slot"] else None
    moved = await on_all(
        (await run.places(action)).fronts,
        lambda place: place.drivers.traffic.switch(key, slot, fence=run.fence.token),
    )
    return {"moved": any(moved)}


@step("verify_public")
async def verify_public(run: Performer, action: Action) -> Mapping[str, Any]:
    """A request over each public host reached this slot, and its container runs the deployed image."""
    detail, placement = action.detail, await run.places(action)

    async def right_image(place: Place) -> None:
        await require_image(place.drivers.containers, detail["name"], detail["imageId"])

    async def reached(place: Place) -> None:
        problems = await asyncio.gather(*(_verify_host(run, place, host, detail) for host in detail["hosts"]))
        if (problem := next(filter(None, problems), None)) is not None:
            raise problem

    problems = await asyncio.gather(
        _problem_of(on_all(placement.apps, right_image)), _problem_of(on_all(placement.fronts, reached))
    )
    if (problem := next(filter(None, problems), None)) is not None:
        raise problem
    return {"hosts": list(detail["hosts"])}


async def _problem_of(work: Awaitable[Any]) -> CodebError | None:
    try:
        await work
    except CodebError as error:
        return error
    return None


async def _verify_host(run: Performer, place: Place, host: str, detail: Mapping[str, Any]) -> CodebError | None:
    answer = Answer(None, problem="was not asked")
    for left in reversed(range(VERIFY_TRIES)):
        for path in detail["paths"]:
            answer = await place.drivers.prober.public(host, path, timeout_seconds=5)
            if answer.slot == detail["slot"] and answer.status in detail["expected"]:
                return None
        if left:
            await asyncio.sleep(VERIFY_PAUSE_SECONDS)
    return DriverRefused(
        f"{host} did not reach slot {detail['slot']}: {_words(answer)}",
        hint=advice(run.services.settings)
        if answer.slot
        else "See that the proxy is up and that no other site claims this host (registry_check).",
        host=host,
    )


def _words(answer: Answer) -> str:
    if answer.status is None:
        return answer.problem or "no answer"
    return f"status {answer.status} from {'slot ' + answer.slot if answer.slot else 'no slot of ours'}"


@step("record_switch")
async def record_switch(run: Performer, action: Action) -> Mapping[str, Any]:
    """Write who is active and until when the former one stays warm."""
    slot, now = Slot(action.detail["slot"]), run.drivers.clock.now()
    grace = timedelta(hours=action.detail["graceHours"])

    def record(slots: Slots) -> Slots:
        return slots if slots.active_slot is slot else slots.promoted(slot, now, action.detail["by"], grace)

    slots = await run.change(action.detail["key"], record)
    former = slots.in_state(SlotState.GRACE)
    ends = former.grace_expires_at if former else None
    return {"graceExpiresAt": utc_text(ends) if ends else None}


@step("drain")
async def drain(run: Performer, action: Action) -> Mapping[str, Any]:
    """Count the former slot's requests to zero, or to the deadline; `{inFlight, seconds, drained}`."""
    port = action.detail["port"]
    if port is None:
        return {"inFlight": 0, "seconds": 0.0, "drained": True}
    loop = asyncio.get_running_loop()
    started, placement = loop.time(), await run.places(action)
    while True:
        counts = await on_all(placement.fronts, lambda place: place.drivers.proxy.in_flight(port, placement.addresses))
        count = sum(one or 0 for one in counts)
        spent = loop.time() - started
        if count == 0 or spent >= action.detail["seconds"]:
            return {"inFlight": count, "seconds": round(spent, 3), "drained": count == 0}
        run.report(action, None, f"{count} requests still run on port {port}")
        await asyncio.sleep(DRAIN_PAUSE_SECONDS)
