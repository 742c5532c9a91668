"""What each run intended and what came of it, so that a run outlives the process that began it.

`operations/open/<run>.jsonl` while it runs, `operations/done/<run>.jsonl` once it has ended. One line is one entry,
synced before the call returns. Every entry carries the fencing token of its writer and is only appended while that
token is the newest, under a lock of the file itself: whoever resumes a run waits for an append that is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from codeb_mcp.model.errors import Bug, Conflict, DeadlineExceeded, LeaseLost, NotFound, RegistryDamaged
from codeb_mcp.model.machine import Action, Outcome
from codeb_mcp.model.times import utc_text
from codeb_mcp.registry.disk import Disk, put, read_file, refusals, write_all
from codeb_mcp.registry.entries import (
    RunHeader,
    describe_steps,
    intent_of,
    outcome_from,
    outcome_to,
    plain,
)
from codeb_mcp.registry.leases import utc_now
from codeb_mcp.registry.lines import seal, unseal_all
from codeb_mcp.registry.lock import try_flock
from codeb_mcp.registry.run_files import RunFiles
from codeb_mcp.registry.store import Fence, StateStore

MAX_BYTES = 32 * 1024 * 1024
_WAIT_SECONDS = 10.0


class Journal:
    """The entries of one run. `fence` must be set to the lease of whoever writes; reading needs none.

    Writing raises `LeaseLost` when the fence is old (or not set), `InsufficientStorage` and `DriverRefused` when the
    disk refuses, `DeadlineExceeded` when another writer does not let go of the file.
    """

    def __init__(self, files: RunFiles, store: StateStore, clock: Callable[[], datetime], header: RunHeader) -> None:
        self.header = header
        self.entries: list[dict[str, Any]] = []
        self.fence: Fence | None = None
        self.damage: str | None = None
        self._files = files
        self._store = store
        self._clock = clock
        self._size = 0

    async def plan(self, doc: Mapping[str, Any]) -> None:
        """Record the machine's initial state; once per run, unless the run was created with it."""
        if self.planned() is not None:
            raise Bug("a run is planned once", runId=self.header.run_id)
        await self._append({"kind": "plan", "doc": plain(doc)})

    async def intend(self, step: int, action: Action) -> None:
        """Say what will be done, before it is done; again for a step that a crash left in doubt."""
        await self._append({"kind": "intent", **intent_of(step, action)})

    async def record(
        self,
        step: int,
        name: str,
        outcome: Outcome,
        then: tuple[int, Action] | None = None,
        end: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what came of the intended step and, in the same line, what will be done next, or that and how the run has
        ended. An ended run is moved to the others."""
        if self.in_doubt() != name:
            raise Bug(f"the outcome of {name} was recorded without its intent", runId=self.header.run_id)
        entry = {"kind": "outcome", "step": step, "name": name, "outcome": outcome_to(outcome)}
        if then is not None:
            entry["then"] = intent_of(*then)
        if end is not None:
            entry["end"] = plain(end)
        await self._append(entry)
        if end is not None:
            await asyncio.to_thread(self._retire)

    async def finish(self, doc: Mapping[str, Any]) -> None:
        """Record the end of the run and move it to the ended ones."""
        if self.finished() is None:
            await self._append({"kind": "end", "doc": plain(doc)})
        await asyncio.to_thread(self._retire)

    def planned(self) -> dict[str, Any] | None:
        """The machine's initial state, if it was recorded."""
        return next((entry["doc"] for entry in self.entries if entry["kind"] == "plan"), None)

    def outcomes(self) -> list[tuple[str, Outcome]]:
        """Each action's name with its outcome, in order: what a resume replays."""
        return [(entry["name"], outcome_from(entry["outcome"])) for entry in self.entries if entry["kind"] == "outcome"]

    def steps(self) -> list[dict[str, Any]]:
        """The steps for the caller: name, step, startedAt, endedAt, duration_ms, status (running, success, failed),
        says, and the error of a failed one."""
        return describe_steps(self.entries)

    def in_doubt(self) -> str | None:
        """The name of the action that was intended and of which no outcome is known."""
        last = next((entry for entry in reversed(self.entries) if entry["kind"] in ("intent", "outcome")), None)
        if last is None:
            return None
        intent = last if last["kind"] == "intent" else last.get("then")
        return str(intent["name"]) if intent else None

    def finished(self) -> dict[str, Any] | None:
        """What was recorded at the end; None while the run is open."""
        last = self.entries[-1] if self.entries else {}
        found: dict[str, Any] | None = last.get("doc") if last.get("kind") == "end" else last.get("end")
        return found

    async def request_cancel(self, by: str) -> None:
        """Wish, durably and from any process, that the run be cancelled; raises `Conflict` when it has ended."""
        await asyncio.to_thread(self._request_cancel, by)

    def cancel_requested(self) -> bool:
        """Whether somebody wished that. One look at the disk."""
        return os.path.lexists(self._files.cancel_path(self.header.run_id))

    async def reload(self) -> None:
        """Read what others have appended; raises `NotFound` and `RegistryDamaged`."""
        await asyncio.to_thread(self.load)

    def load(self) -> None:
        """The blocking form of `reload`."""
        path, data = self._read()
        entries, good, problem = unseal_all(data)
        problem = problem or _disorder(entries)
        self.entries, self._size, self.damage = entries, good, problem
        if problem:
            raise RegistryDamaged(
                f"the journal of run {self.header.run_id} is damaged: {problem}",
                hint="Look at the run's containers and slots yourself, then move the journal away.",
                runId=self.header.run_id,
                path=path,
                problem=problem,
            )

    def _read(self) -> tuple[str, bytes]:
        run_id = self.header.run_id
        for path in (self._files.done_path(run_id), self._files.open_path(run_id), self._files.done_path(run_id)):
            with refusals(f"read the journal of {run_id}"), contextlib.suppress(FileNotFoundError):
                try:
                    return path, read_file(path, MAX_BYTES)[0]
                except ValueError as error:
                    raise RegistryDamaged(f"the journal of run {run_id} {error}", path=path) from error
        raise no_such_run(run_id)

    async def _append(self, entry: dict[str, Any]) -> None:
        fence = self.fence
        if fence is None:
            raise LeaseLost("the journal is open for reading only", hint="Take the environment's lease first.")
        handle = await self._lock()
        try:
            await self._store.check(fence)
        except BaseException:
            os.close(handle)
            raise
        # Shielded, because the thread owns the file from here on: a cancelled caller must not close it under its feet.
        work = asyncio.get_running_loop().run_in_executor(None, self._write, handle, entry, fence.token)
        await asyncio.shield(work)

    async def _lock(self) -> int:
        run_id = self.header.run_id
        deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
        pause = 0.001
        while True:
            try:
                with refusals(f"open the journal of {run_id}"):
                    handle = os.open(self._files.open_path(run_id), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except Exception as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise _ended(run_id) from error
                raise
            if try_flock(handle):
                return handle
            os.close(handle)
            if asyncio.get_running_loop().time() > deadline:
                raise DeadlineExceeded(f"the journal of {run_id} stays locked", hint="Look for a stopped process.")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _write(self, handle: int, entry: dict[str, Any], token: int) -> None:
        try:
            with refusals(f"write the journal of {self.header.run_id}"):
                if os.fstat(handle).st_size != self._size:
                    self.load()
                    os.ftruncate(handle, self._size)  # a torn end, which nobody was told about
                entry = self._complete(entry, token)
                self._append_durably(handle, seal(entry))
            self.entries.append(entry)
        finally:
            os.close(handle)

    def _complete(self, entry: dict[str, Any], token: int) -> dict[str, Any]:
        if self.entries and self.entries[-1]["token"] > token:
            raise LeaseLost("somebody with a newer lease has written to the journal", runId=self.header.run_id)
        if self.finished() is not None:
            raise _ended(self.header.run_id)
        own = {"n": len(self.entries), "run": self.header.run_id, "token": token, "at": utc_text(self._clock())}
        return {**own, **entry}

    def _append_durably(self, handle: int, line: bytes) -> None:
        try:
            write_all(handle, line)
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, self._size)
            raise
        self._size += len(line)

    def _retire(self) -> None:
        with refusals(f"close the journal of {self.header.run_id}"):
            self._files.retire(self.header.run_id)

    def _request_cancel(self, by: str) -> None:
        run_id = self.header.run_id
        if not os.path.lexists(self._files.open_path(run_id)):
            raise _ended(run_id) if os.path.lexists(self._files.done_path(run_id)) else no_such_run(run_id)
        wish = seal({"by": by, "at": utc_text(self._clock())})
        with refusals(f"cancel {run_id}"):
            put(self._files.disk, self._files.cancel_path(run_id), wish)

    def start(self, fence: Fence, plan: Mapping[str, Any] | None = None, first: Action | None = None) -> None:
        """Create the file with the header and, if they are known, the machine's initial state and its first intent;
        raises `Conflict` when the run exists. Blocking."""
        files, run_id = self._files, self.header.run_id
        entries: list[dict[str, Any]] = [{"kind": "run", "header": self.header.as_dict()}]
        if plan is not None:
            entries.append({"kind": "plan", "doc": plain(plan)})
        if first is not None:
            entries.append({"kind": "intent", **intent_of(0, first)})
        for entry in entries:
            self.entries.append(self._complete(entry, fence.token))
        with refusals(f"begin the journal of {run_id}"):
            files.disk.make_folder(files.open_folder, durable=True)
            if os.path.lexists(files.done_path(run_id)) or os.path.lexists(files.open_path(run_id)):
                raise Conflict(f"run {run_id} exists", hint="Choose another id.", runId=run_id)
            lines = b"".join(seal(entry) for entry in self.entries)
            put(files.disk, files.open_path(run_id), lines)
        self._size, self.fence = len(lines), fence


def no_such_run(run_id: str) -> NotFound:
    """The answer for an id that no journal has."""
    return NotFound(f"there is no run {run_id[:80]}", hint="List the runs to find its id.", runId=run_id[:80])


def _ended(run_id: str) -> Conflict:
    return Conflict(f"run {run_id} has ended", hint="Look at its result.", runId=run_id)


def _disorder(entries: list[dict[str, Any]]) -> str | None:
    """What is wrong with whole lines: one is missing, twice there, or by a writer that had lost its lease."""
    token = 0
    for position, entry in enumerate(entries):
        if entry.get("n") != position:
            return f"line {position + 1} should be entry {position}, but is {entry.get('n')}"
        if entry["token"] < token:
            return f"line {position + 1} carries an older token than the line before"
        token = entry["token"]
    return None


class Journals:
    """All runs of one registry. `root` is the registry's folder, `store` the one that holds the leases."""

    def __init__(
        self,
        root: Path,
        store: StateStore,
        *,
        clock: Callable[[], datetime] = utc_now,
        disk: Disk | None = None,
    ) -> None:
        self._files = RunFiles(root, disk or Disk())
        self._store = store
        self._clock = clock
        self._headers: dict[str, RunHeader] = {}

    async def create(
        self,
        header: RunHeader,
        fence: Fence,
        *,
        plan: Mapping[str, Any] | None = None,
        first: Action | None = None,
    ) -> Journal:
        """Begin a run under this lease: what it is and, in the same write, its machine's initial state and first intent.

        Raises `Conflict` when the id is taken, `LeaseLost` when the fence is old.
        """
        await self._store.check(fence)
        journal = Journal(self._files, self._store, self._clock, header)
        await asyncio.to_thread(journal.start, fence, plan, first)
        return journal

    async def open(self, run_id: str) -> Journal:
        """A run that exists, for reading until `fence` is set; raises `NotFound` and `RegistryDamaged`."""
        return await asyncio.to_thread(self._open, run_id)

    async def open_runs(self) -> list[str]:
        """Ids of the runs that have not ended, oldest first; a damaged one is among them."""
        return await asyncio.to_thread(self._open_runs)

    async def page(
        self, *, limit: int, offset: int, match: Callable[[RunHeader], bool] = lambda header: True
    ) -> tuple[list[Journal], int]:
        """`(runs, total)`, newest first. A run whose later entries are damaged is shown with `damage` set; one whose
        header is damaged is left out."""
        return await asyncio.to_thread(self._page, limit, offset, match)

    async def prune(self, keep: int) -> int:
        """Remove the oldest ended runs beyond `keep`; answers how many."""
        return await asyncio.to_thread(self._prune, keep)

    def _open(self, run_id: str) -> Journal:
        header = self._header(run_id)
        if header is None:
            raise no_such_run(run_id)
        journal = Journal(self._files, self._store, self._clock, header)
        journal.load()
        if journal.finished() is not None and os.path.lexists(self._files.open_path(run_id)):
            with refusals(f"close the journal of {run_id}"):
                self._files.retire(run_id)
        return journal

    def _open_runs(self) -> list[str]:
        found = []
        for run_id in sorted(_ids(self._files.open_folder)):
            try:
                if self._open(run_id).finished() is None:
                    found.append(run_id)
            except RegistryDamaged:
                found.append(run_id)
            except NotFound:
                continue
        return found

    def _page(self, limit: int, offset: int, match: Callable[[RunHeader], bool]) -> tuple[list[Journal], int]:
        ids = sorted({*_ids(self._files.open_folder), *_ids(self._files.done_folder)}, reverse=True)
        matching = []
        for run_id in ids:
            with contextlib.suppress(RegistryDamaged):
                header = self._header(run_id)
                if header is not None and match(header):
                    matching.append(header)
        page = []
        for header in matching[offset : offset + limit]:
            journal = Journal(self._files, self._store, self._clock, header)
            with contextlib.suppress(RegistryDamaged, NotFound):
                journal.load()
            page.append(journal)
        return page, len(matching)

    def _prune(self, keep: int) -> int:
        with refusals("remove old journals"):
            old = sorted(_ids(self._files.done_folder))[: -keep or None]
            for run_id in old:
                self._files.disk.unlink(self._files.done_path(run_id))
                self._headers.pop(run_id, None)
        return len(old)

    def _header(self, run_id: str) -> RunHeader | None:
        if run_id in self._headers:
            return self._headers[run_id]
        for path in (self._files.done_path(run_id), self._files.open_path(run_id), self._files.done_path(run_id)):
            with refusals(f"read the journal of {run_id[:80]}"), contextlib.suppress(FileNotFoundError):
                header = RunHeader.read(path, run_id)
                self._headers[run_id] = header
                return header
        return None


def _ids(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl") and not name.startswith(".")]
