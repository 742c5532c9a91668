"""Deploy, promote, roll back: the main job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.deploy import Deploy, DeployPlan
from codeb_mcp.model.errors import Conflict, Forbidden, InvalidRequest
from codeb_mcp.model.names import Environment, ImageRef, Slot, Version, container_name, image_parts, image_registry
from codeb_mcp.model.project import Limits, Project, mountable
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.model.routes import Site
from codeb_mcp.model.slot import Refusal, SlotRecord, Slots, SlotState, choose_slot, rollback_target
from codeb_mcp.model.traffic import Switch, SwitchPlan
from codeb_mcp.operations.answers import RunAnswer, RunRequest, common, fact, header_of, run_to_answer
from codeb_mcp.operations.catalog import Effect, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.env_gate import require_contract
from codeb_mcp.operations.environments import ensure_environment
from codeb_mcp.operations.places import Place, on_all, placement_of
from codeb_mcp.operations.routing import require_without_traffic
from codeb_mcp.operations.runs import STILL_STANDS, Planned, RunView, planner
from codeb_mcp.operations.starting import would_start
from codeb_mcp.operations.state import load_project, load_slots, proven_hosts, site_of, url_of
from codeb_mcp.registry.entries import RunHeader

DEPLOY_SECONDS = 1500.0
SWITCH_SECONDS = 120.0


class DeployRequest(RunRequest):
    """What to deploy, and where."""

    image: ImageRef | None = Field(
        None, description="Image to run; default: the project's image with the version as tag"
    )
    version: Version | None = Field(None, description="Name of the release; default: the image's tag")
    skip_healthcheck: bool = Field(False, description="Do not wait for the app to answer; promote still checks it")
    auto_promote: bool = Field(False, description="Promote as soon as the release is healthy")
    force: bool = Field(False, description="Replace a slot in its grace period: the way back is lost")


class DeployResult(RunAnswer):
    """Where the release stands, and where to look at it."""

    slot: Slot | None = None
    port: int | None = None
    version: str | None = None
    image: str | None = None
    digest: str | None = None
    preview_url: str | None = Field(None, description="Answers now; left out when it could not be made to")
    promoted: bool = False
    production_url: str | None = None


@operation(
    effect=Effect.CHANGE,
    role=Role.MEMBER,
    reach=Reach.PROJECT,
    aliases=("deploy_project",),
    idempotent=False,
    long=True,
    joins=True,
)
async def deploy(ctx: Context, request: DeployRequest) -> DeployResult:
    """Deploy an image to the idle slot of an environment and prove it healthy.

    Live traffic is not touched: promote does that. A failed deploy leaves the old version serving and the idle slot empty.
    Repeating the same project, environment, version and image within an hour joins the earlier run, also when the tag
    was pushed anew: give another version to deploy it again. After a change of settings or variables it is a new deploy.
    With autoPromote a release that cannot be promoted stays in its slot.
    """
    project = await load_project(ctx.store, request.project_name)
    image, version = what_to_run(request, project)
    require_registry(ctx.services, image)
    await ensure_environment(ctx.services, request.project_name, request.environment)
    request = request.model_copy(update={"image": image, "version": version})
    same = f"deploy:{request.project_name}:{request.environment}:{version}:{image}:{request.auto_promote}"
    where = (request.project_name, request.environment)
    same += ":" + would_start(ctx.services, project, *where, skipped=request.skip_healthcheck)
    header = header_of(ctx, "deploy", request, team=project.team_id, seconds=DEPLOY_SECONDS, same=same)
    view = await run_to_answer(ctx, header, wait=request.wait)
    return deploy_result(ctx.services, view)


def what_to_run(request: DeployRequest, project: Project) -> tuple[str, str]:
    """The full image reference and the release's name; raises InvalidRequest when they cannot be known."""
    image = request.image
    if image is None:
        if project.settings.image is None or request.version is None:
            raise InvalidRequest(
                "image: is missing",
                hint="Give image, or set the project's image and give version.",
                fields=[{"field": "image", "problem": "is missing"}],
            )
        image = f"{image_parts(project.settings.image)[0]}:{request.version}"
    _, tag, digest = image_parts(image)
    return image, request.version or tag or (digest or "latest").replace("sha256:", "")[:12]


def require_registry(services: Services, image: str) -> None:
    """Raise Forbidden when the image comes from a registry that the operator does not allow."""
    allowed = services.settings.docker.allowed_registries
    if allowed and image_registry(image) not in allowed:
        raise Forbidden(
            f"images from {image_registry(image)} are not allowed here",
            hint=f"Use one of {', '.join(allowed)}, or ask the operator to add it to docker.allowed_registries.",
        )


def require_mountable(limits: Limits) -> None:
    """Raise Conflict when an older setting wants a folder in memory where none may be."""
    try:
        mountable(limits)
    except ValueError as error:
        hint = "Set limits.tmpfs with project_update to folders of the app's own, like /tmp."
        raise Conflict(f"limits.{error}", hint=hint) from None


@planner("deploy")
async def plan_deploy(services: Services, header: RunHeader) -> Planned:
    """Facts first, then the decision; raises Conflict when there is no slot to take."""
    request = DeployRequest.model_validate(header.request)
    started = time.perf_counter()
    project = await load_project(services.store, request.project_name)
    slots = await load_slots(services.store, request.project_name, request.environment)
    require_contract(services, project, request.project_name, request.environment)
    require_mountable(project.settings.limits)
    looked = _since(started)
    started = time.perf_counter()
    slot = accepted(choose_slot(slots, services.drivers.clock.now(), force=request.force))
    await require_without_traffic(services, slots, slot)
    image, version = what_to_run(request, project)
    plan = DeployPlan(
        run_id=header.run_id,
        project=request.project_name,
        team=project.team_id,
        environment=request.environment,
        slot=slot,
        port=slots.record(slot).port,
        container_port=project.settings.container_port,
        image=image,
        version=version,
        pull_policy=project.settings.pull_policy,
        health_check=project.settings.health_check,
        limits=project.settings.limits,
        by=header.caller["keyId"],
        replaces=slots.record(slot).state is not SlotState.EMPTY,
        skip_healthcheck=request.skip_healthcheck,
    )
    if request.auto_promote:
        switch = await switch_plan(services, header, project, slots, plan_target(slots, slot, plan), "promote")
        plan = plan.model_copy(update={"promotion": switch})
    return Planned(Deploy(plan), (("get_slot_status", looked), ("select_slot", _since(started))))


def plan_target(slots: Slots, slot: Slot, plan: DeployPlan) -> SlotRecord:
    """The slot as it will be after this deploy."""
    return slots.record(slot).model_copy(
        update={
            "version": plan.version,
            "container_name": plan.container,
            "digest": None,
            "image_id": None,
            "health_path": None,
        }
    )


def accepted(choice: Any) -> Any:
    """The choice, or its refusal as Conflict."""
    if isinstance(choice, Refusal):
        raise Conflict(choice.message, hint=choice.hint, **choice.detail)
    return choice


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


async def _deploy_stands(services: Services, header: RunHeader, result: Mapping[str, Any]) -> bool:
    """Whether the release of that run still waits or serves. One that is the way back by now must be deployed anew."""
    environment = Environment(header.environment or "staging")
    slots = await load_slots(services.store, header.project, environment)
    return any(
        record.run_id == header.run_id and record.state in (SlotState.DEPLOYED, SlotState.ACTIVE)
        for record in (slots.blue, slots.green)
    )


STILL_STANDS["deploy"] = _deploy_stands


def deploy_result(services: Services, view: RunView) -> DeployResult:
    """The answer for a deploy in whatever state it is."""
    slot, problem = fact(view, "slot"), fact(view, "published", "problem")
    warnings = [f"the preview address does not answer yet: {problem}"] if problem else []
    if view.header.request.get("skipHealthcheck"):
        warnings.append("the health check was skipped: promote will check the release")
    promoted = fact(view, "promotion") is not None
    hosts = fact(view, "promotion", "hosts") or []
    message = f"operation {view.header.run_id} is running"
    if view.status == "succeeded":
        where = f"{view.header.project} {view.header.environment}"
        message = f"{fact(view, 'version')} stands healthy in slot {slot} of {where}"
        message += " and has the traffic" if promoted else "; promote sends it the traffic"
        if view.joined:
            # What has happened to the slot since is for slot_status to say; nothing was pulled again.
            message = (
                f"the same request was made before: {fact(view, 'version')} was deployed to slot {slot} of {where}"
            )
    return DeployResult(
        **common(view, message, warnings),
        slot=slot,
        port=fact(view, "port"),
        version=fact(view, "version"),
        image=fact(view, "image"),
        digest=fact(view, "digest"),
        preview_url=fact(view, "published", "previewUrl"),
        promoted=promoted,
        production_url=url_of(services.settings, hosts[0]) if hosts else None,
    )


# ── promote and rollback ────────────────────────────────────────────────────────────────────────────────────────


class PromoteRequest(RunRequest):
    """Which environment gets its waiting release."""

    drain_seconds: float = Field(
        0, ge=0, le=50, description="Wait up to this long until no request runs on the former slot, and report the rest"
    )


class PromoteResult(RunAnswer):
    """Who serves now, and until when the former version stays warm."""

    from_slot: Slot | None = None
    to_slot: Slot | None = None
    production_url: str | None = None
    previous_version: str | None = None
    new_version: str | None = None
    digest: str | None = None
    in_flight: int | None = Field(
        None, description="With drainSeconds: requests that still ran on the former slot at its end; nothing cuts them"
    )
    grace_expires_at: str | None = None


@operation(
    effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT, aliases=("slot_promote",), idempotent=False, long=True
)
async def promote(ctx: Context, request: PromoteRequest) -> PromoteResult:
    """Promote the deployed release: send the live traffic to it.

    Answers success only after a request over the public address reached the new slot and its image; otherwise the switch
    is taken back and the answer says so. The former version stays warm for the grace period: rollback returns to it.
    """
    project = await load_project(ctx.store, request.project_name)
    header = header_of(ctx, "promote", request, team=project.team_id, seconds=SWITCH_SECONDS)
    view = await run_to_answer(ctx, header, wait=request.wait)
    return PromoteResult(
        **common(view, _switch_message(view)), **_switch_facts(ctx.services, view), new_version=fact(view, "newVersion")
    )


class RollbackRequest(RunRequest):
    """Which environment goes back, and why."""

    reason: Annotated[str, AfterValidator(clean_text)] = Field(
        "", max_length=500, description="Why; goes into the audit trail"
    )


class RollbackResult(RunAnswer):
    """Who serves now."""

    from_slot: Slot | None = None
    to_slot: Slot | None = None
    production_url: str | None = None
    previous_version: str | None = None
    restored_version: str | None = None
    digest: str | None = None
    in_flight: int | None = None
    grace_expires_at: str | None = None


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT, idempotent=False, long=True)
async def rollback(ctx: Context, request: RollbackRequest) -> RollbackResult:
    """Roll back: send the traffic back to the former version, as long as its slot is in its grace period.

    Needs neither the image registry nor the version that is live now. The version that was live goes into grace.
    """
    project = await load_project(ctx.store, request.project_name)
    header = header_of(ctx, "rollback", request, team=project.team_id, seconds=SWITCH_SECONDS)
    view = await run_to_answer(ctx, header, wait=request.wait)
    return RollbackResult(
        **common(view, _switch_message(view)),
        **_switch_facts(ctx.services, view),
        restored_version=fact(view, "newVersion"),
    )


@planner("promote")
async def plan_promote(services: Services, header: RunHeader) -> Planned:
    """Raises Conflict when nothing waits to be promoted."""
    request = PromoteRequest.model_validate(header.request)
    project = await load_project(services.store, request.project_name)
    slots = await load_slots(services.store, request.project_name, request.environment)
    target = slots.in_state(SlotState.DEPLOYED)
    if target is None:
        live = f"; {slots.active.version} is live in slot {slots.active.name}" if slots.active else ""
        raise Conflict(
            f"{slots.key} has no deployed release that waits for traffic{live}",
            hint="Deploy first; to go back to the former version use rollback.",
        )
    require_contract(services, project, request.project_name, request.environment)
    plan = await switch_plan(services, header, project, slots, target, "promote")
    return Planned(Switch(plan.model_copy(update={"drain_seconds": request.drain_seconds})))


@planner("rollback")
async def plan_rollback(services: Services, header: RunHeader) -> Planned:
    """Raises Conflict when there is no warm slot to go back to."""
    request = RollbackRequest.model_validate(header.request)
    project = await load_project(services.store, request.project_name)
    slots = await load_slots(services.store, request.project_name, request.environment)
    target = accepted(rollback_target(slots, services.drivers.clock.now()))
    plan = await switch_plan(services, header, project, slots, target, "rollback")
    return Planned(Switch(plan.model_copy(update={"reason": request.reason})))


async def switch_plan(
    services: Services,
    header: RunHeader,
    project: Project,
    slots: Slots,
    target: SlotRecord,
    kind: Literal["promote", "rollback"],
) -> SwitchPlan:
    """A switch from whatever is live to the target."""
    site = await site_of(services.store, services.settings, slots)
    routed = await on_all(
        (await placement_of(services, slots.key)).fronts, lambda place: _is_routed(place, slots, site)
    )
    active = slots.active
    return SwitchPlan(
        kind=kind,
        run_id=header.run_id,
        project=slots.project_name,
        environment=slots.environment,
        from_slot=active.name if active else None,
        to_slot=target.name,
        to_port=target.port,
        from_port=active.port if active else None,
        container=target.container_name or container_name(slots.project_name, slots.environment, target.name),
        version=target.version,
        previous_version=active.version if active else None,
        digest=target.digest,
        image_id=target.image_id,
        health_path=target.health_path,
        health_check=project.settings.health_check,
        hosts=await proven_hosts(services.store, services.settings, slots, site),
        by=header.caller["keyId"],
        grace_hours=project.settings.of(slots.environment).grace_hours,
        routed=all(routed),
        look_first=target.name is Slot.BLUE,
    )


async def _is_routed(place: Place, slots: Slots, site: Site) -> bool:
    return await place.drivers.traffic.live(slots.key) is slots.active_slot and await place.drivers.proxy.has(site)


def _switch_message(view: RunView) -> str:
    if view.status != "succeeded":
        return f"operation {view.header.run_id} is running"
    return f"{fact(view, 'newVersion')} in slot {fact(view, 'toSlot')} serves {view.header.project} {view.header.environment}"


def _switch_facts(services: Services, view: RunView) -> dict[str, Any]:
    hosts = fact(view, "hosts") or []
    return {
        "from_slot": fact(view, "fromSlot"),
        "to_slot": fact(view, "toSlot"),
        "production_url": url_of(services.settings, hosts[0]) if hosts else None,
        "previous_version": fact(view, "previousVersion"),
        "digest": fact(view, "digest"),
        "in_flight": fact(view, "drain", "inFlight"),
        "grace_expires_at": fact(view, "graceExpiresAt"),
    }
