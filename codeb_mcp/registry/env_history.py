"""The history of an environment's variables, in files that a person can use without this program. Blocking, used from threads.

`env-backup/{project}/{environment}/`: `master.env` is the first version and is never rewritten, `{timestamp}.env` every
version, `current.env` the newest one, `backup-log.json` the log of all. How a change is written: the version's file; then
the log, whose rename is the moment of the commit; then `master.env` if it is the first; then `current.env`; then the live
file that containers are started with. Every step is durable before the next. Whoever next holds the lock finishes what a crash
left after the commit, or removes what it left before it:

    a version file after the last one of the log   -> was never committed, is removed
    current.env of the version before the last      -> the commit was cut short, the file is written
    anything else that does not fit the log        -> RegistryDamaged; nothing is touched
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from codeb_mcp.model.env import EnvDiff, diff, parse
from codeb_mcp.model.errors import Conflict, NotFound, RegistryDamaged
from codeb_mcp.model.times import utc_text
from codeb_mcp.registry.disk import Disk, put, read_file, refusals
from codeb_mcp.registry.env_keys import EnvKeys
from codeb_mcp.registry.env_log import LOG, EnvAuthor, EnvLog, EnvVersion, damaged, is_version, next_version, read_log
from codeb_mcp.registry.lock import hold

MASTER, CURRENT = "master.env", "current.env"
LARGEST_FILE = 4 << 20
LARGEST_LOG = 256 << 20
_GROUP = 2  # versions that one commit may bring: what was found, and what was asked for
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


@dataclass(frozen=True, slots=True)
class Draft:
    """A version to be: what was done, and the file's content."""

    operation: str
    data: bytes


@dataclass(frozen=True, slots=True)
class EnvSnapshot:
    """An environment at one moment. `current` and `live` are files' contents, None where there is no file; `read` answers the
    content of any version of the log, `log` that of the log itself."""

    entries: tuple[EnvVersion, ...]
    master: bytes | None
    current: bytes | None
    live: bytes | None
    read: Callable[[EnvVersion], bytes] = field(repr=False)
    log: Callable[[], bytes] = field(repr=False)

    @property
    def newest(self) -> EnvVersion | None:
        """The version that counts."""
        return self.entries[-1] if self.entries else None

    def find(self, version: str) -> EnvVersion:
        """The version by its id, `master` or `current`; raises NotFound."""
        named = {"master": 0, "current": -1}
        if version in named and self.entries:
            return self.entries[named[version]]
        found = next((one for one in self.entries if one.version == version), None)
        if found is None:
            raise NotFound(f"there is no version {version}", hint="List them with env_backup_list.", version=version)
        return found


Decide = Callable[[EnvSnapshot], Sequence[Draft]]


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change led to: the state before and after, and the names between the two."""

    before: EnvSnapshot
    after: EnvSnapshot
    diff: EnvDiff


def values_of(data: bytes | None) -> Mapping[str, str]:
    """The variables in a file's content; nothing for None. Raises Conflict for a file that is not UTF-8."""
    try:
        return {} if data is None else parse(data.decode("utf-8")).values
    except UnicodeDecodeError:
        raise Conflict("the env file is not UTF-8", hint="Convert the file to UTF-8.") from None


@dataclass(frozen=True, slots=True)
class _Said:
    """What the log says of a version besides its file."""

    author: EnvAuthor
    at: datetime
    change: int
    diff: EnvDiff


class EnvHistory:
    """One environment: its folder in `env-backup` and its live file. Used from threads, by any number of processes."""

    def __init__(self, root: Path, project: str, environment: str, keys: EnvKeys, disk: Disk | None = None) -> None:
        base = str(root.absolute())
        self.folder = f"{base}/env-backup/{project}/{environment}"
        self.live = f"{base}/projects/{project}/.env.{environment}"
        self.immutable = True
        self._base = base
        self._project, self._environment = project, environment
        self._keys = keys
        self._disk = disk or Disk()

    def snapshot(self) -> EnvSnapshot:
        """The present state; what a crash left is finished first. Raises RegistryDamaged."""
        what = "read the env history"
        with refusals(what):
            if not os.path.isdir(self.folder):
                return self._snapshot(EnvLog(self._project, self._environment))
        with self._locked(what):
            return self._snapshot(self._load())

    def change(self, author: EnvAuthor, at: datetime, decide: Decide) -> Changed:
        """Let `decide` say which versions come next, write them, and put the newest one into the live file.

        No version means: what counts is already right, and only the live file is written if it differs. `decide` may raise;
        then nothing was changed. When the live file cannot be written the change stands and the disk's refusal is raised; the
        same call again finishes it.
        """
        with self._locked("write the env history"):
            log = self._load()
            before = self._snapshot(log)
            drafts = decide(before)
            data = before.current
            for draft in drafts:
                changes = diff(values_of(data), values_of(draft.data))
                log = self._write_version(log, draft, _Said(author, at, len(before.entries) + 1, changes))
                data = draft.data
            if drafts:
                self._disk.sync_folder(self.folder)
                put(self._disk, f"{self.folder}/{LOG}", log.render())
                self._finish(log)
            after = self._snapshot(log)
            if log.entries and after.live != after.current:
                self._write_live(after.current or b"")
                after = self._snapshot(log)
            return Changed(before, after, diff(values_of(before.current), values_of(after.current)))

    def examine(self) -> list[str]:
        """Everything that is wrong, in words; reads every version. Empty when all is well."""
        problems: list[str] = []
        with _noted(problems):
            state = self.snapshot()
            for entry in state.entries:
                with _noted(problems):
                    state.read(entry)
        return problems

    @contextlib.contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        with refusals(what):
            self._disk.make_folder(self.folder, durable=True)
            with hold(f"{self.folder}/.lock", wait_seconds=30.0):
                yield

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> EnvLog:
        """The log, with every file that belongs to it in its place."""
        names = set(os.listdir(self.folder))
        for name in sorted(names):
            if name.startswith(".") and name.endswith(".tmp"):
                self._disk.unlink(f"{self.folder}/{name}")
        versions = {name.removesuffix(".env") for name in names if name.endswith(".env")} - {"master", "current"}
        if LOG not in names:
            if names & {MASTER, CURRENT}:
                raise damaged(f"{self.folder}/{LOG}", "it is missing, although there are versions")
            log = EnvLog(self._project, self._environment)
        else:
            path = f"{self.folder}/{LOG}"
            log = read_log(
                self._keys.log_key(), read_file(path, LARGEST_LOG)[0], self._project, self._environment, path
            )
        strays = self._uncommitted(log, versions)
        if log.entries:
            self._check_ends(log)
        # Only now is it certain that what is there is what a crash leaves.
        for one in strays:
            self._disk.unlink(f"{self.folder}/{one}.env")
        if log.entries:
            self._finish(log)
        return log

    def _uncommitted(self, log: EnvLog, present: set[str]) -> list[str]:
        """Version files that a crash left before the commit; raises RegistryDamaged for any other difference."""
        known = {entry.version for entry in log.entries}
        if missing := sorted(known - present):
            raise damaged(f"{self.folder}/{missing[0]}.env", "the log names this version, and it is missing")
        newest = log.entries[-1].version if log.entries else ""
        strays = sorted(present - known)
        if strays and (len(strays) > _GROUP or any(not is_version(one) or one < newest for one in strays)):
            raise damaged(f"{self.folder}/{strays[0]}.env", "the log knows nothing of this version")
        return strays

    def _check_ends(self, log: EnvLog) -> None:
        """Raise RegistryDamaged unless `master.env` and `current.env` are right, or as a crash leaves them."""
        first, last = log.entries[0], log.entries[-1]
        current, master = self._hash(CURRENT), self._hash(MASTER)
        fresh = last.change == 1 and current is None
        if master != first.sha256 and not (fresh and master is None):
            raise damaged(f"{self.folder}/{MASTER}", "it is missing or is not the first version any more")
        before = log.entries[last.change - 2].sha256 if last.change > 1 else last.sha256
        if current not in (last.sha256, before) and not fresh:
            raise damaged(f"{self.folder}/{CURRENT}", "it is neither the newest version of the log nor the one before")

    def _finish(self, log: EnvLog) -> None:
        """`master.env` and `current.env` as the log has them."""
        first, last = log.entries[0], log.entries[-1]
        if self._hash(MASTER) is None:
            put(self._disk, f"{self.folder}/{MASTER}", self._read(first))
            if self.immutable:
                make_immutable(f"{self.folder}/{MASTER}")
        if self._hash(CURRENT) != last.sha256:
            put(self._disk, f"{self.folder}/{CURRENT}", self._read(last))

    def _read(self, entry: EnvVersion) -> bytes:
        path = f"{self.folder}/{entry.version}.env"
        try:
            data = read_file(path, LARGEST_FILE)[0]
        except ValueError as error:
            raise damaged(path, str(error)) from None
        except FileNotFoundError:
            raise damaged(path, "it is missing") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise damaged(path, "its content is not what the log says")
        return data

    def _hash(self, name: str) -> str | None:
        try:
            return hashlib.sha256(read_file(f"{self.folder}/{name}", LARGEST_FILE)[0]).hexdigest()
        except FileNotFoundError:
            return None
        except ValueError:
            return ""

    def _snapshot(self, log: EnvLog) -> EnvSnapshot:
        entries = log.entries
        try:
            live = read_file(self.live, LARGEST_FILE)[0]
        except FileNotFoundError:
            live = None
        except ValueError as error:
            raise damaged(self.live, str(error)) from None
        master = self._read(entries[0]) if entries else None
        current = self._read(entries[-1]) if entries else None
        return EnvSnapshot(entries, master, current, live, self._read, log.render)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _write_version(self, log: EnvLog, draft: Draft, said: _Said) -> EnvLog:
        version = next_version(said.at, log.entries[-1].version if log.entries else None)
        put(self._disk, f"{self.folder}/{version}.env", draft.data, sync=False)
        entry = {
            "change": said.change,
            "version": version,
            "at": utc_text(said.at),
            "operation": draft.operation,
            "by": said.author.name,
            "keyId": said.author.key_id,
            "team": said.author.team,
            "added": list(said.diff.added),
            "changed": list(said.diff.changed),
            "removed": list(said.diff.removed),
            "sha256": hashlib.sha256(draft.data).hexdigest(),
            "size": len(draft.data),
        }
        return log.with_entry(self._keys.log_key(), entry)

    def _write_live(self, data: bytes) -> None:
        self._disk.make_folder(os.path.dirname(self.live), durable=True)
        put(self._disk, self.live, data)


def make_immutable(path: str) -> bool:
    """What `chattr +i` does, where the file system knows it and lets us; answers whether it did."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        flags = struct.unpack("i", fcntl.ioctl(handle, _GET_FLAGS, struct.pack("i", 0)))[0]
        fcntl.ioctl(handle, _SET_FLAGS, struct.pack("i", flags | _IMMUTABLE))
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Inside, what cannot be trusted is noted instead of raised."""
    try:
        with refusals("read the env history"):
            yield
    except RegistryDamaged as error:
        problems.append(error.message)


class EnvHistories:
    """All histories of one root, for callers on the event loop."""

    def __init__(self, root: Path, *, disk: Disk | None = None, immutable_master: bool = True) -> None:
        self.keys = EnvKeys(root, disk)
        self._root, self._disk = root.absolute(), disk or Disk()
        self._immutable = immutable_master

    def of(self, project: str, environment: str) -> EnvHistory:
        """The history of one environment, whether there is anything in it or not."""
        made = EnvHistory(self._root, project, environment, self.keys, self._disk)
        made.immutable = self._immutable
        return made

    async def snapshot(self, project: str, environment: str) -> EnvSnapshot:
        """See `EnvHistory.snapshot`."""
        return await asyncio.to_thread(self.of(project, environment).snapshot)

    async def change(self, project: str, environment: str, author: EnvAuthor, at: datetime, decide: Decide) -> Changed:
        """See `EnvHistory.change`. It is carried through even when the caller is cancelled meanwhile."""
        work = asyncio.to_thread(self.of(project, environment).change, author, at, decide)
        return await asyncio.shield(asyncio.ensure_future(work))

    async def examine(self, project: str, environment: str) -> list[str]:
        """See `EnvHistory.examine`."""
        return await asyncio.to_thread(self.of(project, environment).examine)

    def existing(self) -> list[tuple[str, str]]:
        """`(project, environment)` of every history, sorted."""
        found = (self._root / "env-backup").glob(f"*/*/{LOG}")
        return sorted((path.parent.parent.name, path.parent.name) for path in found if path.parts[-3][:1] != ".")

    async def retire(self, project: str, at: datetime) -> None:
        """Put the history and the live files of a deleted project aside, so that whoever takes its name next gets none of
        its secrets. Harmless to repeat."""
        await asyncio.to_thread(self._retire, project, next_version(at, None))

    def _retire(self, project: str, stamp: str) -> None:
        with refusals("put the env files of a deleted project aside"):
            for area in ("env-backup", "projects"):
                source = f"{self._root}/{area}/{project}"
                if not os.path.isdir(source):
                    continue
                aside = f"{self._root}/{area}/.deleted"
                self._disk.make_folder(aside, durable=True)
                self._disk.replace(source, f"{aside}/{project}.{stamp}")
                self._disk.sync_folder(aside)
                self._disk.sync_folder(f"{self._root}/{area}")
