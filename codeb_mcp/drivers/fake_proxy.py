"""A proxy, its flags and a prober in memory, with faults to order; they pass the contract suites of the real ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.errors import CodebError, Conflict, InvalidRequest, LeaseLost
from codeb_mcp.model.foreign import ForeignSite, yields
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import RivalRoute, Site, rival, site_problems, site_route

App = Callable[[str], Answer]
"""An application behind a port: path -> answer (its `slot` is ignored, the proxy sets that)."""

REFUSED = "connection refused: nothing listens there"


@dataclass
class FakeEdge:
    """What the three fakes share: the running configuration, the flags, and who listens on which port.

    `faults` maps a method name (`apply`, `has`, `sites`, `in_flight`, `switch`, `live`, `forget`, `keys`) to errors that
    its next calls raise, one each. `foreign` holds host names that another site of the proxy serves, `old` such sites
    that lead to ports of this machine. `usurped` holds hosts that
    a route of others, put before ours later, answers. `blind`: the proxy may not look into the folder of the flags.
    """

    configured: dict[str, Site] = field(default_factory=dict)
    flags: dict[str, Slot | None] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    apps: dict[int, App] = field(default_factory=dict)
    running: Counter[int] = field(default_factory=Counter)
    foreign: set[str] = field(default_factory=set)
    old: list[ForeignSite] = field(default_factory=list)
    faults: dict[str, list[CodebError]] = field(default_factory=dict)
    usurped: set[str] = field(default_factory=set)
    changes: int = 0
    blind: bool = False
    proof: str = ""

    def fail(self, method: str, *errors: CodebError) -> None:
        """Let the next calls of that method raise these, one each."""
        self.faults.setdefault(method, []).extend(errors)

    def stumble(self, method: str) -> None:
        """Raise the next fault that was ordered for the method."""
        if waiting := self.faults.get(method):
            raise waiting.pop(0)

    def restart(self, *, keep: bool) -> None:
        """The proxy starts again; without `keep` its configuration is gone. Flags are files and stay."""
        if not keep:
            self.configured.clear()


class FakeProxy:
    """Implements `Proxy` on a FakeEdge."""

    def __init__(self, edge: FakeEdge) -> None:
        self._edge = edge

    async def apply(self, *, upsert: Sequence[Site] = (), remove: Sequence[str] = (), take_over: bool = False) -> bool:
        """Have these sites and not those; refuses what the real one refuses."""
        fields = [{**found, "site": site.key} for site in upsert for found in site_problems(site)]
        if fields or not {site.key for site in upsert}.isdisjoint(remove):
            raise InvalidRequest("not fit for the proxy", hint="Correct the fields listed.", fields=fields)
        await asyncio.sleep(0)
        self._edge.stumble("apply")
        wanted = {key: site for key, site in self._edge.configured.items() if key not in remove}
        wanted |= {site.key: site for site in upsert}
        left = [one for one in self._edge.old if not (take_over and any(yields(one, site) for site in upsert))]
        self._check_rivals(wanted, upsert, left)
        changed = wanted != self._edge.configured or left != self._edge.old
        self._edge.configured, self._edge.old = wanted, left
        self._edge.changes += changed
        return changed

    async def has(self, site: Site) -> bool:
        """Whether exactly this site is configured."""
        self._edge.stumble("has")
        return self._edge.configured.get(site.key) == site

    async def sites(self) -> list[str]:
        """All keys, sorted."""
        self._edge.stumble("sites")
        return sorted(self._edge.configured)

    async def rivals(self) -> list[RivalRoute]:
        """What `FakeEdge.usurped` says."""
        await asyncio.sleep(0)
        sites = sorted(self._edge.configured.items())
        return [
            RivalRoute(key, host, "route 0 of the proxy's server fake")
            for key, site in sites
            for host in site.all_hosts
            if host in self._edge.usurped
        ]

    async def others(self) -> list[ForeignSite]:
        """What `FakeEdge.old` says."""
        self._edge.stumble("sites")
        return list(self._edge.old)

    async def routes(self) -> list[Site]:
        """All sites, by key."""
        self._edge.stumble("sites")
        return [site for _, site in sorted(self._edge.configured.items())]

    async def in_flight(self, port: int, addresses: Sequence[str] = ("127.0.0.1",)) -> int | None:
        """What `FakeEdge.running` says; None for a port that no site has."""
        self._edge.stumble("in_flight")
        known = {site.port(slot) for site in self._edge.configured.values() for slot in Slot}
        return self._edge.running[port] if port in known else None

    async def prove(self, proof: str) -> None:
        """Remember it."""
        self._edge.stumble("prove")
        self._edge.proof = proof

    async def close(self) -> None:
        """Nothing to let go of."""

    def _check_rivals(self, wanted: dict[str, Site], upsert: Sequence[Site], old: Sequence[ForeignSite]) -> None:
        hosts = sorted(self._edge.foreign.union(*(one.hosts for one in old)))
        others = [{"@id": "foreign", "match": [{"host": hosts}]}]
        routes = [*(site_route(site, "/") for site in wanted.values()), *others]
        for site in upsert:
            if found := rival(routes, site):
                raise Conflict(
                    f"{found[0]} is already served by {found[1]}", hint="Take another domain.", host=found[0]
                )


class FakeTraffic:
    """Implements `Traffic` on a FakeEdge."""

    def __init__(self, edge: FakeEdge) -> None:
        self._edge = edge

    def live(self, key: str) -> Slot | None:
        """The slot that serves now."""
        self._edge.stumble("live")
        return self._edge.flags.get(key)

    def switch(self, key: str, slot: Slot | None, *, fence: int) -> bool:
        """Send traffic there; an older fence raises LeaseLost."""
        self._edge.stumble("switch")
        self._raise_fence(key, fence)
        moved = key not in self._edge.flags or self._edge.flags[key] is not slot
        self._edge.flags[key] = slot
        return moved

    def forget(self, key: str, *, fence: int) -> None:
        """Remove the flag, keep the fence."""
        self._edge.stumble("forget")
        self._raise_fence(key, fence)
        self._edge.flags.pop(key, None)

    def keys(self) -> list[str]:
        """All keys with a flag, sorted."""
        self._edge.stumble("keys")
        return sorted(self._edge.flags)

    def _raise_fence(self, key: str, fence: int) -> None:
        seen = self._edge.fences.get(key, 0)
        if fence < seen:
            raise LeaseLost(f"fencing token {fence} of {key} is older than {seen}", hint="Stop.", key=key)
        self._edge.fences[key] = fence


class FakeProber:
    """Implements `Prober` on a FakeEdge: routes like the real proxy would, without a network."""

    def __init__(self, edge: FakeEdge) -> None:
        self._edge = edge

    async def port(self, port: int, path: str, *, timeout_seconds: float, address: str = "127.0.0.1") -> Answer:
        """What the application on that port answers."""
        await asyncio.sleep(0)
        app = self._edge.apps.get(port)
        return Answer(None, problem=REFUSED) if app is None else app(path)

    async def public(self, host: str, path: str, *, timeout_seconds: float) -> Answer:
        """What the proxy answers for that host name."""
        await asyncio.sleep(0)
        if host in self._edge.usurped:
            return Answer(200, body_head="somebody else")
        site = next((site for site in self._edge.configured.values() if host in site.all_hosts), None)
        if site is None and (old := next((one for one in self._edge.old if host in one.hosts), None)) is not None:
            behind = self._edge.apps.get(old.ports[0])
            return replace(behind(path), slot=None) if behind else Answer(502)
        if site is None:
            return Answer(200)  # what Caddy says for a host that no route matches
        slot = self._slot(site, host)
        if slot is None:
            return Answer(503, body_head=f"{site.key}: no release is live yet")
        app = self._edge.apps.get(site.port(slot))
        if app is None and host not in site.hosts:
            return Answer(503, body_head=f"{site.key}: no release answers in slot {slot.value}")
        if app is None:
            return Answer(502)
        answer = app(path)
        return Answer(answer.status, slot.value, answer.body_head, answer.location, answer.problem)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _slot(self, site: Site, host: str) -> Slot | None:
        previews = {site.blue_preview: Slot.BLUE, site.green_preview: Slot.GREEN}
        flags = {} if self._edge.blind else self._edge.flags
        return previews[host] if host in previews else flags.get(site.key, Slot.BLUE)
