"""Carrying out one call from the command line: in this process on the local registry, or on a server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from codeb_mcp.faces.cli_keys import configured_key
from codeb_mcp.faces.cli_show import Progress, Silence, console, progress, show
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.redaction import redact

if TYPE_CHECKING:
    from codeb_mcp.operations.catalog import Operation
    from codeb_mcp.operations.context import Event, Services
    from codeb_mcp.settings import Settings

Result = TypeVar("Result")
Open = Callable[["Settings"], AbstractAsyncContextManager["Services"]]
Body = Mapping[str, Any]
Answered = Callable[[Body], None]


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


def carry_out(wanted: Wanted, around: Surroundings, manner: Manner) -> int:
    """Make the call, print its answer, and tell the exit code that it stands for. Raises CodebError; Interrupted after
    Ctrl-C."""
    display = progress(quiet=manner.json or not wanted.long, color=manner.color)
    heard = Heard(display)

    def answer(body: Body) -> None:
        heard.close()
        print_answer(body, manner)

    work = _remotely(wanted, around, manner, heard) if manner.connect else _locally(wanted, around, heard, answer)
    try:
        body = asyncio.run(interruptible(work, heard))
    finally:
        heard.close()
    if body is None:
        return 0
    answer(body)  # when everything is closed: a reader that has gone ends this process here
    return exit_code_of(body, wanted.operation)


def asked(wanted: Wanted, around: Surroundings, manner: Manner) -> Body:
    """The answer of a short call, for commands that do more with it than print it. Raises like `carry_out`."""
    heard = Heard(Silence())
    unprinted: list[Body] = []
    remote = manner.connect is not None
    work = _remotely(wanted, around, manner, heard) if remote else _locally(wanted, around, heard, unprinted.append)
    return asyncio.run(interruptible(work, heard)) or unprinted[0]


def exit_code_of(body: Body, operation: Operation | None) -> int:
    """What the result of the operation says, also when it came from a server."""
    if operation is None:
        return 0
    try:
        return operation.result.model_validate(dict(body)).exit_code
    except ValueError:  # a server of another version
        return 0


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
        with self._readers():
            self.display.hear(event)

    def close(self) -> None:
        """Leave the terminal as it was."""
        with self._readers():
            self.display.close()

    @contextlib.contextmanager
    def _readers(self) -> Iterator[None]:
        """A reader of the news that has gone must not end the run; nobody is told any more."""
        try:
            yield
        except (SystemExit, BrokenPipeError):
            self.display = Silence()


async def _locally(wanted: Wanted, around: Surroundings, heard: Heard, answered: Answered) -> Body | None:
    from codeb_mcp.operations.invoke import Call, invoke
    from codeb_mcp.operations.keys import KeyRing

    settings, key = around.settings(), configured_key(around.environ)
    async with around.open(settings) as services:
        caller = await KeyRing().authenticate(services, key, via="cli")
        made = await invoke(services, Call(wanted.tool, wanted.arguments, caller, progress=heard.hear))
        heard.run_id = made.body.get("operationId") or heard.run_id
        if made.body.get("status") != "running":
            return made.body
        # Who did not want to wait reads the answer at once. The run lives in the process that started it, so it is brought to
        # its end here, also when nobody reads.
        with contextlib.suppress(SystemExit, BrokenPipeError):
            answered(made.body)
        await services.runs.drain()
        return None


async def _remotely(wanted: Wanted, around: Surroundings, manner: Manner, heard: Heard) -> Body | None:
    from codeb_mcp.faces.cli_remote import Remote
    from codeb_mcp.faces.client import connected

    async with connected(manner.connect or "", configured_key(around.environ)) as client:
        return await Remote(client, heard.hear).answer(wanted.tool, wanted.arguments, wanted.operation)


async def interruptible(work: Coroutine[Any, Any, Result], heard: Heard) -> Result:
    """Do the work. The first Ctrl-C says how to go on with a run that is under way, the second one leaves it open."""
    task = asyncio.ensure_future(work)
    pressed, left = 0, False

    def press() -> None:
        nonlocal pressed, left
        pressed += 1
        if pressed == 1 and heard.run_id is not None:
            said = f"run {heard.run_id} goes on; press Ctrl-C again to leave it open, and take it up later with"
            sys.stderr.write(f"\n{said}\n  codeb operation resume {heard.run_id}\n")
            return
        left = True
        task.cancel()

    async with _listening(press):
        try:
            return await task
        except asyncio.CancelledError:
            if not left:
                raise
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
