"""One command on a server: an SSH session whose output is bounded and which is ended when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import signal
from collections.abc import Sequence
from typing import Any

from codeb_mcp.drivers.attempt import Abandoned, Attempt, quoted
from codeb_mcp.drivers.hosts import Finished
from codeb_mcp.drivers.ssh_keys import load
from codeb_mcp.drivers.ssh_link import patiently
from codeb_mcp.model.errors import DriverRefused

CLOSE_SECONDS = 5.0
GRACE_SECONDS = 1
TIMER = (b"timeout", b"-s", b"KILL")


class Command:
    """What goes to the server's shell: one string, every word quoted.

    `timeout` there ends the command with all that it started when its time is over, also when the network is cut; a
    second after we do, so that we decide while we are there. Its limit has random decimals and so tells this command
    from all others: `ender` makes that very `timeout` ring now. sshd alone would not do: it passes no signal on for root,
    and counts a session as open until its command has ended, whoever closed the channel.
    """

    def __init__(self, words: Sequence[bytes], seconds: float) -> None:
        self.limit_seconds = math.ceil(seconds) + GRACE_SECONDS
        self._limit = f"{self.limit_seconds}.0{secrets.randbelow(10**12):012}".encode("ascii")
        self.text = b"exec " + quoted([*TIMER, self._limit, *words])

    @property
    def ender(self) -> bytes:
        """The command that ends it."""
        pattern = b"^" + b" ".join(TIMER) + b" " + self._limit.replace(b".", rb"\.") + b" "
        return quoted([b"pkill", b"-ALRM", b"-f", b"--", pattern])


class Session:
    """What comes back from one command. Told by the SSH library, in its words."""

    def __init__(self, attempt: Attempt, max_output: int) -> None:
        self._attempt = attempt
        self._max_output = max_output
        self._streams = {None: bytearray(), 1: bytearray()}
        self._channel: Any = None
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.decided: asyncio.Future[None] = loop.create_future()
        self.status: int | None = None
        self.lost: Exception | None = None
        self.too_much = False

    def connection_made(self, channel: Any) -> None:
        """The session is open; the command goes out next, unless nobody waits for it."""
        self._channel = channel
        try:
            self._attempt.send()
        except Abandoned:
            channel.abort()
            raise

    def session_started(self) -> None:
        """The server has taken the command."""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Output; when it is too much, nothing more is kept."""
        stream = self._streams[datatype]
        if not self.too_much:
            stream += data
        if len(stream) > self._max_output:
            stream.clear()
            self.too_much = True
            _settle(self.decided)

    def eof_received(self) -> bool:
        """No more output; the exit status comes by itself."""
        return True

    def exit_status_received(self, status: int) -> None:
        """It ended."""
        self.status = status

    def exit_signal_received(self, name: str, core_dumped: bool, message: str, language: str) -> None:  # noqa: FBT001
        """It was killed."""
        self.status = 128 + getattr(signal, f"SIG{name}", 0)

    def connection_lost(self, error: Exception | None) -> None:
        """The session is over."""
        self.lost = error
        _settle(self.ended)
        _settle(self.decided)

    def pause_writing(self) -> None:
        """The input is handed over as a whole and waits in the library."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def abort(self) -> None:
        """Close the session, whatever becomes of the command."""
        if self._channel is not None:
            self._channel.abort()

    @property
    def open(self) -> bool:
        """Whether the server still has this session."""
        return self._channel is not None and not self.ended.done()

    async def finished(self) -> Finished:
        """Wait for the end; what it was."""
        await self.decided
        if self.too_much:
            raise self._attempt.refused(
                f"it writes more than {self._max_output} bytes", "Ask for less output.", reason="too_large"
            )
        if self.status is None:
            raise self._attempt.unreachable(str(self.lost or "the session ended without an answer"))
        return Finished(self.status, bytes(self._streams[None]), bytes(self._streams[1]))


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def run(connection: Any, attempt: Attempt, command: Command, stdin: bytes, max_output: int) -> Finished:
    """Run it to its end. When cancelled, or when it writes too much, the command is ended, and this returns only when the
    server has one session less (bounded). Raises what the library raises, and Abandoned."""
    session = Session(attempt, max_output)
    # The library would leave a half-opened session behind if this were cancelled.
    opening = asyncio.create_task(
        patiently(connection, lambda: connection.create_session(lambda: session, command.text, encoding=None))
    )
    try:
        channel, _ = await asyncio.shield(opening)
        with contextlib.suppress(BrokenPipeError):  # it ended without reading all of its input; how, its end tells
            if stdin:
                channel.write(stdin)
            channel.write_eof()
        return await session.finished()
    except load().ChannelOpenError:
        if session.open:
            attempt.denied()  # sshd is there and did not take the command
        raise
    except (asyncio.CancelledError, DriverRefused):
        attempt.abandon()
        await _ended(connection, command, session, opening)
        raise


async def _ended(connection: Any, command: Command, session: Session, opening: asyncio.Future[Any]) -> None:
    try:
        async with asyncio.timeout(command.limit_seconds + CLOSE_SECONDS):
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None and session.open:
                await _told_to_end(connection, command)
                await session.ended
    except TimeoutError:
        pass
    finally:
        session.abort()


async def _told_to_end(connection: Any, command: Command) -> None:
    library = load()
    with contextlib.suppress(library.Error, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await patiently(connection, lambda: connection.run(command.ender, encoding=None))
