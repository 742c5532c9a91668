"""Values in clear: on the control plane's machine, for an admin of the team that owns the project, and never without a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codeb_mcp.model.access import Principal, Role, in_scope
from codeb_mcp.model.errors import CodebError, Forbidden, NotFound
from codeb_mcp.model.names import Environment
from codeb_mcp.operations.answers import new_run_id
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.invoke import limit
from codeb_mcp.operations.ownership import require_project, require_scope
from codeb_mcp.registry.audit import AuditRecord
from codeb_mcp.registry.env_history import values_of

TOOL = "env_reveal"
NAMES_KEPT = 50


async def reveal(
    services: Services, caller: Principal, project: str, environment: Environment, names: Sequence[str]
) -> Mapping[str, str]:
    """The variables with their values; all of them when no name is given.

    No operation of the catalog, so that no agent can ask for it. Raises Forbidden for a role below admin or a scope that
    does not cover it, NotFound for a project of others or a name that is not there. The record of it is on the disk
    before the values are answered; a refusal is recorded as well.
    """
    outcome = "ok"
    try:
        await limit(services, caller)
        await _authorise(services, caller, project, environment)
        return await _values(services, project, environment, names)
    except CodebError as refused:
        outcome = refused.code
        raise
    finally:
        record = _record(services, caller, (project, environment.value, names), outcome)
        await services.trail.write(lambda: record, durable=True)


async def _authorise(services: Services, caller: Principal, project: str, environment: Environment) -> None:
    if not caller.role.covers(Role.ADMIN):
        raise Forbidden(
            f"showing values needs role admin; this key has {caller.role}",
            hint="Ask an admin of your team.",
            permission="env.reveal",
            requiredRole=Role.ADMIN.value,
        )
    if not in_scope(caller.scopes, "tool", TOOL) or not in_scope(caller.scopes, "source", caller.source):
        raise Forbidden("this key may not show values", hint="Use a key without tool and source scopes.")
    require_scope(caller, project, [environment.value], changes=False)
    await require_project(services.store, caller, project)


async def _values(
    services: Services, project: str, environment: Environment, names: Sequence[str]
) -> Mapping[str, str]:
    state = await services.registry.env.snapshot(project, environment.value)
    values = values_of(state.current if state.entries else state.live)
    if missing := sorted(set(names) - values.keys()):
        raise NotFound(
            f"{project} {environment} has no variable {', '.join(missing)[:200]}", hint="List them with env_get."
        )
    return {name: values[name] for name in sorted(names or values)}


def _record(services: Services, caller: Principal, asked: tuple[str, str, Sequence[str]], outcome: str) -> AuditRecord:
    project, environment, names = asked
    now = services.drivers.clock.now()
    return AuditRecord(
        at=now,
        actor=caller.name,
        key_id=caller.key_id,
        team=caller.team,
        role=caller.role.value,
        tool=TOOL,
        outcome=outcome,
        project=project,
        environment=environment,
        arguments={"projectName": project, "environment": environment, "names": list(names)[:NAMES_KEPT]},
        correlation_id=new_run_id(now),
    )
