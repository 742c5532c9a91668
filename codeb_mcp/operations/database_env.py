"""The variables by which an app finds its data store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codeb_mcp.model.databases import Access
from codeb_mcp.model.env import diff, render
from codeb_mcp.model.errors import Conflict
from codeb_mcp.operations.database_state import (
    Which,
)
from codeb_mcp.operations.env_state import require_known_live, require_readable
from codeb_mcp.operations.perform import Performer
from codeb_mcp.registry.env_history import Draft, EnvSnapshot, values_of
from codeb_mcp.registry.env_log import EnvAuthor


def require_variables_free(state: EnvSnapshot, access: Access, *, overwrite: bool) -> None:
    """Raise Conflict when the variables cannot be written, or lead somewhere else and are not to be replaced."""
    require_known_live(state)
    if not state.entries and state.live is not None:
        require_readable(state.live)
    values = values_of(state.current if state.entries else state.live)
    taken = [name for name in access.names if name in values]
    if taken and not overwrite and not access.is_ours(values):
        raise Conflict(
            f"the environment has {', '.join(taken)} already, and they lead somewhere else",
            hint="Say overwriteVariables to replace them; what was there stays in the history (env_backup_list).",
            names=taken,
        )


def password_in(values: Mapping[str, str], access: Access) -> str:
    """The password that the variables have for this store; empty for none. Generated ones need no decoding."""
    if not access.is_ours(values):
        return ""
    return values[access.main].partition("://")[2].partition("@")[0].partition(":")[2]


async def write_variables(
    run: Performer, which: Which, access: Access, password: str, detail: Mapping[str, Any]
) -> str:
    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        require_variables_free(state, access, overwrite=detail["overwrite"])
        adopted = [Draft("adopted", state.live)] if not state.entries and state.live is not None else []
        before = values_of(adopted[0].data if adopted else state.current)
        after = {**before, **access.variables(password)}
        return [*adopted, Draft("database", render(after).encode())] if diff(before, after) else adopted

    changed = await run.services.registry.env.change(
        which.project, which.environment.value, author_in(detail), run.drivers.clock.now(), decide
    )
    return changed.after.newest.version if changed.after.newest else ""


async def change_variables(run: Performer, which: Which, detail: Mapping[str, Any], decide: Any) -> tuple[str, ...]:
    environment = which.environment.value
    state = await run.services.registry.env.snapshot(which.project, environment)
    if not state.entries:
        return ()
    changed = await run.services.registry.env.change(
        which.project, environment, author_in(detail), run.drivers.clock.now(), decide
    )
    await run.services.copies.copy(run.services, which.project, environment)
    return changed.diff.removed


def author_in(detail: Mapping[str, Any]) -> EnvAuthor:
    by = detail["by"]
    return EnvAuthor(by["name"], by["keyId"], by["team"])
