"""What makes a domain real: its records, the preflight, its place in the proxy's route; and what takes all of that away.

The document is the wish. Everything here brings the world towards it and may be repeated at any point, by the call that made
the wish or by the housekeeper after a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from codeb_mcp.drivers.dns import ensure_records, remove_records
from codeb_mcp.model.dns import Preflight, Wish, caa_problem, zone_of
from codeb_mcp.model.domains import ACTIVE, PENDING, PROOF_PATH, Domain, Status
from codeb_mcp.model.errors import CodebError, Conflict, DriverRefused, LockHeld
from codeb_mcp.model.names import lease_name, split_environment_key
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.domain_state import all_domains, domain_lease, forget, leaving, note, project_domains
from codeb_mcp.operations.places import Place, every_place, here, on_all, placement_of
from codeb_mcp.operations.routing import ensure_flag, ensure_site
from codeb_mcp.operations.state import find_slots, site_of
from codeb_mcp.settings import DnsZone, Settings

CHECKS_AT_ONCE = 8
CERTIFICATE_SECONDS = 20.0
CERTIFICATE_PAUSE_SECONDS = 0.25
Work = Callable[[Domain], Awaitable[None]]
_UNCERTAIN = ("driver_unavailable", "timeout")


@dataclass(frozen=True, slots=True)
class Zoned:
    """The zone of a domain and who keeps it; `provider` is manual when nothing is to be written."""

    name: str | None
    provider: str


def zoned(settings: Settings, name: str, chosen: str | None) -> Zoned:
    """The zone in the settings that a domain lies in. `chosen` manual leaves any zone alone."""
    found: tuple[str, DnsZone] | None = zone_of(settings.dns.zones, name)
    if found is None or chosen == "manual":
        return Zoned(found[0] if found else None, "manual")
    return Zoned(found[0], found[1].provider)


async def owner_of(services: Services, project: str) -> str:
    """How our marks in zones say whose a name is."""
    return f"{(await services.store.identity())[:16]}/{project}"


async def write_records(services: Services, domain: Domain) -> bool:
    """Have the domain's addresses in its zone, unless that is kept by hand; True when that took a change. Raises Conflict for a
    name with foreign records and what the zone raises."""
    zone = zoned(services.settings, domain.name, domain.provider)
    if zone.provider == "manual" or zone.name is None:
        return False
    addresses = (await placement_of(services, domain.key)).public
    if not addresses:
        raise DriverRefused(
            "dns.addresses is not set", hint="Say in the settings at which addresses the proxy is reached."
        )
    wish = Wish(domain.name, await owner_of(services, domain.project), addresses)
    return await ensure_records(services.drivers.names.zone(zone.name), wish)


# ── preflight ───────────────────────────────────────────────────────────────────────────────────────────────────


async def preflight(services: Services, name: str, fronts: Sequence[Place]) -> Preflight:
    """What the world says about the name now, which is to lead to these proxies. Never raises: what cannot be found out is a
    problem like any other.

    The way over plain HTTP and CAA count only where an authority outside is going to look at them.
    """
    names, settings = services.drivers.names, services.settings
    ours = tuple(dict.fromkeys(address for place in fronts for address in place.public))
    found = await asyncio.gather(*(_asked(names.lookup(name, kind)) for kind in ("A", "AAAA")))
    addresses = tuple(one for values, _ in found for one in values)
    problems = [problem for _, problem in found if problem]
    if not ours:
        problems.append("dns.addresses is not set, so that nobody can tell which addresses are ours")
    result = Preflight(addresses, ours, problems=tuple(dict.fromkeys(problems)))
    if settings.proxy.tls != "acme" or not result.pointing:
        return result
    caa, problem = await _caa(services, name)
    unreachable = await _unreachable(services, fronts, addresses)
    return replace(result, caa=caa, unreachable=unreachable, problems=(problem,) if problem else ())


async def _asked(work: Awaitable[tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
    try:
        return await work, ""
    except CodebError as error:
        return (), error.message


async def _caa(services: Services, name: str) -> tuple[str | None, str]:
    try:
        records = await services.drivers.names.caa(name)
    except CodebError as error:
        return None, f"CAA cannot be looked up: {error.message}"
    return caa_problem(records, services.settings.proxy.acme_names), ""


async def _unreachable(
    services: Services, fronts: Sequence[Place], addresses: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Addresses at which a question over plain HTTP does not come to this very proxy, and why."""
    proof = await proof_of(services)
    try:
        await on_all(fronts, lambda place: place.drivers.proxy.prove(proof))
    except CodebError as error:
        return tuple((address, error.message) for address in addresses)
    answers = await asyncio.gather(*(services.drivers.outside.knock(one, PROOF_PATH) for one in addresses))
    return tuple(
        (address, answer.problem or f"status {answer.status} from somebody else")
        for address, answer in zip(addresses, answers, strict=True)
        if answer.body_head.strip() != proof
    )


async def proof_of(services: Services) -> str:
    """The text by which this installation's proxy is told from any other; tells nothing else."""
    lineage = await services.store.identity()
    return hashlib.sha256(f"codeb-proof {lineage}".encode()).hexdigest()[:32]


async def require_certifiable(services: Services, name: str | None) -> None:
    """Raise Conflict when an authority would be asked in vain for this host. Without an authority outside every host goes."""
    if name is None or services.settings.proxy.tls != "acme":
        return
    if any(one.name == name and one.routed for one in await all_domains(services.store)):
        return
    problems = (await preflight(services, name, (here(services),))).all_problems(name)
    if problems:
        raise Conflict(
            f"{name} cannot get a certificate yet: {problems[0]}",
            hint="Add it with domain_setup, which waits until it can; or mend this first.",
            problems=problems,
        )


# ── bringing a domain into place ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Found:
    """How a domain stands after it was looked after."""

    domain: Domain
    preflight: Preflight
    problems: tuple[str, ...]
    certificate: bool


async def bring_into_place(services: Services, domain: Domain, *, wait_seconds: float = 0.0) -> Found:
    """Records, preflight, route, certificate: whatever is still missing. The caller has the domain's lease.

    Raises Conflict for foreign records or a foreign route and DriverRefused; what is only away for now is a problem in the
    answer, to be tried again.
    """
    problems: list[str] = []
    try:
        await write_records(services, domain)
    except CodebError as error:
        if error.code not in _UNCERTAIN:
            raise
        problems.append(error.message)
    fronts = (await placement_of(services, domain.key)).fronts
    found = await preflight(services, domain.name, fronts)
    problems += found.all_problems(domain.name)
    if not domain.routed and (services.settings.proxy.tls != "acme" or not problems):
        domain, problem = await _route(services, domain)
        problems += [problem] if problem else []
    certificate = False
    if domain.routed and services.settings.proxy.tls != "off":
        certificate, problem = await _certified(fronts, domain.name, wait_seconds)
        problems += [problem] if problem else []
    status: Status = ACTIVE if domain.routed and not problems else PENDING
    said = {
        "status": status,
        "problems": problems or None,
        "checkedAt": utc_text(services.drivers.clock.now())
        if status != domain.status or not domain.checked_at
        else None,
    }
    await note(services, domain, {key: value for key, value in said.items() if key != "checkedAt" or value})
    domain = replace(domain, status=status, problems=tuple(problems))
    return Found(domain, found, tuple(problems), certificate)


async def _route(services: Services, domain: Domain) -> tuple[Domain, str]:
    """Into the proxy first and then into the document: an environment whose document named a host that the proxy refuses
    could get no change of its route any more."""
    try:
        await publish(services, domain, extra=(domain.name,))
    except CodebError as error:
        if error.code not in (*_UNCERTAIN, "lock_held"):
            raise
        return domain, f"the proxy does not serve it yet: {error.message}"
    if not await note(services, domain, {"routed": True}):
        return domain, "it was deleted meanwhile"
    domain = replace(domain, routed=True)
    try:
        await publish(services, domain)  # a promote that came between has put the former route back
    except CodebError as error:
        return domain, f"the proxy does not serve it yet: {error.message}"
    return domain, ""


async def publish(services: Services, domain: Domain, *, extra: tuple[str, ...] = ()) -> None:
    """Have the route of the domain's environment as the documents say, with `extra` hosts; nothing for an environment that is
    not there."""
    slots = await find_slots(services.store, domain.project, domain.environment)
    if slots is None:
        return
    await ensure_flag(services, slots)
    site = await site_of(services.store, services.settings, slots)
    site = replace(site, hosts=tuple(dict.fromkeys([*site.hosts, *extra])))
    fronts = (await placement_of(services, slots.key)).fronts
    await on_all(fronts, lambda place: ensure_site(place, site))
    if await find_slots(services.store, domain.project, domain.environment) is None:
        # No route outlives an environment deleted meanwhile.
        await on_all(fronts, lambda place: place.drivers.proxy.apply(remove=[site.key]))


async def _certified(fronts: Sequence[Place], name: str, wait_seconds: float) -> tuple[bool, str]:
    loop = asyncio.get_running_loop()
    end = loop.time() + wait_seconds
    while True:
        try:
            served = await on_all(fronts, lambda place: place.drivers.outside.certificate(name))
            distrusted = next((one for one in served if not one.trusted), None)
            return True, f"its certificate is not trusted: {distrusted.problem}" if distrusted else ""
        except CodebError as error:
            problem = error.message
        if loop.time() >= end:
            return False, problem
        await asyncio.sleep(CERTIFICATE_PAUSE_SECONDS)


# ── taking a domain away ────────────────────────────────────────────────────────────────────────────────────────


async def withdraw(services: Services, domain: Domain) -> None:
    """Off the proxy's route, then our records out of its zone, then forgotten. The caller has the domain's lease."""
    await _unroute(services, domain)
    zone = zoned(services.settings, domain.name, domain.provider)
    if zone.provider != "manual" and zone.name is not None:
        owner = await owner_of(services, domain.project)
        await remove_records(services.drivers.names.zone(zone.name), domain.name, owner)
    await forget(services, domain)


async def _unroute(services: Services, domain: Domain) -> None:
    key = domain.key
    there = await find_slots(services.store, domain.project, domain.environment) is not None
    fronts = (await placement_of(services, key)).fronts if there else await every_place(services)
    await on_all(fronts, lambda place: _unroute_at(services, place, domain))


async def _unroute_at(services: Services, place: Place, domain: Domain) -> None:
    proxy = place.drivers.proxy
    for holder in await proxy.routes():
        if domain.name not in holder.hosts:
            continue
        slots = await find_slots(services.store, *split_environment_key(holder.key))
        left = tuple(host for host in holder.hosts if host != domain.name)
        if slots is not None:
            await proxy.apply(upsert=[await site_of(services.store, services.settings, slots)])
        elif left:
            await proxy.apply(upsert=[replace(holder, hosts=left)])
        else:
            await proxy.apply(remove=[holder.key])


# ── housekeeping ────────────────────────────────────────────────────────────────────────────────────────────────


async def look_after_domains(services: Services, problems: list[str], *, active: bool) -> list[str]:
    """Take away what left and bring into place what is pending; with `active` look at those that serve as well. Answers the
    domains whose status changed."""
    changed: list[str] = []

    async def take_away(domain: Domain) -> None:
        if domain in await leaving(services.store):
            await withdraw(services, domain)

    async def look(domain: Domain) -> None:
        # Read again under the lease: it may have been deleted since the list was made, or its project be just going.
        if await services.store.lease(lease_name(domain.project, None)) is not None:
            return
        one = next(
            (one for one in await project_domains(services.store, domain.project) if one.name == domain.name), None
        )
        if one is not None and (await bring_into_place(services, one)).domain.status != one.status:
            changed.append(one.name)

    async def bounded(domain: Domain, work: Work) -> None:
        async with bound:
            await _quietly(services, domain, problems, work)

    for domain in await leaving(services.store):
        await _quietly(services, domain, problems, take_away)
    bound = asyncio.Semaphore(CHECKS_AT_ONCE)
    due = [one for one in await all_domains(services.store) if active or one.status == PENDING]
    await asyncio.gather(*(bounded(one, look) for one in due if one.added_at is not None))
    return sorted(changed)


async def _quietly(services: Services, domain: Domain, problems: list[str], work: Work) -> None:
    try:
        async with domain_lease(services, domain.name, wait=False):
            await work(domain)
    except LockHeld:
        return
    except CodebError as error:
        problems.append(f"domain {domain.name}: {error.message}")
        if error.code in ("conflict", "driver_refused"):
            await note(services, domain, {"problems": [error.message], "status": PENDING})
