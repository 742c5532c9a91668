"""Actions of machines become driver calls: one function an action, each harmless to repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

from codeb_mcp.drivers.protocols import Answer, ContainerSpec
from codeb_mcp.model.errors import Bug, CodebError, DriverRefused
from codeb_mcp.model.machine import Action
from codeb_mcp.model.names import Slot, split_environment_key
from codeb_mcp.model.project import HealthCheck, Limits
from codeb_mcp.model.routes import Site
from codeb_mcp.model.slot import Slots, SlotState
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.envfile import read_env
from codeb_mcp.operations.flags_seen import advice, require_flags_seen
from codeb_mcp.operations.garbage import remember_image
from codeb_mcp.operations.health_gate import require_image, wait_healthy
from codeb_mcp.operations.state import change_slots, find_slots, load_slots, site_of, url_of
from codeb_mcp.registry.store import Fence

INSTALLATION = "codeb.installation"
"""Label with the registry's lineage: several installations may share an engine."""
VERIFY_TRIES = 5
VERIFY_PAUSE_SECONDS = 0.1
DRAIN_PAUSE_SECONDS = 0.1

Report = Callable[[Action, float | None, str], None]
Step = Callable[["Performer", Action], Awaitable[Mapping[str, Any]]]
STEPS: dict[str, Step] = {}


def step(name: str) -> Callable[[Step], Step]:
    """Register what an action of this name does."""

    def register(function: Step) -> Step:
        STEPS[name] = function
        return function

    return register


class Performer:
    """Carries out the actions of one run under its fence."""

    def __init__(self, services: Services, installation: str, fence: Fence, kind: str, report: Report) -> None:
        self.services = services
        self.drivers = services.drivers
        self.store = services.store
        self.installation = installation
        self.fence = fence
        self.kind = kind
        self.report = report

    async def perform(self, action: Action) -> Mapping[str, Any]:
        """Do it; raises CodebError, and nothing else but cancellation."""
        try:
            function = STEPS[action.name]
        except KeyError:
            raise Bug(f"nothing knows how to {action.name}", hint="Use the version that wrote this run.") from None
        try:
            return await function(self, action)
        except (CodebError, asyncio.CancelledError, TimeoutError):
            raise
        except Exception as problem:
            self.services.log.exception("step crashed", step=action.name)
            raise Bug(
                f"step {action.step} crashed", hint="Look at the server's log.", kind=type(problem).__name__
            ) from problem

    async def slots(self, key: str) -> Slots:
        """The slots of `{project}-{environment}`."""
        return await load_slots(self.store, *split_environment_key(key))

    async def change(self, key: str, change: Callable[[Slots], Slots]) -> Slots:
        """Change the slots under this run's fence."""
        return await change_slots(self.store, key, change, self.fence)


# ── deploy ──────────────────────────────────────────────────────────────────────────────────────────────────────


@step("pull_image")
async def pull_image(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have the image on the engine and know its digest."""
    before = await run.drivers.images.find(action.detail["image"])
    image = await run.drivers.images.pull(
        action.detail["image"],
        policy=action.detail["policy"],
        progress=lambda fraction, text: run.report(action, fraction, text),
    )
    came = before is None or before.image_id != image.image_id
    if came and action.detail["policy"] != "never":
        await remember_image(run.services, action.detail["project"], image)
    return {"imageId": image.image_id, "digest": image.digest, "reference": image.reference, "bytes": image.size_bytes}


@step("empty_slot")
async def empty_slot(run: Performer, action: Action) -> Mapping[str, Any]:
    """Strike the slot's release from the registry."""
    slot, now = Slot(action.detail["slot"]), run.drivers.clock.now()
    key = action.detail["key"]
    if await find_slots(run.store, *split_environment_key(key)) is None:
        return {"slot": slot.value, "was": SlotState.EMPTY.value}
    was: list[str] = []

    def clean(slots: Slots) -> Slots:
        was.append(slots.record(slot).state.value)
        return slots if slots.record(slot).state is SlotState.EMPTY else slots.cleaned(slot, now)

    await run.change(key, clean)
    return {"slot": slot.value, "was": was[-1]}


@step("remove_container")
async def remove_container(run: Performer, action: Action) -> Mapping[str, Any]:
    """Stop and remove it, if it is there."""
    await require_ours(run, action.detail["name"])
    removed = await run.drivers.containers.remove(
        action.detail["name"],
        fence=run.fence.token,
        stop_timeout_seconds=action.detail["stopTimeout"],
        adopted=await adopted_id(run, action.detail.get("key"), action.detail["name"]),
    )
    return {"removed": removed}


async def adopted_id(run: Performer, key: str | None, name: str) -> str | None:
    """The id of the adopted container of that name in the environment `key`, if there was one."""
    slots = await find_slots(run.store, *split_environment_key(key)) if key else None
    records = (slots.blue, slots.green) if slots else ()
    return next((one.adopted_id for one in records if f"{key}-{one.name}" == name), None)


async def require_ours(run: Performer, name: str) -> None:
    """Raise DriverRefused when the container of that name belongs to another installation on the same engine."""
    found = await run.drivers.containers.inspect(name)
    if found is not None and found.labels.get(INSTALLATION, run.installation) != run.installation:
        raise DriverRefused(
            f"container {name} belongs to another installation on this engine",
            hint="Use another project name, or another engine.",
            container=name,
        )


@step("start_container")
async def start_container(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have exactly this container running, hardened, on its loopback port."""
    spec, env_hash = container_spec(run, action.detail)
    container = await run.drivers.containers.ensure(spec)
    return {"containerId": container.container_id, "envHash": env_hash}


def container_spec(run: Performer, detail: Mapping[str, Any]) -> tuple[ContainerSpec, str | None]:
    """The container that a step's details describe, with its env file, and that file's hash."""
    environment, env_hash = read_env(run.services.settings, detail["project"], detail["environment"])
    limits = Limits.model_validate(detail["limits"])
    labels = {
        "codeb.project": detail["project"], "codeb.environment": detail["environment"], "codeb.slot": detail["slot"],
        "codeb.version": detail["version"], "codeb.team": detail["team"], "codeb.run": detail["run"],
        "codeb.digest": detail["digest"] or "", "codeb.fence": str(run.fence.token),
        INSTALLATION: run.installation, "codeb.deployed_at": utc_text(run.drivers.clock.now()),
    }  # fmt: skip
    spec = ContainerSpec(
        name=detail["name"],
        image_id=detail["imageId"],
        image_reference=detail["reference"],
        labels=labels,
        host_port=detail["hostPort"],
        container_port=detail["containerPort"],
        environment={"PORT": str(detail["containerPort"]), **environment},
        memory_bytes=limits.memory_mb << 20,
        cpus=limits.cpus,
        pids=limits.pids,
        read_only_root=limits.read_only_root,
        tmpfs=limits.tmpfs,
        capabilities=limits.capabilities,
        stop_timeout_seconds=limits.stop_timeout_seconds,
    )
    return spec, env_hash


@step("check_health")
async def check_health(run: Performer, action: Action) -> Mapping[str, Any]:
    """Wait until the release answers as it should."""
    return {"path": None, "skipped": True} if action.detail["skip"] else await _wait_healthy(run, action)


async def _wait_healthy(run: Performer, action: Action) -> Mapping[str, Any]:
    detail = action.detail
    return await wait_healthy(
        run.drivers.containers,
        run.drivers.prober,
        detail["name"],
        detail["port"],
        HealthCheck.model_validate(detail["health"]),
        lambda fraction, text: run.report(action, fraction, text),
    )


@step("record_release")
async def record_release(run: Performer, action: Action) -> Mapping[str, Any]:
    """Write the release into its slot; again is harmless because the run id stands there."""
    slot, release, now = Slot(action.detail["slot"]), action.detail["release"], run.drivers.clock.now()

    def record(slots: Slots) -> Slots:
        there = slots.record(slot)
        if there.state is SlotState.DEPLOYED and there.run_id == release["run_id"]:
            return slots
        return slots.deployed(slot, now, action.detail["by"], release)

    await run.change(action.detail["key"], record)
    return {}


@step("publish_preview")
async def publish_preview(run: Performer, action: Action) -> Mapping[str, Any]:
    """See that the slot's preview address really answers; raises DriverRefused when it does not."""
    slots = await run.slots(action.detail["key"])
    slot = Slot(action.detail["slot"])
    site = await site_of(run.store, run.services.settings, slots)
    _prepare_flag(run, slots)
    host = (site.blue_preview if slot is Slot.BLUE else site.green_preview) or ""
    path = slots.record(slot).health_path or "/"
    # The route is there but for once, so it is asked for together with what it leads to.
    routed, answers = await asyncio.gather(run.drivers.proxy.has(site), _who_answers(run, slots.key, site, host, path))
    if not routed:
        if slots.adopted_route:
            raise DriverRefused(
                f"{slots.key} is served by the route of the earlier installation until its first promote",
                hint="Promote: that puts our route in its place, and the preview addresses with it.",
            )
        await run.drivers.proxy.apply(upsert=[site])
        answers = await _who_answers(run, slots.key, site, host, path)
    preview, unseen = answers
    if preview.status is None or preview.slot != slot.value:
        raise DriverRefused(f"{host} does not reach slot {slot}: {_words(preview)}", hint="Run registry_check.")
    if unseen is not None:
        raise unseen
    return {"previewUrl": url_of(run.services.settings, host)}


async def _who_answers(
    run: Performer, key: str, site: Site, preview: str, path: str
) -> tuple[Answer, CodebError | None]:
    """What the preview address answers, and what is wrong with who answers the public one."""
    return await asyncio.gather(
        run.drivers.prober.public(preview, path, timeout_seconds=5),
        _problem_of(require_flags_seen(run.services, key, site.hosts[0], path)),
    )


# ── promote and rollback ────────────────────────────────────────────────────────────────────────────────────────


@step("check_target")
async def check_target(run: Performer, action: Action) -> Mapping[str, Any]:
    """The container runs the deployed image and is healthy right now."""
    await require_image(run.drivers.containers, action.detail["name"], action.detail["imageId"])
    return await _wait_healthy(run, action)


@step("ensure_route")
async def ensure_route(run: Performer, action: Action) -> Mapping[str, Any]:
    """The proxy has both slots of the environment; changes nothing when it has."""
    slots = await run.slots(action.detail["key"])
    _prepare_flag(run, slots)
    site = await site_of(run.store, run.services.settings, slots)
    changed = await ensure_site(run, site, take_over=bool(slots.adopted_route))
    return {"changed": changed, "hosts": list(site.hosts)}


def _prepare_flag(run: Performer, slots: Slots) -> None:
    """An environment that never had traffic is switched off before its route exists, so that nothing unproven serves."""
    if run.drivers.traffic.live(slots.key) is None:
        run.drivers.traffic.switch(slots.key, slots.active_slot, fence=run.fence.token)


async def ensure_site(run: Performer, site: Site, *, take_over: bool = False) -> bool:
    """Have the site in the proxy; True when that took a change. `take_over`: see `Proxy.apply`."""
    if await run.drivers.proxy.has(site):
        return False
    return await run.drivers.proxy.apply(upsert=[site], take_over=take_over)


@step("check_flags")
async def check_flags(run: Performer, action: Action) -> Mapping[str, Any]:
    """The slot that is to get the traffic has none yet, so that its answer will prove the switch."""
    await require_flags_seen(run.services, action.detail["key"], action.detail["host"], action.detail["path"])
    return {}


@step("switch_traffic")
async def switch_traffic(run: Performer, action: Action) -> Mapping[str, Any]:
    """One atomic rename of a flag file."""
    slot = action.detail["slot"]
    moved = run.drivers.traffic.switch(action.detail["key"], Slot(slot) if slot else None, fence=run.fence.token)
    return {"moved": moved}


@step("verify_public")
async def verify_public(run: Performer, action: Action) -> Mapping[str, Any]:
    """A request over each public host reached this slot, and its container runs the deployed image."""
    detail = action.detail
    async with asyncio.TaskGroup() as group:
        image = group.create_task(_problem_of(require_image(run.drivers.containers, detail["name"], detail["imageId"])))
        hosts = [group.create_task(_verify_host(run, host, detail)) for host in detail["hosts"]]
    for problem in (image.result(), *(task.result() for task in hosts)):
        if problem is not None:
            raise problem
    return {"hosts": list(detail["hosts"])}


async def _problem_of(work: Awaitable[Any]) -> CodebError | None:
    try:
        await work
    except CodebError as error:
        return error
    return None


async def _verify_host(run: Performer, host: str, detail: Mapping[str, Any]) -> CodebError | None:
    answer = Answer(None, problem="was not asked")
    for left in reversed(range(VERIFY_TRIES)):
        for path in detail["paths"]:
            answer = await run.drivers.prober.public(host, path, timeout_seconds=5)
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
    started = loop.time()
    while True:
        count = await run.drivers.proxy.in_flight(port) or 0
        spent = loop.time() - started
        if count == 0 or spent >= action.detail["seconds"]:
            return {"inFlight": count, "seconds": round(spent, 3), "drained": count == 0}
        run.report(action, None, f"{count} requests still run on port {port}")
        await asyncio.sleep(DRAIN_PAUSE_SECONDS)
