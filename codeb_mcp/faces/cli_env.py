"""`codeb env reveal`: the one way to see values, on the control plane's machine only."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from codeb_mcp.faces.cli_call import Surroundings, with_services
from codeb_mcp.faces.cli_keys import configured_key
from codeb_mcp.model.env import ENV_NAME_PATTERN, render
from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.model.names import PROJECT_PATTERN, Environment


@click.command("reveal", short_help="Print variables with their values, for an admin, audited.")
@click.argument("project")
@click.argument("environment", type=click.Choice([one.value for one in Environment]))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Answer a JSON object")
@click.pass_obj
def reveal_env(around: Surroundings, project: str, environment: str, names: tuple[str, ...], *, as_json: bool) -> None:
    """Print variables of an environment with their values, as lines of an env file.

    Needs a key of an admin of the project's team, works only on the control plane's own machine, and goes into the audit
    trail. Without names it prints all of them.
    """
    _require_plain(project, names)
    values = with_services(
        around, lambda services: _reveal(around, services, (project, Environment(environment), names))
    )
    if as_json:
        from pydantic_core import to_json

        sys.stdout.write(to_json(values).decode() + "\n")
    else:
        sys.stdout.write(render(values))
    sys.stdout.flush()


def _require_plain(project: str, names: tuple[str, ...]) -> None:
    """What was typed goes into the audit trail, so that it has to be names."""
    for field, pattern, said in (("PROJECT", PROJECT_PATTERN, (project,)), ("NAME", ENV_NAME_PATTERN, names)):
        if not all(re.fullmatch(pattern, one) for one in said):
            raise InvalidRequest(f"{field}: is no such name", hint="See `codeb env reveal --help`.")


async def _reveal(around: Surroundings, services: Any, asked: tuple[str, Environment, tuple[str, ...]]) -> Any:
    from codeb_mcp.operations.env_reveal import reveal
    from codeb_mcp.operations.keys import KeyRing

    caller = await KeyRing().authenticate(services, configured_key(around.environ), via="cli")
    return await reveal(services, caller, *asked)
