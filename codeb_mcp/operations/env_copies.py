"""Copies of the variables' histories on the Backup servers: encrypted, durable, made at each change and caught up later.

On a Backup server `{backup_folder}/{project}/{environment}/` has the files of the history under their names plus `.age`. Only
the control plane's identity opens them. Who copies takes everything that is missing along, so that many changes at once cost
few trips; a change that waited for a trip which failed shares its failure instead of trying again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from codeb_mcp.drivers import age
from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.errors import CodebError, Conflict, DriverUnavailable, RegistryDamaged
from codeb_mcp.model.server import Server, ServerRole, entries_of
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.registry.env_copied import EnvCopied, Reached
from codeb_mcp.registry.env_history import CURRENT, LARGEST_LOG, MASTER, EnvSnapshot
from codeb_mcp.registry.env_log import LOG

if TYPE_CHECKING:
    from codeb_mcp.operations.context import Services

SUFFIX = ".age"
NOTE_EVERY = 20
FRAME_BYTES = 65_536
"""More than the age format adds to a file of any size that we write."""


@dataclass(frozen=True, slots=True)
class Copied:
    """Whether every Backup server has everything; if not, why, with the server's name."""

    complete: bool
    problem: str | None = None


@dataclass(slots=True)
class _Turn:
    """Trips of one environment: they are made one after the other, and counted when they begin."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: int = 0
    last: Copied = field(default_factory=lambda: Copied(complete=False))


class EnvCopies:
    """Who copies now, per environment, in this process."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, str], _Turn] = defaultdict(_Turn)

    async def copy(self, services: Services, project: str, environment: str) -> Copied:
        """Have everything that is there now on every Backup server. Never raises CodebError: the answer says why not."""
        turn = self._turns[project, environment]
        seen = turn.begun
        async with turn.lock:
            if turn.begun > seen:  # a whole trip began after this call, so it has seen what this call wants copied
                return turn.last
            turn.begun += 1
            turn.last = Copied(complete=False, problem="the copy was given up")
            try:
                async with asyncio.timeout(services.settings.env.backup_seconds):
                    await _copy_to_all(services, project, environment)
                turn.last = Copied(complete=True)
            except TimeoutError:
                turn.last = Copied(
                    complete=False, problem=f"no copy within {services.settings.env.backup_seconds:g} seconds"
                )
            except CodebError as error:
                turn.last = Copied(complete=False, problem=error.message)
            return turn.last

    async def require(self, services: Services, project: str, environment: str) -> None:
        """With `require_backup`, raise DriverUnavailable unless every Backup server can be written to and has all so far."""
        if not services.settings.env.require_backup:
            return
        copied = await self.copy(services, project, environment)
        if not copied.complete:
            raise DriverUnavailable(
                f"nothing was changed, since the copy on the Backup server cannot be made: {copied.problem}",
                hint="Repair the connection, or set require_backup = false in [env] to change it without a copy.",
            )


async def backup_hosts(services: Services) -> dict[str, Host]:
    """Every server of the inventory with the role backup; raises Conflict when there is none, RegistryDamaged when an entry
    cannot be read."""
    found: dict[str, Host] = {}
    for key, entry in sorted(entries_of(await load_ssot(services.store)).items()):
        if not isinstance(entry, dict) or entry.get("role") != ServerRole.BACKUP.value:
            continue
        try:
            server = Server.model_validate(entry)
        except ValidationError:
            raise RegistryDamaged(f"server {key} of the inventory is not valid", hint="Add it again.") from None
        found[key] = services.drivers.hosts.at(key, server)
    if not found:
        raise Conflict("the inventory has no server with the role backup", hint="Add one with server_add.")
    return found


async def identity_of(services: Services) -> str:
    """The identity that opens the copies; made at the first use."""
    keys = services.registry.env.keys
    return await asyncio.to_thread(keys.identity, age.new_identity, age.recipient_of)


def remote_folder(services: Services, project: str, environment: str) -> str:
    """Where a Backup server keeps the copies of one environment."""
    return f"{services.settings.env.backup_folder}/{project}/{environment}"


async def _copy_to_all(services: Services, project: str, environment: str) -> None:
    hosts = await backup_hosts(services)
    history = services.registry.env.of(project, environment)
    copied = EnvCopied(history)
    folder = remote_folder(services, project, environment)
    if not (await asyncio.to_thread(history.snapshot)).entries:  # nothing yet; but can it be written to?
        for host in hosts.values():
            await host.make_folder(folder, mode=0o700)
        return
    turn = copied.alone(services.settings.env.backup_seconds)
    await asyncio.to_thread(turn.__enter__)
    try:
        sight = copied.sight()
        state = await asyncio.to_thread(history.snapshot)
        trip = _Trip(state, copied, await identity_of(services))
        for key, host in hosts.items():
            await trip.to(key, host, folder)
        await asyncio.to_thread(copied.settle, list(hosts), sight)
    finally:
        await asyncio.to_thread(turn.__exit__, None, None, None)


@dataclass(frozen=True, slots=True)
class _Trip:
    """What there is to bring."""

    state: EnvSnapshot
    copied: EnvCopied
    identity: str

    async def to(self, key: str, host: Host, folder: str) -> None:
        """Bring one server what it lacks: versions first, the log that names them last."""
        await host.make_folder(folder, mode=0o700)
        reached = await asyncio.to_thread(self.copied.reached, key)
        newest = self.state.entries[-1].version
        if reached.log == newest:
            return
        missing = [one for one in self.state.entries if one.version > reached.versions]
        if not reached.versions:
            await self._write(host, f"{folder}/{MASTER}", self.state.master or b"")
        for number, entry in enumerate(missing, 1):
            data = await asyncio.to_thread(self.state.read, entry)
            await self._write(host, f"{folder}/{entry.version}.env", data)
            if number % NOTE_EVERY == 0:
                await asyncio.to_thread(self.copied.note, key, Reached(entry.version, reached.log))
        await self._write(host, f"{folder}/{CURRENT}", self.state.current or b"")
        await self._write(host, f"{folder}/{LOG}", self.state.log())
        await asyncio.to_thread(self.copied.note, key, Reached(newest, newest))

    async def _write(self, host: Host, path: str, data: bytes) -> None:
        await host.write(path + SUFFIX, age.seal(data, self.identity), mode=0o600)


async def catch_up(services: Services) -> list[str]:
    """Copy what could not be copied before; answers what still cannot. For the housekeeper."""
    try:
        servers = list(await backup_hosts(services))
    except Conflict:
        return []
    except CodebError as error:
        return [f"copies of variables: {error.message}"]
    problems = []
    for project, environment in await asyncio.to_thread(services.registry.env.existing):
        record = EnvCopied(services.registry.env.of(project, environment))
        if await asyncio.to_thread(record.is_settled, servers):
            continue
        copied = await services.copies.copy(services, project, environment)
        if not copied.complete:
            problems.append(f"copies of variables: {project} {environment}: {copied.problem}")
            break  # the next one would wait as long for the same server
    return problems


async def examine_copies(services: Services, project: str, environment: str, state: EnvSnapshot) -> list[str]:
    """What is missing or different on the Backup servers, in words; reads and opens every file there."""
    problems = []
    folder = remote_folder(services, project, environment)
    wanted = {f"{entry.version}.env": entry.sha256 for entry in state.entries}
    wanted |= {MASTER: state.entries[0].sha256, CURRENT: state.entries[-1].sha256}
    wanted[LOG] = hashlib.sha256(state.log()).hexdigest()
    identity = await identity_of(services)
    for key, host in (await backup_hosts(services)).items():
        for name, digest in wanted.items():
            problem = await _examined(host, f"{folder}/{name}{SUFFIX}", digest, identity)
            if problem:
                problems.append(f"{key}: {name}{SUFFIX} {problem}")
    return problems


async def _examined(host: Host, path: str, digest: str, identity: str) -> str | None:
    sealed = await host.read(path, max_bytes=LARGEST_LOG + FRAME_BYTES)
    if sealed is None:
        return "is missing"
    try:
        data = age.unseal(sealed, identity)
    except CodebError as error:
        return error.message
    return None if hashlib.sha256(data).hexdigest() == digest else "is not what the history has"
