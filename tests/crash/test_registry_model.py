"""Both stores walk along with a pure model of the contract, with reopening, time and stale knowledge."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from codeb_mcp.model.errors import Conflict, LeaseLost, LockHeld
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.memory import MemoryStore
from codeb_mcp.registry.store import Change, Fence, Lease, StateStore
from tests.unit.registry.clock import StillClock

KEYS = st.sampled_from(["ssot", "slots/a", "slots/b", "domains/a"])
NAMES = st.sampled_from(["environment/a", "environment/b"])
DOCS = st.none() | st.dictionaries(st.sampled_from(["a", "b"]), st.integers() | st.text(max_size=3), max_size=2)


@dataclass
class Model:
    """What the contract says is there."""

    documents: dict[str, tuple[dict[str, Any], int]] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    held: dict[str, bool] = field(default_factory=dict)


class Walk(RuleBasedStateMachine):
    """One walk."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = StillClock()
        self.model = Model()
        self.old: list[Lease] = []
        self.store: StateStore

    def make(self) -> StateStore:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.store = self.make()

    def teardown(self) -> None:
        self.runner.close()

    def valid(self, fence: Fence | None) -> bool:
        if fence is None:
            return True
        lease = self.model.leases.get(fence.lease)
        return lease is not None and lease.token == fence.token and self.model.held[fence.lease]

    @rule(changes=st.lists(st.tuples(KEYS, DOCS, st.integers(-1, 1)), max_size=3, unique_by=lambda item: item[0]),
          fenced=st.none() | st.integers(0, 5))  # fmt: skip
    def commit(self, changes: list[tuple[str, dict[str, Any] | None, int]], fenced: int | None) -> None:
        fence = self.old[fenced % len(self.old)].fence if fenced is not None and self.old else None
        planned = [
            Change(key, doc, max(0, self.model.documents.get(key, ({}, 0))[1] + (off if off < 0 else 0)))
            for key, doc, off in changes
        ]
        fits = all(change.expected == self.model.documents.get(change.key, ({}, 0))[1] for change in planned)
        work = self.store.commit(planned, fence=fence)
        if planned and not self.valid(fence):
            with pytest.raises(LeaseLost):
                self.runner.run(work)
        elif not fits:
            with pytest.raises(Conflict):
                self.runner.run(work)
        else:
            assert planned == [] or self.runner.run(work) == self.apply(planned)
            work.close()

    def apply(self, planned: list[Change]) -> dict[str, int]:
        answer = {}
        for change in planned:
            if change.doc is None and not change.expected:
                answer[change.key] = 0
                continue
            self.model.reached[change.key] = serial = self.model.reached.get(change.key, 0) + 1
            if change.doc is None:
                del self.model.documents[change.key]
            else:
                self.model.documents[change.key] = (dict(change.doc), serial)
            answer[change.key] = 0 if change.doc is None else serial
        return answer

    @rule(name=NAMES, ttl=st.sampled_from([5.0, 30.0]))
    def acquire(self, name: str, ttl: float) -> None:
        present = self.model.leases.get(name)
        free = not self.model.held.get(name) or (
            present is not None and (self.clock() - present.expires_at).total_seconds() >= 15
        )
        if not free:
            with pytest.raises(LockHeld):
                self.runner.run(self.store.acquire(name, "somebody", ttl_seconds=ttl))
            return
        lease = self.runner.run(self.store.acquire(name, "somebody", ttl_seconds=ttl))
        assert lease.token == (present.token if present else 0) + 1
        self.model.leases[name], self.model.held[name] = lease, True
        self.old.append(lease)

    @rule(number=st.integers(0, 9))
    def renew(self, number: int) -> None:
        if not self.old:
            return
        lease = self.old[number % len(self.old)]
        if not self.valid(lease.fence):
            with pytest.raises(LeaseLost):
                self.runner.run(self.store.renew(lease))
            return
        self.model.leases[lease.name] = self.runner.run(self.store.renew(lease))

    @rule(number=st.integers(0, 9), by_force=st.booleans())
    def release(self, number: int, by_force: bool) -> None:
        if not self.old:
            return
        lease = self.old[number % len(self.old)]
        if by_force and not self.valid(lease.fence):
            with pytest.raises(Conflict):
                self.runner.run(self.store.force_release(lease.name, lease.token))
        elif by_force:
            self.runner.run(self.store.force_release(lease.name, lease.token))
        else:
            self.runner.run(self.store.release(lease))
        if self.valid(lease.fence):
            self.model.held[lease.name] = False

    @rule(seconds=st.sampled_from([4.0, 12.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @rule()
    def reopen(self) -> None:
        if isinstance(self.store, FileStore):
            self.store = FileStore(self.store.root, clock=self.clock)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "store"):
            return
        for key in ("ssot", "slots/a", "slots/b", "domains/a"):
            found = self.runner.run(self.store.get(key))
            assert ((found.doc, found.version) if found else None) == self.model.documents.get(key)
        assert self.runner.run(self.store.keys("")) == sorted(self.model.documents)
        assert self.runner.run(self.store.keys("slots/")) == sorted(
            key for key in self.model.documents if key.startswith("slots/")
        )


class MemoryWalk(Walk):
    def make(self) -> StateStore:
        return MemoryStore(clock=self.clock)


class FileWalk(Walk):
    folder = ""

    def make(self) -> StateStore:
        self.folder = tempfile.mkdtemp(prefix="codeb-registry-")
        return FileStore(Path(self.folder) / "registry", clock=self.clock)

    def teardown(self) -> None:
        if self.folder:
            assert self.runner.run(FileStore(Path(self.folder) / "registry").examine()) == []
            shutil.rmtree(self.folder)
        super().teardown()


def bounds(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.nightly)])
def test_the_memory_store_does_what_the_model_says(examples: int) -> None:
    run_state_machine_as_test(MemoryWalk, settings=bounds(examples))


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.nightly)])
def test_the_file_store_does_what_the_model_says(examples: int) -> None:
    run_state_machine_as_test(FileWalk, settings=bounds(examples))
