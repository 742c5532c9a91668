"""No release starts or gets traffic with variables that its project's contract does not allow."""

from __future__ import annotations

from codeb_mcp.model.env_contract import breaches
from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment
from codeb_mcp.model.project import Project
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.envfile import read_env

SHOWN = 20


def require_contract(services: Services, project: Project, name: str, environment: Environment) -> None:
    """Raise Conflict when a required variable is missing or one does not match its pattern; it names them all, never a
    value. Looks at the live file, which is what a container is started with."""
    contract = project.settings.env_contract
    if not contract:
        return
    values, _ = read_env(services.settings, name, environment.value)
    found = breaches(contract, values, environment)
    if not found:
        return
    said = ", ".join(
        f"{one.name} {'is missing' if one.problem == 'missing' else 'does not match'}" for one in found[:SHOWN]
    )
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise Conflict(
        f"the variables of {name} {environment} are not as the project's contract wants them: {said}{more}",
        hint="Set them with env_set, or change the contract with project_update and envContract.",
        keys=[one.as_dict() for one in found],
    )
