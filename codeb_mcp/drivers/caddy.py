"""Our sites in a Caddy that may serve other sites too.

One change of Caddy's configuration reloads all of it and closes idle connections of every site, so changes are rare
(a project or a domain comes or goes; a promote is none, see `flags.py`) and concurrent ones are made together: who comes
while a change is under way waits for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from codeb_mcp.drivers.caddy_admin import CaddyAdmin, Dropped
from codeb_mcp.drivers.caddy_config import (
    Acme,
    Edge,
    Json,
    Tls,
    change,
    others_in,
    rivals_in,
    site_keys,
    sites_in,
    with_proof,
)
from codeb_mcp.model.domains import PROOF_PATH
from codeb_mcp.model.errors import CodebError, DriverRefused, DriverUnavailable, InvalidRequest
from codeb_mcp.model.foreign import ForeignSite
from codeb_mcp.model.routes import (
    PROOF_ID,
    RivalRoute,
    Site,
    nobody_route,
    proof_route,
    site_id,
    site_problems,
    site_route,
)

ATTEMPTS = 30
GATHER_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class _Wish:
    upsert: tuple[Site, ...]
    remove: tuple[str, ...]
    take_over: bool
    outcome: asyncio.Future[bool]

    def grant(self, *, moved: bool) -> None:
        if not self.outcome.done():
            self.outcome.set_result(moved)

    def refuse(self, error: CodebError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class CaddyProxy:
    """Implements `Proxy` over Caddy's admin API, Caddy 2.6 and newer. Belongs to one event loop.

    `listen` are Caddy network addresses, the public one first. The server of Caddy that already listens on one of them is
    adopted: our routes go before its own, all else in it stays. If there is none, a server `server_name` is made.
    `tls`: off (plain HTTP), internal (Caddy's own authority), acme (Caddy's defaults); it shapes only a server made by us.
    `acme`: which authority, and where it asks; `domains`: base and preview domain; names that can only be ours and are no site then get 404 instead of an empty 200.
    """

    def __init__(  # noqa: PLR0913 - each is something that an operator decides about the proxy
        self,
        admin: str | CaddyAdmin,
        *,
        flags_folder: str,
        listen: tuple[str, ...],
        tls: Tls,
        server_name: str = "codeb",
        domains: tuple[str, str] | None = None,
        acme: Acme | None = None,
    ) -> None:
        if not flags_folder.startswith("/") or any(char in flags_folder for char in "{}*?[]\\"):
            raise ValueError("the flags folder must be an absolute path that Caddy cannot take for a pattern")
        if not listen or "/" in server_name:
            raise ValueError("an edge needs an address to listen on and a server name without '/'")
        nobody = nobody_route(*domains) if domains else None
        self._edge = Edge(flags_folder, listen, tls, server_name, nobody, acme or Acme())
        self._admin = CaddyAdmin(admin) if isinstance(admin, str) else admin
        self._waiting: list[_Wish] = []
        self._worker: asyncio.Task[None] | None = None

    async def apply(self, *, upsert: Sequence[Site] = (), remove: Sequence[str] = (), take_over: bool = False) -> bool:
        """Have these sites (by key) and not those; True when that changed the configuration. `take_over`: see `Proxy.apply`.

        Raises InvalidRequest for a site that no proxy should get, Conflict when another site claims one of the hosts (only
        for the caller whose site it is), DriverRefused with Caddy's words, DriverUnavailable, DeadlineExceeded. After
        the last two the change may have been made: repeat it.
        """
        _check(upsert, remove)
        if not upsert and not remove:
            return False
        wish = _Wish(tuple(upsert), tuple(remove), take_over, asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="caddy configuration")
        return await wish.outcome

    async def has(self, site: Site) -> bool:
        """Whether exactly this site is in the running configuration. One small request."""
        found = await self._admin.get(f"/id/{site_id(site.key)}")
        return found is not None and bool(found.value == site_route(site, self._edge.flags_folder))

    async def sites(self) -> list[str]:
        """The keys of all sites of ours in the running configuration, sorted."""
        return site_keys((await self._read())[0])

    async def others(self) -> list[ForeignSite]:
        """See `Proxy.others`."""
        return others_in((await self._read())[0], self._edge)

    async def rivals(self) -> list[RivalRoute]:
        """See `Proxy.rivals`."""
        return rivals_in((await self._read())[0])

    async def routes(self) -> list[Site]:
        """All sites of ours as the running configuration tells them, by key; one that cannot be told is left out."""
        return sites_in((await self._read())[0])

    async def in_flight(self, port: int, addresses: Sequence[str] = ("127.0.0.1",)) -> int | None:
        """Requests now running against the upstreams at that port, WebSockets included; None when Caddy knows none."""
        wanted = {f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in addresses}
        found = await self._admin.get("/reverse_proxy/upstreams")
        rows = found.value if found is not None and isinstance(found.value, list) else []
        counts = [row.get("num_requests", 0) for row in rows if row.get("address") in wanted]
        return int(sum(counts)) if counts else None

    async def prove(self, proof: str) -> None:
        """Have plain HTTP requests for the proof path answered with this text; only where certificates come from outside.

        Raises what `apply` raises.
        """
        if self._edge.tls != "acme":
            return
        route = proof_route(PROOF_PATH, proof)
        found = await self._admin.get(f"/id/{PROOF_ID}")
        if found is not None and found.value == route:
            return
        for attempt in range(ATTEMPTS):
            config, tag = await self._read()
            wanted = with_proof(config, self._edge, route)
            if wanted == (config or {}) or await self._write(config, wanted, tag):
                return
            await asyncio.sleep(random.uniform(0, min(0.01 * 2**attempt, 0.5)))
        raise _unsteady()

    async def close(self) -> None:
        """End the change under way, refuse those that wait, and let go of connections."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        waiting, self._waiting = self._waiting, []  # a worker that was ended before its first step has refused nobody
        self._dismiss(waiting)
        await self._admin.close()

    async def _work(self) -> None:
        """Make the waiting changes, all that wait at a time, until none is left."""
        batch: list[_Wish] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._make(batch)
                if self._waiting:
                    await asyncio.sleep(GATHER_SECONDS)
        finally:
            self._dismiss(batch)

    def _dismiss(self, wishes: Sequence[_Wish]) -> None:
        for wish in wishes:
            wish.refuse(DriverUnavailable("the proxy's configuration was not changed", hint="Repeat the call."))

    async def _make(self, batch: list[_Wish]) -> None:
        moved: set[int] = set()  # over all attempts: one whose answer was dropped may have been the one that did it
        try:
            for attempt in range(ATTEMPTS):
                config, tag = await self._read()
                wanted = self._merge(config, batch, moved)
                if wanted == (config or {}) or await self._write(config, wanted, tag):
                    for wish in batch:
                        wish.grant(moved=id(wish) in moved)
                    return
                await asyncio.sleep(random.uniform(0, min(0.01 * 2**attempt, 0.5)))
            raise _unsteady()
        except CodebError as error:
            for wish in batch:
                wish.refuse(error)

    def _merge(self, config: Json | None, batch: list[_Wish], moved: set[int]) -> Json:
        """All wishes one after the other; one that cannot be is refused on its own and leaves the rest alone."""
        wanted = config or {}
        for wish in batch:
            if wish.outcome.done():
                continue
            try:
                after = change(wanted, self._edge, wish.upsert, wish.remove, take_over=wish.take_over)
            except CodebError as error:
                wish.refuse(error)
                continue
            if after != wanted:
                moved.add(id(wish))
            wanted = after
        return wanted

    async def _read(self) -> tuple[Json | None, str]:
        found = await self._admin.get("/config/")
        if found is None or not isinstance(found.value, dict | None):
            raise DriverRefused("caddy showed no configuration", hint="Check that the admin address is Caddy's.")
        return found.value, found.etag

    async def _write(self, config: Json | None, wanted: Json, tag: str) -> bool:
        """Only `apps` is sent: logging, storage and the admin endpoint are none of ours. A Caddy that runs nothing has no
        place for it, and gets the whole."""
        path, value = ("/config/", wanted) if config is None else ("/config/apps", wanted["apps"])
        try:
            return await self._admin.post(path, value, etag=tag)
        except Dropped:
            return False  # done or not, the next look will tell


def _unsteady() -> DriverUnavailable:
    return DriverUnavailable(
        f"caddy's configuration kept changing through {ATTEMPTS} attempts",
        hint="Find out which other program writes it, then repeat the call.",
    )


def _check(upsert: Sequence[Site], remove: Sequence[str]) -> None:
    fields = [{**found, "site": site.key} for site in upsert for found in site_problems(site)]
    fields += [
        {"field": "remove", "problem": f"{key} is also to be had"} for key in remove if key in {s.key for s in upsert}
    ]
    if fields:
        raise InvalidRequest(
            f"not fit for the proxy: {fields[0]['field']} {fields[0]['problem']}",
            hint="Correct the fields listed and repeat the call.",
            fields=fields,
        )
