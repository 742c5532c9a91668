"""Actions of machines become driver calls: one function an action, each harmless to repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from codeb_mcp.drivers.protocols import ContainerSpec, Image
from codeb_mcp.model.errors import Bug, CodebError, DriverRefused
from codeb_mcp.model.machine import Action
from codeb_mcp.model.names import Slot, image_parts, split_environment_key
from codeb_mcp.model.project import HealthCheck, Limits
from codeb_mcp.model.slot import Slots, SlotState
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.envfile import read_env
from codeb_mcp.operations.garbage import remember_image
from codeb_mcp.operations.health_gate import wait_healthy
from codeb_mcp.operations.places import Place, Placement, here, on_all, placement_of
from codeb_mcp.operations.state import change_slots, find_slots, load_slots
from codeb_mcp.registry.store import Fence

INSTALLATION = "codeb.installation"
"""Label with the registry's lineage: several installations may share an engine."""

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
        beside = here(services)
        self._here = Placement((beside,), (beside,))

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

    async def places(self, action: Action) -> Placement:
        """Where the step's environment stands; it cannot be placed anew while this run has its lease."""
        key = action.detail.get("key")
        return await placement_of(self.services, key) if key else self._here

    async def slots(self, key: str) -> Slots:
        """The slots of `{project}-{environment}`."""
        return await load_slots(self.store, *split_environment_key(key))

    async def change(self, key: str, change: Callable[[Slots], Slots]) -> Slots:
        """Change the slots under this run's fence."""
        return await change_slots(self.store, key, change, self.fence)


@step("pull_image")
async def pull_image(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have the image on every engine and know its digest, which is the same on all of them."""
    detail, apps = action.detail, (await run.places(action)).apps
    first = await on_all(apps[:1], lambda place: _pull(run, action, place, detail["image"]))
    image = first[0]
    exact = pinned(detail["image"], image)
    for other in await on_all(apps[1:], lambda place: _pull(run, action, place, exact)):
        if other.image_id != image.image_id:
            raise DriverRefused(
                f"the app servers got different images for {detail['image']}: {image.image_id[:19]} and {other.image_id[:19]}",
                hint="Use app servers of one processor architecture and one kind of engine, and an image from a registry.",
            )
    return {"imageId": image.image_id, "digest": image.digest, "reference": image.reference, "bytes": image.size_bytes}


def pinned(reference: str, image: Image) -> str:
    """The reference by which another engine gets the very same image; one that was only loaded here has no better name."""
    return reference if image.digest == image.image_id else f"{image_parts(reference)[0]}@{image.digest}"


async def _pull(run: Performer, action: Action, place: Place, reference: str) -> Image:
    policy, images = action.detail["policy"], place.drivers.images
    before = await images.find(reference)
    image = await images.pull(
        reference, policy=policy, progress=lambda fraction, text: run.report(action, fraction, text)
    )
    came = before is None or before.image_id != image.image_id
    if came and policy != "never":
        await remember_image(run.services, action.detail["project"], image)
    return image


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
    adopted = await adopted_id(run, action.detail.get("key"), action.detail["name"])

    async def remove(place: Place) -> bool:
        await require_ours(run, place, action.detail["name"])
        return await place.drivers.containers.remove(
            action.detail["name"],
            fence=run.fence.token,
            stop_timeout_seconds=action.detail["stopTimeout"],
            adopted=adopted,
        )

    return {"removed": any(await on_all((await run.places(action)).apps, remove))}


async def adopted_id(run: Performer, key: str | None, name: str) -> str | None:
    """The id of the adopted container of that name in the environment `key`, if there was one."""
    slots = await find_slots(run.store, *split_environment_key(key)) if key else None
    records = (slots.blue, slots.green) if slots else ()
    return next((one.adopted_id for one in records if f"{key}-{one.name}" == name), None)


async def require_ours(run: Performer, place: Place, name: str) -> None:
    """Raise DriverRefused when the container of that name belongs to another installation on the same engine."""
    found = await place.drivers.containers.inspect(name)
    if found is not None and found.labels.get(INSTALLATION, run.installation) != run.installation:
        raise DriverRefused(
            f"container {name} belongs to another installation on this engine",
            hint="Use another project name, or another engine.",
            container=name,
        )


@step("start_container")
async def start_container(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have exactly this container running, hardened, on its own port."""
    spec, env_hash = container_spec(run, action.detail)
    placement = await run.places(action)
    made = await on_all(
        placement.apps,
        lambda place: place.drivers.containers.ensure(replace(spec, host_address=placement.published_at(place))),
    )
    return {"containerId": made[0].container_id, "envHash": env_hash}


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
    return {"path": None, "skipped": True} if action.detail["skip"] else await healthy_everywhere(run, action)


async def healthy_everywhere(run: Performer, action: Action) -> Mapping[str, Any]:
    """On every app server. The path that the first one passed with is the one that is kept, and asked of the others."""
    detail, health = action.detail, HealthCheck.model_validate(action.detail["health"])
    placement = await run.places(action)

    async def wait(place: Place) -> Mapping[str, Any]:
        address = placement.published_at(place)
        return await wait_healthy(
            place.drivers.containers,
            lambda path: place.drivers.prober.port(
                detail["port"], path, timeout_seconds=health.timeout_seconds, address=address
            ),
            detail["name"],
            health,
            lambda fraction, text: run.report(action, fraction, text),
        )

    seen = await on_all(placement.apps, wait)
    paths = {one["path"] for one in seen}
    if len(paths) > 1:
        raise DriverRefused(
            f"the app servers are healthy at different paths: {', '.join(sorted(paths))}",
            hint="Set healthCheck.path to the one that counts.",
        )
    return seen[0]


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
