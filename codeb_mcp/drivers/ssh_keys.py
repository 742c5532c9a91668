"""Host keys: which one is shown, by whom, and what is said when it is another one than the accepted one."""

from __future__ import annotations

import asyncio
import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

from codeb_mcp.drivers.attempt import Attempt
from codeb_mcp.model.errors import HostKeyChanged
from codeb_mcp.model.server import Server, fingerprint

if TYPE_CHECKING:
    import asyncssh

KEYS_BEST_FIRST = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
"""The signature algorithms of a key type whose name is not that of the type."""


@functools.cache
def load() -> ModuleType:
    """The SSH library, loaded on first use. Its log would repeat commands, so it may only tell errors."""
    import logging

    import asyncssh

    asyncssh.set_log_level(logging.ERROR)
    return asyncssh


async def prepared() -> ModuleType:
    """The same, loaded beside the event loop: it takes a quarter of a second the first time."""
    return load() if load.cache_info().currsize else await asyncio.to_thread(load)


def signatures(kind: str) -> tuple[str, ...]:
    """The algorithms that a host key of that type may sign with."""
    return SIGNATURES.get(kind, (kind,))


def host_key_algorithms(first: str) -> list[str]:
    """What the server may sign with: the pinned type first, then the others, so that a changed key is seen as such and
    not as a server that speaks another language."""
    kinds = [first, *(kind for kind in KEYS_BEST_FIRST if kind != first)]
    return [algorithm for kind in kinds for algorithm in signatures(kind)]


def witness_of() -> Any:
    """A listener for one connection: `met` when somebody answered the call, `shown` the host key that was not accepted."""
    library = load()

    class Witness(library.SSHClient):  # type: ignore[misc, name-defined]
        met = False
        shown: str | None = None

        def connection_made(self, conn: Any) -> None:
            self.met = True

        def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
            # Only keys other than the pinned one are brought here, and none of them is ever accepted.
            self.shown = _text(key)
            return False

    return Witness()


def host_key_changed(key: str, server: Server, shown: str) -> HostKeyChanged:
    """The answer to a server that shows another key than the pinned one."""
    pinned = server.host_key or ""
    return HostKeyChanged(
        f"server {key} shows the host key {fingerprint(shown)}, but {fingerprint(pinned)} was accepted for it",
        hint="If nobody set up the server anew, somebody may be in between. If it was, compare the fingerprint on the "
        "server's console, then accept the new key in its entry.",
        server=key,
        inDoubt=False,
        accepted=fingerprint(pinned),
        shown=fingerprint(shown),
    )


async def host_keys(address: str, port: int, seconds: float) -> list[str]:
    """The host keys that whoever answers there shows now, best first; one connection for each type of key."""
    library = await prepared()
    attempt = Attempt(f"{address}:{port}", "show its host keys")
    try:
        async with asyncio.timeout(seconds):
            asked = await asyncio.gather(
                *(_host_key(address, port, kind) for kind in KEYS_BEST_FIRST), return_exceptions=True
            )
    except TimeoutError:
        raise attempt.too_late(seconds) from None
    found = [answer for answer in asked if isinstance(answer, str)]
    for answer in asked:
        if isinstance(answer, BaseException) and not isinstance(answer, (library.Error, OSError)):
            raise answer
        # A server without a key of the asked type says so, or just hangs up.
        if isinstance(answer, BaseException) and not found:
            raise attempt.unreachable(str(answer) or type(answer).__name__) from answer
    return found


async def _host_key(address: str, port: int, kind: str) -> str | None:
    key = await load().get_server_host_key(address, port, server_host_key_algs=list(signatures(kind)), config=None)
    return _text(key) if key is not None else None


def _text(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])
