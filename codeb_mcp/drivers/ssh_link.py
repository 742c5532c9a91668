"""One kept SSH connection to one server: made on first use, joined by all users, made again when it was lost.

Nothing is taken from the operator's own SSH configuration. The only host key that is ever accepted is the one of the
inventory; a server that shows another one gets nothing, not even a user name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from codeb_mcp.drivers.attempt import Attempt
from codeb_mcp.drivers.ssh_keys import host_key_algorithms, host_key_changed, load, witness_of
from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverUnavailable
from codeb_mcp.model.server import Server

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")
CLOSE_SECONDS = 2.0
SESSION_PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
ALONE: dict[str, Any] = {
    "config": None,
    "agent_path": None,
    "agent_identities": None,
    "pkcs11_provider": None,
    "x509_trusted_certs": None,
    "gss_host": None,
    "gss_kex": False,
    "gss_auth": False,
    "password": None,
    "host_based_auth": False,
    "preferred_auth": ["publickey"],
    "compression_algs": ["none"],
}
"""What the library would otherwise look up by itself: the operator's configuration, keys, agents, tickets."""


@dataclass(frozen=True, slots=True)
class SshSettings:
    """How servers are reached. Times in seconds.

    `key_file` is the private key that logs in, `agent` the path of an SSH agent's socket whose keys are tried as well.
    A connection that is silent for `keepalive_seconds` is asked for a sign of life, and given up after
    `keepalive_count` questions without an answer. `sessions` bounds commands that run at once on one server; sshd allows
    10 sessions (MaxSessions), and files need one of them. `sockets` is the folder for forwarded sockets (private ones are
    made in it), None for the system's temporary folder.
    """

    key_file: str = "/opt/codeb/ssh/id_ed25519"
    agent: str | None = None
    connect_seconds: float = 10.0
    file_seconds: float = 30.0
    keepalive_seconds: float = 5.0
    keepalive_count: int = 2
    sessions: int = 8
    sockets: str | None = None


class SshLink:
    """The connection of one server. `close` is final."""

    def __init__(self, key: str, server: Server, settings: SshSettings) -> None:
        self.key = key
        self.server = server
        self.settings = settings
        self.slots = asyncio.Semaphore(settings.sessions)
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._files: tuple[asyncssh.SSHClientConnection, asyncssh.SFTPClient] | None = None
        self._files_turn = asyncio.Lock()
        self._closed = False

    async def connection(self) -> asyncssh.SSHClientConnection:
        """The living connection; all who ask while it is being made wait for the same one."""
        if self._closed:
            raise Attempt(self.key, "connect").unreachable(
                "its connection was let go because the inventory changed", "Ask for the server again."
            )
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(_look_at)
        return await joined(Attempt(self.key, "connect"), self._connecting)

    async def files(self) -> asyncssh.SFTPClient:
        """The connection's one SFTP session."""
        connection = await self.connection()
        async with self._files_turn:
            if self._files is None or self._files[0] is not connection:
                # A cancelled channel stays open at the server for as long as the connection lives.
                starting = asyncio.create_task(patiently(connection, connection.start_sftp_client))
                starting.add_done_callback(_look_at)
                self._files = connection, await asyncio.shield(starting)
            return self._files[1]

    def drop_files(self, which: asyncssh.SFTPClient | None) -> None:
        """Let go of this SFTP session, with all that still waits on it; the next user gets a new one."""
        if which is not None:
            which.exit()
            if self._files is not None and self._files[1] is which:
                self._files = None

    def abort(self) -> None:
        """Let go at once, for good."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()

    async def close(self) -> None:
        """Let go politely, for good; bounded."""
        self._closed = True
        connecting = self._connecting
        if connecting is not None and not connecting.done():
            connecting.cancel()
            await asyncio.wait([connecting], timeout=CLOSE_SECONDS)
        connection = self._connection
        if connection is not None:
            self.drop_files(self._files[1] if self._files is not None else None)
            connection.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await connection.wait_closed()
            connection.abort()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        library = load()
        attempt = Attempt(self.key, "connect")
        pinned = self._pinned(attempt)
        witness = witness_of()
        try:
            async with asyncio.timeout(self.settings.connect_seconds), self._identities(attempt) as identities:
                connection, _ = await library.create_connection(
                    lambda: witness,
                    self.server.host,
                    self.server.port,
                    username=self.server.user,
                    client_keys=identities,
                    known_hosts=([pinned], [], []),
                    server_host_key_algs=host_key_algorithms(pinned.get_algorithm()),
                    keepalive_interval=self.settings.keepalive_seconds,
                    keepalive_count_max=self.settings.keepalive_count,
                    **ALONE,
                )
        except TimeoutError:
            raise self._silent(attempt, met=witness.met) from None
        except (library.Error, OSError) as error:
            raise self._failed(attempt, error, witness.shown) from error
        self._connection = made = cast("asyncssh.SSHClientConnection", connection)
        return made

    def _pinned(self, attempt: Attempt) -> asyncssh.SSHKey:
        library = load()
        if self.server.host_key is None:
            raise attempt.refused(
                "the inventory has no host key for it",
                "Compare the fingerprint of the key that the server shows with the one on its console "
                "(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then put it into the server's entry as hostKey.",
                reason="host_key_missing",
            )
        try:
            key: asyncssh.SSHKey = library.import_public_key(self.server.host_key)
            return key
        except ValueError:
            raise attempt.refused(
                "the host key in the inventory is none",
                "Put the server's public host key, like 'ssh-ed25519 AAAA…', into its entry as hostKey.",
                reason="host_key_bad",
            ) from None

    @contextlib.asynccontextmanager
    async def _identities(self, attempt: Attempt) -> AsyncIterator[list[Any]]:
        """The keys to log in with: the file's and the agent's."""
        library = load()
        identities: list[Any] = []
        async with contextlib.AsyncExitStack() as stack:
            if self.settings.agent is not None:
                agent = await stack.enter_async_context(library.connect_agent(self.settings.agent))
                identities += await agent.get_keys()
            key = await asyncio.to_thread(self._key_of_file, attempt, needed=not identities)
            yield [*([key] if key is not None else []), *identities]

    def _key_of_file(self, attempt: Attempt, *, needed: bool) -> asyncssh.SSHKey | None:
        path, library = self.settings.key_file, load()
        hint = (
            f"`codeb ssh-key` makes the key of this installation ({path} is in use) and prints the line "
            "for the server's authorized_keys."
        )
        try:
            with open(path, "rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise attempt.refused(
                        "others may read the key that logs in", f"Run: chmod 600 {path}", reason="login_key"
                    )
                key: asyncssh.SSHKey = library.import_private_key(file.read(65_536))
                return key
        except FileNotFoundError:
            if not needed:
                return None
            raise attempt.refused("there is no key to log in with", hint, reason="login_key") from None
        except (OSError, ValueError) as error:
            said = f"the key that logs in cannot be read ({type(error).__name__})"
            raise attempt.refused(said, hint, reason="login_key") from None

    def _silent(self, attempt: Attempt, *, met: bool) -> DeadlineExceeded | DriverUnavailable:
        seconds = self.settings.connect_seconds
        if met:
            return attempt.too_late(seconds)
        return attempt.unreachable(f"no answer from {self.server.host}:{self.server.port} within {seconds:g} s")

    def _failed(self, attempt: Attempt, error: Exception, shown: str | None) -> CodebError:
        library = load()
        if shown is not None:
            return host_key_changed(self.key, self.server, shown)
        if isinstance(error, library.PermissionDenied):
            return attempt.refused(
                f"it does not let {self.server.user} log in with this key",
                f"Put {self.settings.key_file}.pub into ~{self.server.user}/.ssh/authorized_keys of the server.",
                reason="login",
            )
        if isinstance(error, library.KeyExchangeFailed):
            return attempt.refused(str(error), "The server's sshd is too old or its settings are too narrow.")
        return attempt.unreachable(str(error) or type(error).__name__)


async def joined(attempt: Attempt, task: asyncio.Task[T]) -> T:
    """Wait for a task that goes on without us. Its own end by force, when the connection is let go, is an error for us
    and not our cancellation."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        attempt.abandon()
        waiting = asyncio.current_task()
        if task.cancelled() and waiting is not None and not waiting.cancelling():
            raise attempt.unreachable("the connection was let go") from None
        raise


async def patiently(connection: asyncssh.SSHClientConnection, open_session: Callable[[], Awaitable[T]]) -> T:
    """Open a session, again when sshd has none to give: it counts one as open for a moment longer than we do. What was
    refused so was certainly not begun."""
    library = load()
    for pause_seconds in SESSION_PAUSES:
        try:
            return await open_session()
        except library.ChannelOpenError as error:
            if connection.is_closed() or error.code == library.OPEN_REQUEST_SESSION_FAILED:
                raise
        await asyncio.sleep(pause_seconds)
    return await open_session()


def _look_at(task: asyncio.Future[Any]) -> None:
    """Its failure belongs to those who waited for it; when nobody does any more, it is nobody's."""
    if not task.cancelled():
        task.exception()
