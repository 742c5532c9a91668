"""This machine in the words of `Host`: commands by argv without a shell, files by system calls in threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import TypeVar

from codeb_mcp.drivers import local_files
from codeb_mcp.drivers.attempt import Abandoned, Attempt, command_words, file_bytes, path_bytes
from codeb_mcp.drivers.hosts import MAX_OUTPUT, FileStat, Finished
from codeb_mcp.drivers.local_sockets import LocalSockets
from codeb_mcp.model.errors import CodebError, DriverRefused

T = TypeVar("T")
FILE_SECONDS = 30.0
KILLED_SECONDS = 5.0
PART_BYTES = 65_536
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_SUCH_COMMAND, NOT_EXECUTABLE = 127, 126


class LocalHost:
    """The machine that the control plane runs on. Contract: `Host`."""

    def __init__(self, key: str, *, file_seconds: float = FILE_SECONDS, sockets: str | None = None) -> None:
        self._key = key
        self._file_seconds = file_seconds
        self._sockets = LocalSockets(key, sockets)

    @property
    def key(self) -> str:
        """See `Host.key`."""
        return self._key

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 30.0, max_output: int = MAX_OUTPUT
    ) -> Finished:
        """See `Host.run`. When the time is over, or when cancelled, the command is killed with all of its group."""
        attempt = Attempt(self._key, f"run {argv[0] if argv else 'nothing'}")
        words = command_words(attempt, argv)
        try:
            async with asyncio.timeout(timeout_seconds):
                process = await _started(attempt, words)
                if isinstance(process, Finished):
                    return process
                return await _finished(attempt, process, stdin, max_output)
        except TimeoutError:
            raise attempt.too_late(timeout_seconds) from None

    async def read(self, path: str, *, max_bytes: int = MAX_OUTPUT) -> bytes | None:
        """See `Host.read`."""
        attempt = Attempt(self._key, f"read {path}")
        name = file_bytes(attempt, path)
        return await self._do(attempt, lambda: local_files.read(attempt, name, max_bytes))

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See `Host.write`."""
        attempt = Attempt(self._key, f"write {path}")
        name = file_bytes(attempt, path)
        await self._do(attempt, lambda: local_files.write(attempt, name, data, mode))

    async def stat(self, path: str) -> FileStat | None:
        """See `Host.stat`."""
        attempt = Attempt(self._key, f"look at {path}")
        name = path_bytes(attempt, path)
        return await self._do(attempt, lambda: local_files.look(name))

    async def list(self, folder: str) -> list[str] | None:
        """See `Host.list`."""
        attempt = Attempt(self._key, f"list {folder}")
        name = path_bytes(attempt, folder)
        return await self._do(attempt, lambda: local_files.names(attempt, name))

    async def make_folder(self, path: str, *, mode: int = 0o755) -> bool:
        """See `Host.make_folder`."""
        attempt = Attempt(self._key, f"make the folder {path}")
        name = b"/" + os.path.normpath(path_bytes(attempt, path)).lstrip(b"/")
        return await self._do(attempt, lambda: local_files.make_folder(attempt, name, mode))

    async def remove(self, path: str) -> bool:
        """See `Host.remove`."""
        attempt = Attempt(self._key, f"remove {path}")
        name = file_bytes(attempt, path)
        return await self._do(attempt, lambda: local_files.remove(attempt, name))

    async def socket(self, target: str) -> str:
        """See `Host.socket`: a unix socket of this machine is its own way."""
        return await self._sockets.socket(target)

    async def close(self) -> None:
        """Let go of forwarded sockets."""
        await self._sockets.close()

    async def _do(self, attempt: Attempt, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._file_seconds):
                return await asyncio.to_thread(work)
        except TimeoutError:
            attempt.abandon()
            raise attempt.too_late(self._file_seconds) from None
        except asyncio.CancelledError:
            attempt.abandon()
            raise
        except Abandoned:
            raise attempt.unreachable("nobody waits for it any more") from None
        except OSError as error:
            raise local_files.told(attempt, error) from error


async def _started(attempt: Attempt, words: Sequence[bytes]) -> asyncio.subprocess.Process | Finished:
    """The process, or how a shell would end that cannot start it."""
    program = shutil.which(os.fsdecode(words[0]), path=SEARCH_PATH) or os.fsdecode(words[0])
    attempt.send()
    try:
        return await asyncio.create_subprocess_exec(
            program,
            *words[1:],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            cwd=_home(),
            start_new_session=True,
        )
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        status = NOT_EXECUTABLE if isinstance(error, PermissionError) else NO_SUCH_COMMAND
        return Finished(status, b"", words[0] + b": " + os.strerror(error.errno or 0).encode() + b"\n")
    except OSError as error:
        attempt.denied()
        raise _not_started(attempt, error) from error


def _not_started(attempt: Attempt, error: OSError) -> DriverRefused:
    return attempt.refused(os.strerror(error.errno or 0), "The machine cannot start it: see its memory and limits.")


async def _finished(attempt: Attempt, process: asyncio.subprocess.Process, stdin: bytes, max_output: int) -> Finished:
    try:
        async with asyncio.TaskGroup() as group:
            out = group.create_task(_read(attempt, process.stdout, max_output))
            err = group.create_task(_read(attempt, process.stderr, max_output))
            group.create_task(_feed(process.stdin, stdin))
            status = await process.wait()
    except BaseExceptionGroup as errors:
        await _kill(process)
        raise next((error for error in errors.exceptions if isinstance(error, CodebError)), errors) from None
    except BaseException:
        await _kill(process)
        raise
    return Finished(status if status >= 0 else 128 - status, out.result(), err.result())


async def _read(attempt: Attempt, stream: asyncio.StreamReader | None, max_output: int) -> bytes:
    content = bytearray()
    while stream is not None and (part := await stream.read(PART_BYTES)):
        content += part
        if len(content) > max_output:
            raise attempt.refused(f"it writes more than {max_output} bytes", "Ask for less output.", reason="too_large")
    return bytes(content)


async def _feed(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    if stream is not None:
        with contextlib.suppress(ConnectionError):  # it does not want to know all of it
            stream.write(data)
            await stream.drain()
        stream.close()


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End it with its group, also when it has ended and left somebody behind who writes to its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # Somebody may keep the pipes open for ever, and asyncio waits for them; it has no public way to close our ends.
    process._transport.close()  # type: ignore[attr-defined]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILLED_SECONDS):
            await process.wait()


def _environment() -> dict[str, str]:
    """What a fresh login has, and nothing of this process: its variables may be secrets."""
    account = pwd.getpwuid(os.geteuid())
    return {
        "PATH": SEARCH_PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell,
        "LANG": "C.UTF-8",
    }


def _home() -> str:
    home = pwd.getpwuid(os.geteuid()).pw_dir
    return home if os.path.isdir(home) else "/"
