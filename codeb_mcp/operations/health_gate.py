"""The health gate: a release passes it, or the answer says exactly why not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from codeb_mcp.drivers.protocols import Answer, Container, Containers
from codeb_mcp.model.errors import CodebError, DriverRefused, ReleaseUnhealthy
from codeb_mcp.model.project import HealthCheck
from codeb_mcp.model.redaction import clean_text

FIRST_PAUSE_SECONDS = 0.01
PAUSE_SHARE = 0.05
"""The pause as a share of the time waited so far: a release is seen to be healthy at most this much too late."""
LOOK_SECONDS, LOOK_SHARE = 0.1, 0.3
"""How often the engine is asked whether the release crashes: first after this time, then by the time waited so far."""
RESTARTS_ALLOWED = 2
LOG_LINES = 15
HEAD_SHOWN = 120

Report = Callable[[float | None, str], None]
Ask = Callable[[str], Awaitable[Answer]]


async def wait_healthy(
    containers: Containers, ask: Ask, name: str, health: HealthCheck, report: Report
) -> Mapping[str, Any]:
    """Ask the slot until one path answers as expected; `{path, status, attempts}`.

    Asks often at first and then every `interval_seconds`. Raises ReleaseUnhealthy at the deadline, or as soon as the
    container has crashed more than twice.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    attempts, looked = 0, 0.0
    while True:
        attempts += 1
        answers = []
        for path in health.paths:
            answer = await ask(path)
            if answer.status in health.expected_statuses:
                return {"path": path, "status": answer.status, "attempts": attempts}
            answers.append((path, answer))
        path, answer = most_telling(answers)
        spent = loop.time() - started
        pause = min(max(FIRST_PAUSE_SECONDS, spent * PAUSE_SHARE), health.interval_seconds)
        container = None
        if spent - looked >= min(max(LOOK_SECONDS, spent * LOOK_SHARE), health.interval_seconds):
            container, looked = await containers.inspect(name), spent
        if container is not None and container.restart_count > RESTARTS_ALLOWED:
            raise await _unhealthy(containers, name, container, (path, answer), spent)
        if spent + pause > health.deadline_seconds:
            raise await _unhealthy(containers, name, await containers.inspect(name), (path, answer), spent)
        report(min(spent / health.deadline_seconds, 0.99), f"attempt {attempts}: {_said(answer)}")
        await asyncio.sleep(pause)


async def _unhealthy(
    containers: Containers, name: str, container: Container | None, asked: tuple[str, Answer], spent: float
) -> ReleaseUnhealthy:
    lines = await last_lines(containers, name)
    path, answer = asked
    state, hint = _diagnosis(container, answer, lines)
    return ReleaseUnhealthy(
        f"GET {path} {_said(answer)} for {spent:.1f} s{state}{_head(answer)}",
        hint=hint,
        httpStatus=answer.status,
        bodyHead=clean_text(answer.body_head, limit=200),
        location=answer.location,
        logs=lines,
        exitCode=container.exit_code if container else None,
    )


def _head(answer: Answer) -> str:
    """The beginning of what the app answered, on one line."""
    said = " ".join(clean_text(answer.body_head, limit=HEAD_SHOWN).split())
    return f"; it said: {said}" if said else ""


def most_telling(answers: Sequence[tuple[str, Answer]]) -> tuple[str, Answer]:
    """The answer that says most about what is wrong: of several paths, one that exists."""
    return next((one for one in answers if one[1].status not in (None, 404)), answers[0])


async def last_lines(containers: Containers, name: str) -> list[str]:
    """The container's last words, as harmless data; empty when they cannot be had."""
    lines: list[str] = []
    try:
        async with asyncio.timeout(5):
            async for line in containers.logs(name, tail=LOG_LINES):
                lines.append(clean_text(line.partition(" ")[2] or line, limit=200))
    except (CodebError, TimeoutError):
        return lines
    return lines


def _said(answer: Answer) -> str:
    if answer.status is None:
        return answer.problem or "gave no answer"
    if answer.location:
        return f"answered {answer.status}, a redirect to {clean_text(answer.location, limit=200)}"
    return f"answered {answer.status}"


def _diagnosis(container: Container | None, answer: Answer, lines: list[str]) -> tuple[str, str]:
    """What the container's state adds to the reason, and what to do about it."""
    text = "\n".join(lines)
    if "Read-only file system" in text or "EROFS" in text:
        return "", "The app writes to its own root: set limits.readOnlyRoot to false or add the path to limits.tmpfs."
    if container is None:
        return "; its container is gone", "Look at the engine: something else removed the container."
    if container.oom_killed:
        return "; it was killed for lack of memory", "Raise limits.memoryMb with project_update."
    if container.restart_count or not container.running:
        code = container.exit_code
        return f"; the app exits with code {code} right after its start", "Read the last log lines in `logs`."
    if answer.location:
        return "", "Set healthCheck.path to a path that answers without a redirect, or allow the status."
    if answer.status == 404:
        return "", "Set healthCheck.path to a path that the app serves."
    if answer.status is None:
        return "", "See that the app listens on 0.0.0.0 at containerPort, or raise healthCheck.deadlineSeconds."
    return "", "Read the last log lines in `logs`; allow the status with healthCheck.expectedStatuses if it is right."


async def require_image(containers: Containers, name: str, image_id: str | None) -> Container:
    """The running container; raises DriverRefused when it is gone, stopped or runs another image than was deployed."""
    container = await containers.inspect(name)
    if container is None:
        raise DriverRefused(f"container {name} is gone", hint="Deploy again, then promote.", container=name)
    if not container.running:
        raise DriverRefused(
            f"container {name} is {container.state}", hint="Look at its logs, then deploy again.", container=name
        )
    if image_id is not None and container.image_id != image_id:
        raise DriverRefused(
            f"container {name} runs another image than the registry says",
            hint="Run registry_check; deploy again.",
            expected=image_id,
            found=container.image_id,
        )
    return container
