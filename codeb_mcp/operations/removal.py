"""Deleting a project: a run of the whole project, which no run of its environments may overlap."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import Conflict, InvalidRequest, NotFound
from codeb_mcp.model.machine import Action
from codeb_mcp.model.names import (
    Environment,
    ProjectName,
    Slot,
    container_name,
    environment_key,
    lease_name,
    split_environment_key,
)
from codeb_mcp.model.sequence import Sequence as Machine
from codeb_mcp.model.sequence import Step
from codeb_mcp.operations.answers import RunAnswer, RunRequest, common, fact, header_of, run_to_answer
from codeb_mcp.operations.catalog import Effect, Request, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.database_state import entries_in
from codeb_mcp.operations.domain_state import leaving_changes, project_domains
from codeb_mcp.operations.environments import without_project
from codeb_mcp.operations.perform import Performer, adopted_id, step
from codeb_mcp.operations.places import HERE, Place, here, on_all, placement_left, places
from codeb_mcp.operations.runs import Planned, RunView, planner
from codeb_mcp.operations.state import find_slots, load_project, load_ssot
from codeb_mcp.operations.streaming_plans import leaving_actions
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.store import Change, Document

DELETE_SECONDS = 900.0
TRIES = 50


class ProjectDeleteRequest(Request):
    """A project to delete; `confirm` repeats its name."""

    project_name: ProjectName = Field(description="Project")
    confirm: str = Field(max_length=40, description="The project's name once more: its containers stop and are removed")
    wait: bool = Field(True, description="Wait for the end; false answers an operation id at once")


class ProjectDeleteResult(RunAnswer):
    """What is gone."""

    freed_ports: list[int] = Field(default_factory=list)


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.PROJECT, long=True)
async def project_delete(ctx: Context, request: ProjectDeleteRequest) -> ProjectDeleteResult:
    """Delete a project: stop serving it, remove its containers, free its ports.

    Its env files and their history are put aside, where a new project of that name does not get them. Refused while a
    deploy or promote of the project runs. Once begun it is carried through: what cannot be reached now is taken up again
    later.
    """
    if request.confirm != request.project_name:
        raise InvalidRequest(
            "confirm: must repeat the project's name",
            hint="This stops and removes all its containers; be sure.",
            fields=[{"field": "confirm", "problem": "must repeat the project's name"}],
        )
    project = await load_project(ctx.store, request.project_name)
    view = await delete_project(ctx, request.project_name, wait=request.wait)
    ports = sorted(port for pair in project.ports.values() for port in (pair.blue, pair.green))
    message = f"{request.project_name} is deleted" if view.status == "succeeded" else "the project is being deleted"
    return ProjectDeleteResult(**common(view, message, fact(view, "warnings") or []), freed_ports=ports)


async def delete_project(ctx: Context, name: str, *, wait: bool) -> RunView:
    """Start the run that deletes the project, and with `wait` see it end."""
    project = await load_project(ctx.store, name)
    run = _DeleteRun(project_name=name, environment=Environment.PRODUCTION, wait=wait)
    header = header_of(ctx, "project_delete", run, team=project.team_id, seconds=DELETE_SECONDS)
    return await run_to_answer(ctx, replace(header, environment=None), wait=wait)


class _DeleteRun(RunRequest):
    """The request as the journal keeps it."""


@planner("project_delete")
async def plan_delete(services: Services, header: RunHeader) -> Planned:
    """First off the proxy, then the containers, the registry last: it goes on naming what is not gone yet. Every step is
    one that must happen in the end, since half a project is no legal state."""
    project = await load_project(services.store, header.project)
    await _require_no_stores(services, header.project)
    actions: list[Action] = []
    for environment in project.ports:
        key = environment_key(header.project, environment)
        detail: dict[str, Any] = {"key": key}
        actions.append(Action("close_environment", "close_environment", detail, says=f"stop serving {key}"))
    for environment in project.ports:
        key = environment_key(header.project, environment)
        for name in await _containers(services, header.project, environment):
            seconds = project.settings.limits.stop_timeout_seconds
            detail = {"key": key, "name": name, "stopTimeout": seconds}
            says = f"stop and remove {name}"
            actions.append(
                Action("discard_container", "remove_container", detail, deadline_seconds=30 + seconds, says=says)
            )
    detail = {
        "project": header.project, "team": project.team_id, "environments": [one.value for one in project.ports],
        "fronts": {one.value: [place.key for place in (await placement_left(services, f"{header.project}-{one}")).fronts]
                   for one in project.ports},
    }  # fmt: skip
    actions.append(Action("forget_project", "forget_project", detail, says="strike it from the registry"))
    steps = tuple(Step(replace(action, undo=True)) for action in actions)
    # A streaming server that is away keeps no project alive: what stays there is told.
    streams = leaving_actions(await load_ssot(services.store), header.project)
    return Planned(Machine((*(Step(action, soft=True) for action in streams), *steps)))


async def _require_no_stores(services: Services, project: str) -> None:
    """Raise Conflict while the project has data stores of ours: without its entry nobody would know whose they are."""
    stores = [str(which) for which, _ in entries_in(await load_ssot(services.store), project)]
    if stores:
        raise Conflict(
            f"{project} still has data: {', '.join(stores)}",
            hint="Take it away with database_delete first; the data is kept aside then.",
            stores=stores,
        )


async def _containers(services: Services, project: str, environment: Environment) -> list[str]:
    """Names of the containers that the environment's slots have or would have."""
    slots = await find_slots(services.store, project, environment)
    named = [record.container_name for record in (slots.blue, slots.green)] if slots else []
    usual = [container_name(project, environment, slot) for slot in Slot]
    return list(dict.fromkeys([*usual, *(name for name in named if name)]))


@contextlib.asynccontextmanager
async def _fence_of(run: Performer, key: str) -> AsyncIterator[int]:
    """The newest fencing token of an environment: containers and flags believe no other, least of all the project's."""
    project, environment = split_environment_key(key)
    lease = await run.store.acquire(lease_name(project, environment), run.fence.lease)
    try:
        yield lease.token
    finally:
        await run.store.release(lease)


@step("close_environment")
async def close_environment(run: Performer, action: Action) -> Mapping[str, Any]:
    """No traffic, no route."""
    key = action.detail["key"]
    fronts = (await placement_left(run.services, key)).fronts
    async with _fence_of(run, key) as token:
        await on_all(fronts, lambda place: place.drivers.traffic.switch(key, None, fence=token))
    await on_all(fronts, lambda place: place.drivers.proxy.apply(remove=[key]))
    return {}


@step("discard_container")
async def discard_container(run: Performer, action: Action) -> Mapping[str, Any]:
    """Stop and remove it, if it is there."""
    detail = action.detail
    adopted = await adopted_id(run, detail["key"], detail["name"])
    async with _fence_of(run, detail["key"]) as token:
        removed = await on_all(
            (await placement_left(run.services, detail["key"])).apps,
            lambda place: place.drivers.containers.remove(
                detail["name"], fence=token, stop_timeout_seconds=detail["stopTimeout"], adopted=adopted
            ),
        )
    return {"removed": any(removed)}


@step("forget_project")
async def forget_project(run: Performer, action: Action) -> Mapping[str, Any]:
    """Strike project, slots, domains and the team's entry in one commit; hold the ports back for a while."""
    project = action.detail["project"]
    keys = [environment_key(project, environment) for environment in action.detail["environments"]]
    fronts = {key: await _fronts(run, action, key) for key in keys}
    for _ in range(TRIES):
        changes = await _struck(run, project, action.detail["team"], keys)
        try:
            await run.store.commit(changes, fence=run.fence)
        except Conflict:
            continue
        break
    else:
        raise Conflict("the registry kept changing", hint="Try again.")
    await run.services.registry.env.retire(project, run.drivers.clock.now())
    for key in keys:
        await _forget_at(run, fronts[key], key)
    return {}


async def _forget_at(run: Performer, fronts: Sequence[Place], key: str) -> None:
    async with _fence_of(run, key) as token:
        await on_all(fronts, lambda place: place.drivers.traffic.forget(key, fence=token))
    # Until now housekeeping may have put the route back.
    await on_all(fronts, lambda place: place.drivers.proxy.apply(remove=[key]))


async def _fronts(run: Performer, action: Action, key: str) -> tuple[Place, ...]:
    """Where the environment's traffic is led: now, or as the plan says when the project's entry is gone already. What is no
    longer in the inventory has nothing to forget."""
    with contextlib.suppress(NotFound):
        return (await placement_left(run.services, key)).fronts
    planned = action.detail.get("fronts", {}).get(split_environment_key(key)[1].value, [HERE])
    found: list[Place] = [here(run.services)] if HERE in planned else []
    for server in planned:
        with contextlib.suppress(NotFound, Conflict):
            found += await places(run.services, [server]) if server != HERE else []
    return tuple(found)


async def _struck(run: Performer, project: str, team: str, keys: Sequence[str]) -> list[Change]:
    now = run.drivers.clock.now()
    ssot, teams = await run.store.get("ssot"), await run.store.get("teams")
    changes = []
    if ssot is not None and project in ssot.doc.get("projects", {}):
        changes.append(Change("ssot", without_project(ssot.doc, project, now), ssot.version))
    if teams is not None:
        changes += _without_team_entry(teams.doc, teams.version, team, project)
    changes += await leaving_changes(run.store, await project_domains(run.store, project))
    for document in (*(f"slots/{key}" for key in keys), f"domains/{project}"):
        stored = await run.store.get(document)
        if stored is not None:
            changes.append(Change(document, None, stored.version))
    return changes


def _without_team_entry(doc: Document, version: int, team: str, project: str) -> Sequence[Change]:
    teams = dict(doc.get("teams", {}))
    own = dict(teams.get(team, {}))
    if project not in own.get("projects", []):
        return []
    own["projects"] = [name for name in own["projects"] if name != project]
    return [Change("teams", {**doc, "teams": {**teams, team: own}}, version)]
