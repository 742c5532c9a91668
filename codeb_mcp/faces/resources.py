"""What can be read by address. Each resource is an operation's answer, so rights, limits and audit are the operation's."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import mcp.types as t
from mcp import MCPError
from pydantic_core import to_json

from codeb_mcp.faces.calls import Caller, correlation_id, problem
from codeb_mcp.model.access import Principal
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.operations.invoke import Call

if TYPE_CHECKING:
    from codeb_mcp.faces.mcp import Context, Parts, Who

SSOT = "codeb://registry/ssot"
JSON = "application/json"
TEXT_LIMIT = 20_000
TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("codeb://slots/{project}/{environment}", "slots", "Both slots of an environment: what serves, waits, is in grace"),
    ("codeb://operations/{id}", "operation", "One run: its steps, how far it is, how it ended"),
)
_SLOTS = re.compile(r"codeb://slots/([^/?#]{1,64})/([a-z]{1,20})")
_OPERATION = re.compile(r"codeb://operations/([^/?#]{1,80})")

Reading = Callable[[Caller, Principal], Awaitable[Any]]


class Resources:
    """The resource handlers."""

    def __init__(self, parts: Parts, who: Who) -> None:
        self._parts = parts
        self._who = who

    async def list(self, ctx: Context, params: t.PaginatedRequestParams | None) -> Any:
        """The registry, and the slots of each environment of the caller's team."""
        if params is not None and params.cursor is not None:
            raise MCPError(t.INVALID_PARAMS, "Unknown cursor: the list has one page")
        rows = await self._asked(ctx, SSOT, lambda caller, who: _call(caller, who, "slot_list", limit=200))
        found = [_resource(SSOT, "ssot", "Your team's projects, as the registry has them")]
        for row in rows["data"]:
            project, environment = row["projectName"], row["environment"]
            uri = f"codeb://slots/{project}/{environment}"
            found.append(_resource(uri, f"{project} {environment}", f"Slots of {project} {environment}"))
        return {"resources": found, "resultType": "complete", "ttlMs": 5_000, "cacheScope": "private"}

    async def templates(self, ctx: Context, params: t.PaginatedRequestParams | None) -> Any:
        """The addresses with a part to fill in."""
        shown = [
            {"uriTemplate": uri, "name": name, "description": said, "mimeType": JSON} for uri, name, said in TEMPLATES
        ]
        return {"resourceTemplates": shown, "resultType": "complete", "ttlMs": 60_000, "cacheScope": "private"}

    async def read(self, ctx: Context, params: t.ReadResourceRequestParams) -> Any:
        """One resource as JSON; an address that leads nowhere, or to another team's, is not found."""
        uri = str(params.uri)
        reading = _reading(uri)
        if reading is None:
            raise _not_found(uri)
        text = to_json(await self._asked(ctx, uri, reading)).decode()
        contents = [{"uri": uri, "mimeType": JSON, "text": text}]
        return {"contents": contents, "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}

    async def _asked(self, ctx: Context, uri: str, reading: Reading) -> Any:
        try:
            principal = await self._who(ctx)
            return await reading(await self._parts(), principal)
        except CodebError as error:
            if error.http_status in (404, 422):
                raise _not_found(uri) from None
            detail = {**problem(error, ""), "uri": uri}
            raise MCPError(t.INVALID_PARAMS, f"{detail['code']}: {detail['message']}", detail) from None


def _reading(uri: str) -> Reading | None:
    if uri == SSOT:
        return _ssot
    if found := _SLOTS.fullmatch(uri):
        project, environment = found.groups()
        return lambda caller, who: _slots(caller, who, project, environment)
    if found := _OPERATION.fullmatch(uri):
        run_id = found[1]
        return lambda caller, who: _call(caller, who, "operation_get", operationId=run_id)
    return None


async def _slots(caller: Caller, who: Principal, project: str, environment: str) -> Any:
    body = await _call(caller, who, "slot_status", projectName=project, environment=environment)
    return body["data"]


async def _ssot(caller: Caller, who: Principal) -> Any:
    """`ssot.json` with the caller's own projects and ports only."""
    own, offset = [], 0
    while True:
        page = await _call(caller, who, "project_list", limit=200, offset=offset)
        own += [row["projectName"] for row in page["data"]]
        if (offset := page.get("nextOffset", 0)) == 0:
            break
    stored = await caller.services.store.get("ssot")
    doc = stored.doc if stored else {}
    projects, left = {}, TEXT_LIMIT - 500
    for name in own:
        entry = doc.get("projects", {}).get(name, {})
        left -= len(to_json(entry)) + len(name) + 4
        if left < 0:
            break
        projects[name] = entry
    shown: dict[str, Any] = {"version": doc.get("version"), "projects": projects}
    if len(projects) < len(own):
        shown["truncated"] = f"{len(own) - len(projects)} more; use project_list and project_get"
    return shown


async def _call(caller: Caller, who: Principal, tool: str, **arguments: Any) -> Any:
    return (await caller(Call(tool, arguments, who, correlation_id(None)))).body


def _resource(uri: str, name: str, description: str) -> dict[str, Any]:
    return {"uri": uri, "name": name, "description": description, "mimeType": JSON}


def _not_found(uri: str) -> MCPError:
    return MCPError(t.INVALID_PARAMS, "Resource not found", {"uri": clean_text(uri, limit=200)})
