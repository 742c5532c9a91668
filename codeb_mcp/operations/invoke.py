"""One call from its name to its answer: limit, authorise, validate, own, run, audit. The same for every face."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from codeb_mcp.model.access import Principal, Reach, in_scope
from codeb_mcp.model.errors import Bug, CodebError, Forbidden, InvalidRequest, NotFound, RateLimited
from codeb_mcp.model.names import PATTERNS
from codeb_mcp.model.plain import DEEPEST, is_bottomless, keepable
from codeb_mcp.model.redaction import MASK, clean_text, redact, redact_text, secret_fields
from codeb_mcp.operations.catalog import ANSWER_LIMIT, CATALOG, Effect, Operation, Page, Request, Result
from codeb_mcp.operations.context import Context, Progress, Services, unheard
from codeb_mcp.operations.ownership import require_project, require_scope, require_team
from codeb_mcp.registry.audit import AuditRecord

ARGUMENTS_LIMIT = 8_000
TOOL_LIMIT = 64
NEED_NOT_EXIST = frozenset({"project_create", "workflow_init"})
"""Operations that may name a project before there is one; they tell nothing about a stranger's."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as a face received it. `arguments` are what the caller sent, unchecked."""

    tool: str
    arguments: Mapping[str, Any]
    caller: Principal
    correlation_id: str = ""
    progress: Progress = unheard


@dataclass(frozen=True, slots=True)
class Answer:
    """A result, as an object, as JSON value and as compact JSON text, and how long it took in milliseconds."""

    operation: Operation
    result: Result
    body: dict[str, Any]
    text: str
    duration_ms: float


async def invoke(services: Services, call: Call) -> Answer:
    """Run the call; raises CodebError, and nothing else. Every decision is audited, also that there is no such tool."""
    started = time.perf_counter()
    call = call if call.correlation_id else replace(call, correlation_id=uuid.uuid4().hex)
    known = CATALOG.get(CATALOG.aliases.get(call.tool, call.tool))
    outcome, error = "ok", None
    body: dict[str, Any] = {}
    try:
        await limit(services, call.caller)
        operation = known or CATALOG.find(call.tool)
        result = await _run(services, operation, call)
        result, body, text = fitted(result)
        return Answer(operation, result, body, text, _milliseconds(started))
    except CodebError as refused:
        outcome, error = refused.code, refused
        raise
    except asyncio.CancelledError:
        outcome = "caller_gone"
        raise
    except Exception as problem:
        outcome = "bug"
        raise _bug(services, call, problem) from problem
    finally:
        facts = error.detail if error else body
        await _audit(services, known, call, outcome, facts, _milliseconds(started))


async def _run(services: Services, operation: Operation, call: Call) -> Result:
    authorise(operation, call.caller)
    request = validated(operation, call.arguments)
    await _require_own(services, operation, call.caller, request)
    context = Context(services, call.caller, call.correlation_id, call.progress)
    return await operation.run(context, request)


async def limit(services: Services, caller: Principal) -> None:
    """Count the call against the key's and the team's budget; raises RateLimited."""
    server = services.settings.server
    budgets = (("key:" + caller.key_id, server.calls_per_minute), ("team:" + caller.team, server.team_calls_per_minute))
    for bucket, calls in budgets:
        taken = services.registry.limiter.take(bucket, limit=calls, per_seconds=60)
        if not taken.allowed:
            wait = max(1, round(taken.retry_after_seconds))
            raise RateLimited(
                f"more than {calls} calls a minute",
                hint=f"Wait {wait} seconds.",
                retryAfter=wait,
                limit=calls,
                remaining=0,
                reset=taken.reset_at_seconds,
            )


def authorise(operation: Operation, caller: Principal) -> None:
    """Raise Forbidden unless the caller's role and scopes cover the operation."""
    if not may(operation, caller):
        raise Forbidden(
            f"{operation.name} needs role {operation.role}; this key has {caller.role}"
            if not caller.role.covers(operation.role)
            else f"this key may not use {operation.name}",
            hint="Ask an admin of your team for a key that may.",
            permission=operation.permission,
            requiredRole=operation.role.value,
        )


def may(operation: Operation, caller: Principal) -> bool:
    """Whether role and scopes allow the operation at all; faces list tools by it."""
    if operation.reach is Reach.PLATFORM and not caller.platform:
        return False
    allowed = caller.role.covers(operation.role) and in_scope(caller.scopes, "tool", operation.name)
    return allowed and in_scope(caller.scopes, "source", caller.source)


def validated(operation: Operation, arguments: Mapping[str, Any]) -> Request:
    """The request of its model; raises InvalidRequest that lists every problem by field, also for secrets: what is kept of
    a request is read by people and models."""
    if is_bottomless(arguments):
        raise InvalidRequest("params: are nested too deeply", hint=f"Use at most {DEEPEST} levels.")
    if held := secret_fields(arguments, operation.request.secret):
        fields = [{"field": clean_text(name, limit=100), "problem": "looks like a secret"} for name in held[:20]]
        said = f"{fields[0]['field']}: looks like a secret"
        raise InvalidRequest(said, hint="Leave secrets out of calls.", fields=fields)
    try:
        text = to_json(arguments)
    except (ValueError, TypeError):
        raise InvalidRequest("params: are not JSON", hint="Send plain JSON values as UTF-8.") from None
    try:
        # By way of JSON because its strict rules are those callers expect: no number in a string, no true for 1.
        return operation.request.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise invalid(operation, error) from None


def invalid(operation: Operation, error: ValidationError) -> InvalidRequest:
    """All problems of a request, each with its field."""
    known = sorted(field.alias or name for name, field in operation.request.model_fields.items())
    fields = []
    for item in error.errors(include_url=False, include_input=False):
        field = clean_text(".".join(str(part) for part in item["loc"]).replace("\n", " "), limit=100) or "params"
        problem = _in_words(item)
        fields.append({"field": field, "problem": problem})
    shown = "; ".join(f"{item['field']}: {item['problem']}" for item in fields[:5])
    hint = f"{operation.name} takes {', '.join(known)}." if known else f"{operation.name} takes no parameters."
    return InvalidRequest(shown, hint=hint, fields=fields[:20])


def _in_words(item: Any) -> str:
    """What is wrong with one value, for a person: patterns are explained, not shown."""
    if item["type"] == "extra_forbidden":
        return "unknown parameter"
    if item["type"] == "string_pattern_mismatch":
        return PATTERNS.get(item["ctx"]["pattern"], "has characters that are not allowed here")
    return str(item["msg"]).removeprefix("Value error, ")


async def _require_own(services: Services, operation: Operation, caller: Principal, request: Request) -> None:
    said = vars(request)  # a model looks long for an attribute that it does not have
    project = said.get("project_name")
    if project is not None:
        one, several = said.get("environment"), said.get("environments", ())
        named = [one] if one is not None else list(several or type(request).about)
        require_scope(caller, project, named, changes=operation.effect is not Effect.READ)
        if operation.name not in NEED_NOT_EXIST:
            await require_project(services.store, caller, project)
    elif operation.reach is Reach.PROJECT:
        raise NotFound(f"{operation.name} names no project", hint="Say projectName.")
    team = said.get("team_id")
    if team is not None and operation.reach is not Reach.PLATFORM:
        require_team(caller, team)


def fitted(result: Result) -> tuple[Result, dict[str, Any], str]:
    """The result, its wire form and that as JSON, cut to the answer limit: a page gives fewer rows and says where to go
    on."""
    body = result.wire()
    text = to_json(body).decode()
    if len(text) <= ANSWER_LIMIT or not isinstance(result, Page):
        return result, body, text
    rows = len(result.data)
    while len(text) > ANSWER_LIMIT and rows > 1:
        rows = max(1, min(rows - 1, int(rows * ANSWER_LIMIT / len(text))))
        result = result.model_copy(update={"data": result.data[:rows], "next_offset": result.offset + rows})
        body = result.wire()
        text = to_json(body).decode()
    return result, body, text


def _bug(services: Services, call: Call, problem: Exception) -> Bug:
    services.log.exception("operation crashed", tool=call.tool, correlation_id=call.correlation_id)
    return Bug(
        "the operation crashed",
        hint=f"Look for {call.correlation_id} in the server's log.",
        correlationId=call.correlation_id,
        kind=type(problem).__name__,
    )


async def _audit(
    services: Services,
    operation: Operation | None,
    call: Call,
    outcome: str,
    facts: Mapping[str, Any],
    took: float,
) -> None:
    """Changes are durable before they are answered; reads are written in the background."""
    at = services.drivers.clock.now()
    operation_id = facts.get("operationId")

    def make() -> AuditRecord:
        return _record(operation, call, outcome, at=at, operation_id=operation_id, took=took)

    await services.trail.write(make, durable=operation is not None and operation.effect is not Effect.READ)


def _record(
    operation: Operation | None, call: Call, outcome: str, *, at: datetime, operation_id: str | None, took: float
) -> AuditRecord:
    caller = call.caller
    return AuditRecord(
        at=at,
        actor=caller.name,
        key_id=caller.key_id,
        team=caller.team,
        role=caller.role.value,
        tool=operation.name if operation else clean_text(redact_text(keepable(call.tool[:500])), limit=TOOL_LIMIT),
        outcome=outcome,
        project=_text(call.arguments.get("projectName")),
        environment=_text(call.arguments.get("environment")),
        arguments=_kept(redact(keepable(_without_secrets(operation, call.arguments)))),
        correlation_id=call.correlation_id,
        operation_id=operation_id,
        duration_ms=round(took, 1),
    )


def _without_secrets(operation: Operation | None, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments with nothing but the names of what is secret by declaration; what no operation declares, as the
    parameters of a mistyped name, may be secret."""
    if operation is None:
        return {name: _masked(value) for name, value in arguments.items()}
    return {name: _masked(value) if name in operation.request.secret else value for name, value in arguments.items()}


def _masked(value: Any) -> Any:
    return {str(name): MASK for name in value} if isinstance(value, Mapping) else MASK


def _kept(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the audit trail keeps them: nobody fills a disk with what was refused anyway."""
    size = len(to_json(arguments))
    return (
        arguments
        if size <= ARGUMENTS_LIMIT
        else {"truncated": f"{size} bytes", "names": [name[:50] for name in sorted(arguments)[:20]]}
    )


def _text(value: object) -> str | None:
    return redact_text(keepable(value))[:200] if isinstance(value, str) else None


def _milliseconds(started: float) -> float:
    return (time.perf_counter() - started) * 1000
