"""What the program wants from a server's operating system, in its own words; this machine and SSH speak it alike.

No call runs a shell: a command is a list of words, a path is a path. Failures name the server. `inDoubt` in the details of an
error says whether the wish may have been carried out although no answer came: then look before you repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from codeb_mcp.drivers.protocols import Engine
from codeb_mcp.model.server import Server

MAX_OUTPUT = 1_048_576


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ran to its end. `status` is its exit status, 128 + n for signal n."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.status == 0


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file as it is: its kind (`file`, `folder`, `link`, `other`), permission bits, owner and size in bytes."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int


class Host(Protocol):
    """One server. All raise DriverUnavailable when it cannot be reached, DeadlineExceeded when it does not answer in time,
    DriverRefused when it says no (also: no permission), HostKeyChanged when it is not the server it was,
    InsufficientStorage when its disk is full."""

    @property
    def key(self) -> str:
        """Its name in the inventory."""
        ...

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 30.0, max_output: int = MAX_OUTPUT
    ) -> Finished:
        """Run a command. A status other than 0 is an answer, not an error; 127 is that of a command that is not there, 128 + n
        that of one ended by signal n. More output than `max_output` bytes per stream
        is DriverRefused."""
        ...

    async def read(self, path: str, *, max_bytes: int = MAX_OUTPUT) -> bytes | None:
        """The file's content; None when there certainly is none. Does not follow a link in its last part."""
        ...

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Put the file in place: at any moment the former or the new one is there, and the new one is durable on return.
        Its folder has to exist."""
        ...

    async def stat(self, path: str) -> FileStat | None:
        """What is there, without following a link; None when there certainly is nothing."""
        ...

    async def list(self, folder: str) -> list[str] | None:
        """The names in a folder, sorted; None when there certainly is no such folder."""
        ...

    async def make_folder(self, path: str, *, mode: int = 0o755) -> bool:
        """Have the folder and those above it; the last one has `mode`. True when it was made."""
        ...

    async def remove(self, path: str) -> bool:
        """Remove a file, durably; False when there was none."""
        ...

    async def socket(self, target: str) -> str:
        """A path of a unix socket on this machine that leads to the server's `target`: a unix socket's path, or
        `host:port` as the server sees it. It lives as long as the connection and is made again by the next call."""
        ...


class Inspector(Protocol):
    """Asks services of a server through the sockets that `Host.socket` gives."""

    async def http(self, socket: str, path: str, *, host: str = "127.0.0.1") -> tuple[int, str]:
        """GET over a unix socket: the status and the head of the body; raises DriverUnavailable without an answer. `host`: as
        whom the service knows itself; some, like Caddy, answer to nobody who calls them otherwise."""
        ...

    async def engine(self, address: str) -> Engine:
        """Which container engine answers at `unix://…` or `tcp://…`; raises DriverUnavailable when none does."""
        ...


class Hosts(Protocol):
    """All servers, each with one kept connection."""

    def at(self, key: str, server: Server) -> Host:
        """The server of that name. Nothing is connected before it is used."""
        ...

    async def host_keys(self, address: str, port: int) -> list[str]:
        """The public host keys that whoever answers there shows now, best first. Nothing is trusted by that."""
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...
