"""Carrying out one call from the command line: in this process on the local registry, or on a server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from codeb_mcp.faces.cli_keys import configured_key
from codeb_mcp.faces.cli_show import Progress, console, progress, show
from codeb_mcp.model.errors import CodebError, RateLimited
from codeb_mcp.model.redaction import redact

if TYPE_CHECKING:
    from codeb_mcp.faces.client import Client
    from codeb_mcp.operations.catalog import Operation
    from codeb_mcp.operations.context import Event, Services
    from codeb_mcp.settings import Settings

Open = Callable[["Settings"], AbstractAsyncContextManager["Services"]]
LOOK_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Pauses between two looks at a run; the last one repeats."""


def open_installation(settings: Settings) -> AbstractAsyncContextManager[Services]:
    """The real installation of this host."""
    from codeb_mcp.app import opened

    return opened(settings)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a command runs. Tests hand in an installation of fakes."""

    open: Open = open_installation
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def settings(self) -> Settings:
        """The installation's settings. The command line is quiet about its own work unless asked."""
        from codeb_mcp.settings import load

        settings = load(environ=self.environ)
        if "CODEB_LOG_LEVEL" not in self.environ:
            settings = settings.model_copy(update={"log_level": "error"})
        return settings


@dataclass(frozen=True, slots=True)
class Manner:
    """How the caller wants it: machine-readable, where, in which colours."""

    json: bool = False
    connect: str | None = None
    color: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """One call. `operation` is None for a tool that only the server knows."""

    tool: str
    arguments: Mapping[str, Any]
    operation: Operation | None = None

    @property
    def long(self) -> bool:
        """Whether progress is worth showing."""
        return self.operation is not None and self.operation.long


class Interrupted(Exception):
    """The person pressed Ctrl-C. `run_id`: the run that stays open, if there is one."""

    def __init__(self, run_id: str | None) -> None:
        super().__init__(run_id)
        self.run_id = run_id


def carry_out(wanted: Wanted, around: Surroundings, manner: Manner) -> None:
    """Make the call and print its answer. Raises CodebError; Interrupted after Ctrl-C."""
    display = progress(quiet=manner.json or not wanted.long, color=manner.color)
    heard = Heard(display)

    def answer(body: Mapping[str, Any]) -> None:
        display.close()
        print_answer(body, manner)

    work = (
        _remotely(wanted, around, manner, heard, answer) if manner.connect else _locally(wanted, around, heard, answer)
    )
    try:
        asyncio.run(interruptible(work, heard))
    finally:
        display.close()


def print_answer(body: Mapping[str, Any], manner: Manner) -> None:
    """On stdout: compact JSON for machines, text for people."""
    if manner.json:
        from pydantic_core import to_json

        sys.stdout.write(to_json(body).decode() + "\n")
    else:
        show(body, console(color=manner.color))
    sys.stdout.flush()


@dataclass(slots=True)
class Heard:
    """What is known of a run while the call lasts."""

    display: Progress
    run_id: str | None = None

    def hear(self, event: Event) -> None:
        """Remember the run and show the news."""
        self.run_id = event.operation_id
        self.display.hear(event)


Answered = Callable[[Mapping[str, Any]], None]


async def _locally(wanted: Wanted, around: Surroundings, heard: Heard, answered: Answered) -> None:
    from codeb_mcp.operations.invoke import Call, invoke
    from codeb_mcp.operations.keys import KeyRing

    settings, key = around.settings(), configured_key(around.environ)
    async with around.open(settings) as services:
        caller = await KeyRing().authenticate(services, key, via="cli")
        made = await invoke(services, Call(wanted.tool, wanted.arguments, caller, progress=heard.hear))
        answered(made.body)
        heard.run_id = made.body.get("operationId") or heard.run_id
        # A run lives in the process that started it: one that nobody waits for is brought to its end here.
        await services.runs.drain()


async def _remotely(wanted: Wanted, around: Surroundings, manner: Manner, heard: Heard, answered: Answered) -> None:
    from codeb_mcp.faces.client import connected

    async with connected(manner.connect or "", configured_key(around.environ)) as client:
        watched = followed(wanted) if not manner.json else None
        if watched is None:
            answered(await client.call(wanted.tool, wanted.arguments))
            return
        await _follow(client, watched, heard)
        body = await client.call(watched.tool, watched.arguments)
        if "idempotencyKey" not in wanted.arguments:
            body.pop("joined", None)
        answered(body)


def followed(wanted: Wanted) -> Wanted | None:
    """The call with a key of its own, so that it can be started, watched, and then asked for its end without starting a
    second run; None when it does not wait or cannot be joined."""
    fields = wanted.operation.request.model_fields if wanted.operation else {}
    if not wanted.long or "idempotency_key" not in fields or wanted.arguments.get("wait") is False:
        return None
    return replace(wanted, arguments={"idempotencyKey": f"cli:{uuid.uuid4().hex}", **wanted.arguments})


async def _follow(client: Client, wanted: Wanted, heard: Heard) -> None:
    """Start the run and show its steps until it has ended, in whatever way."""
    state = await client.call(wanted.tool, {**wanted.arguments, "wait": False})
    run_id, shown, looks = str(state.get("operationId") or ""), 0, 0
    heard.run_id = run_id or None
    while run_id:
        steps = [step for step in state.get("steps", []) if isinstance(step, Mapping)]
        for number, step in enumerate(steps[shown:], start=shown + 1):
            heard.hear(_event(run_id, number, step))
        shown = len(steps)
        if state.get("status") != "running":
            return
        await asyncio.sleep(LOOK_SECONDS[min(looks, len(LOOK_SECONDS) - 1)])
        looks += 1
        with contextlib.suppress(RateLimited):
            state = await client.call("operation_get", {"operationId": run_id})


def _event(run_id: str, number: int, step: Mapping[str, Any]) -> Event:
    """A step of a run as news; how many there will be is not known from here."""
    from codeb_mcp.operations.context import Event

    words = str(step.get("error") or step.get("output") or "")
    return Event(run_id, str(step.get("name")), "failed" if step.get("error") else "started", number, 0, None, words)


async def interruptible(work: Coroutine[Any, Any, None], heard: Heard) -> None:
    """Do the work. The first Ctrl-C says how to go on with a run that is under way, the second one leaves it open."""
    task = asyncio.ensure_future(work)
    pressed = 0

    def press() -> None:
        nonlocal pressed
        pressed += 1
        if pressed == 1 and heard.run_id is not None:
            said = f"run {heard.run_id} goes on; press Ctrl-C again to leave it open, and take it up later with"
            sys.stderr.write(f"\n{said}\n  codeb operation resume {heard.run_id}\n")
            return
        task.cancel()

    async with _listening(press):
        try:
            await task
        except asyncio.CancelledError:
            raise Interrupted(heard.run_id) from None


@contextlib.asynccontextmanager
async def _listening(press: Callable[[], None]) -> AsyncIterator[None]:
    """Ctrl-C calls `press` during the block, where this thread may say so."""
    loop = asyncio.get_running_loop()
    added = False
    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        loop.add_signal_handler(signal.SIGINT, press)
        added = True
    try:
        yield
    finally:
        if added:
            loop.remove_signal_handler(signal.SIGINT)


def with_services(around: Surroundings, work: Callable[[Services], Awaitable[Any]]) -> Any:
    """Run a piece of the operator's own work on the local installation; file access is the right to do so."""

    async def go() -> Any:
        async with around.open(around.settings()) as services:
            return await work(services)

    return asyncio.run(go())


def wire_error(error: CodebError) -> dict[str, Any]:
    """The error as machines get it on stdout. A name that is not known may be a key typed into the wrong field: masked."""
    shown: dict[str, Any] = redact({"success": False, "error": error.message, **error.as_dict()})
    return shown
