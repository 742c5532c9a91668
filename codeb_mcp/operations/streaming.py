"""Streaming of environments: a namespace in Centrifugo, and the variables that lead to it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.model.names import Environment
from codeb_mcp.model.server import ServerKey
from codeb_mcp.operations import streaming_plans, streaming_work
from codeb_mcp.operations.answers import RunAnswer, RunRequest, common, fact, header_of, run_to_answer
from codeb_mcp.operations.catalog import Effect, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.runs import RunView
from codeb_mcp.operations.state import load_project

RUN_SECONDS = 300.0
__all__ = ["provision_streaming", "streaming_plans", "streaming_remove", "streaming_setup", "streaming_work"]


class StreamingSetupRequest(RunRequest):
    """Who is to have a namespace."""

    environment: Environment = Field(description="Environment")
    server: ServerKey | None = Field(
        None, description="Server of the inventory with the role streaming; the only one if not given"
    )
    overwrite_variables: bool = Field(False, description="Also when CENTRIFUGO_* already lead somewhere else")


class StreamingRemoveRequest(RunRequest):
    """Whose namespace to take away; `confirm` repeats the project's name."""

    environment: Environment = Field(description="Environment")
    confirm: str = Field(max_length=40, description="The project's name once more: its clients lose their channels")


class StreamingResult(RunAnswer):
    """A namespace after a run. Its secrets are in the environment's variables and nowhere else."""

    namespace: str | None = Field(None, description="Channels are called `{namespace}:…`")
    server: str | None = None
    url: str | None = Field(None, description="Where browsers connect")
    api_url: str | None = Field(None, description="Where the app publishes")
    unchanged: bool | None = Field(None, description="true: it was all there already")
    variables: list[str] = Field(default_factory=list, description="Names of the variables written or removed")
    version: str | None = Field(None, description="Version of the variables that counts now")


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT, long=True)
async def streaming_setup(ctx: Context, request: StreamingSetupRequest) -> StreamingResult:
    """Give an environment a namespace in Centrifugo, and write how to use it into its variables.

    CENTRIFUGO_URL, _NAMESPACE, _TOKEN_SECRET, _API_URL and _API_KEY are one new version; deploy again for the app to see them.
    Secret and API key are those of the whole server, so it serves one team only. What exists is kept; a call that broke off is
    taken up where it stood.
    """
    return await _setup(ctx, request)


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.PROJECT, long=True)
async def streaming_remove(ctx: Context, request: StreamingRemoveRequest) -> StreamingResult:
    """Take an environment's namespace out of Centrifugo, and its variables away.

    Clients that are connected get nothing there any more. A namespace that was there before streaming_setup stays.
    """
    if request.confirm != request.project_name:
        raise InvalidRequest(
            "confirm: must repeat the project's name",
            hint="The environment's clients lose their channels; be sure.",
            fields=[{"field": "confirm", "problem": "must repeat the project's name"}],
        )
    view = await _run(ctx, "streaming_remove", request)
    removed = {"variables": fact(view, "facts", "withdraw_streaming", "variables") or []}
    kept = fact(view, "facts", "drop_namespace", "left")
    done = "the variables are taken away; the namespace was there before and stays" if kept else "it is taken away"
    return StreamingResult.model_validate({**common(view, _message(view, done), list(_warnings(view))), **removed})


async def provision_streaming(
    ctx: Context,
    project: str,
    environment: Environment,
    *,
    server: str | None = None,
    overwrite_variables: bool = False,
) -> StreamingResult:
    """Have a namespace for an environment of a project that exists, with its variables; again changes nothing.

    For operations that set whole projects up. The caller has checked that the project is the caller's. `server`: a key of the
    inventory with the role streaming, the only one when None. Runs to its end under the environment's lease. Raises Conflict
    (no such server, another team's server, variables that lead elsewhere), DriverUnavailable, DriverRefused or DeadlineExceeded
    of that server, LockHeld while another run holds the environment.
    """
    return await _setup(
        ctx,
        StreamingSetupRequest(
            project_name=project, environment=environment, server=server, overwrite_variables=overwrite_variables
        ),
    )


async def _setup(ctx: Context, request: StreamingSetupRequest) -> StreamingResult:
    view = await _run(ctx, "streaming_setup", request)
    told: dict[str, Any] = {}
    for step in (fact(view, "facts") or {}).values():
        told.update({name: value for name, value in step.items() if value is not None})
    names = {"namespace": "namespace", "server": "server", "url": "url", "apiUrl": "api_url"}
    fields = {field: told[name] for name, field in names.items() if name in told}
    fields |= {name: told[name] for name in ("variables", "version") if name in told}
    same = view.status == "succeeded" and not told.get("changed") and not told.get("wrote")
    done = f"streaming of {request.project_name} {request.environment} is {'there already' if same else 'ready'}"
    warnings = [*_warnings(view), *_said(told)]
    return StreamingResult.model_validate(
        {**common(view, _message(view, done), warnings), **fields, "unchanged": True if same else None}
    )


def _said(told: dict[str, Any]) -> list[str]:
    """What a caller has to know besides."""
    found = []
    if others := told.get("others"):
        strangers = f", {told['strangers']} of them not made from here" if told.get("strangers") else ""
        found.append(
            f"the token secret and the API key are the server's: they also open its {others} other namespaces{strangers}"
        )
    if told.get("restart"):
        origins = ", ".join(told["restart"])
        found.append(f"pages of {origins} are let in after Centrifugo's next restart: it reads origins only then")
    if str(told.get("url", "")).startswith("ws://"):
        found.append("browsers would connect without TLS: give the server a domain, or set streaming.urls")
    return found


async def _run(ctx: Context, kind: str, request: RunRequest) -> RunView:
    project = await load_project(ctx.store, request.project_name)
    header = header_of(ctx, kind, request, team=project.team_id, seconds=RUN_SECONDS)
    return await run_to_answer(ctx, header, wait=request.wait)


def _message(view: RunView, done: str) -> str:
    return done if view.status == "succeeded" else "it is under way; look with operation_get"


def _warnings(view: RunView) -> list[str]:
    found = list(fact(view, "warnings") or [])
    for step in (fact(view, "facts") or {}).values():
        if step.get("backupProblem"):
            found.append(f"the Backup server does not have the variables yet: {step['backupProblem']}")
    return found
