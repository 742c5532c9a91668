"""Looking at domains: what the world says of them now, the list, the certificate that is really served."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from codeb_mcp.model.access import Reach, Role, in_scope
from codeb_mcp.model.domains import ACTIVE, PENDING, Domain
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.names import ProjectName
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.domain_state import project_domains
from codeb_mcp.operations.domain_work import Found, preflight, zoned
from codeb_mcp.operations.domains import DomainData, DomainRequest, domain_data, find_domain
from codeb_mcp.operations.ownership import callers_projects
from codeb_mcp.operations.places import on_all, placement_of

PROBE_SECONDS = 5.0


class DomainCheck(Result):
    """One look at the world. `status`: ok, failed, or waiting for what comes before it."""

    name: str
    status: str
    message: str


class DomainVerifyResult(Result):
    """What the world says of a domain now."""

    data: DomainData
    checks: list[DomainCheck]
    message: str


class DomainListRequest(PageRequest):
    """Whose domains."""

    project_name: ProjectName | None = Field(None, description="Only those of this project")


class DomainRow(Result):
    """A domain in a list."""

    domain: str
    project_name: str
    environment: str
    status: str
    provider: str
    added_at: str | None = None
    problems: list[str] = Field(default_factory=list)


class DomainPage(Page):
    """Domains of the caller's projects."""

    data: list[DomainRow]


class SslData(Result):
    """A certificate as it is served. `trusted`: clients that believe the configured authority accept it."""

    domain: str
    ssl: str
    issuer: str | None = None
    names: list[str] = Field(default_factory=list)
    not_before: str | None = None
    not_after: str | None = None
    days_left: int | None = None
    trusted: bool | None = None
    problem: str | None = None


class SslResult(Result):
    """The certificate of a domain."""

    data: SslData
    message: str


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM, long=True)
async def domain_verify(ctx: Context, request: DomainRequest) -> DomainVerifyResult:
    """Ask the world about a domain now: where its name leads, whether the proxy has it, what a visitor gets.

    Changes nothing. Each check says what is wrong with it.
    """
    services = ctx.services
    domain = await find_domain(ctx, request, changes=False)
    fronts = (await placement_of(services, domain.key)).fronts
    found = await preflight(services, domain.name, fronts)
    problems = found.all_problems(domain.name)
    checks = [_check("dns", problems, f"leads to {', '.join(found.addresses) or 'nowhere'}")]
    checks.append(await _route_check(services, domain))
    certificate = services.settings.proxy.tls != "off"
    if certificate:
        checks.append(await _certificate_check(services, domain))
        certificate = checks[-1].status == "ok"
    checks.append(await _visit(services, domain))
    failed = [one for one in checks if one.status != "ok"]
    seen = Found(domain, found, tuple(f"{one.name}: {one.message}" for one in failed), certificate)
    said = f"{domain.name}: " + ("all is well" if not failed else "; ".join(seen.problems))
    status = PENDING if failed else ACTIVE
    return DomainVerifyResult(data=domain_data(services, seen, status), checks=checks, message=said[:1000])


def _check(name: str, problems: Sequence[str], fine: str) -> DomainCheck:
    return DomainCheck(name=name, status="failed" if problems else "ok", message="; ".join(problems) or fine)


async def _route_check(services: Services, domain: Domain) -> DomainCheck:
    key = domain.key
    try:
        fronts = (await placement_of(services, key)).fronts
        every = await on_all(fronts, lambda place: place.drivers.proxy.routes())
        # The front that has it least decides: each of them is asked by somebody.
        held = [[one.key for one in routes if domain.name in one.hosts] for routes in every]
        holders = next((one for one in held if one != [key]), [key])
    except CodebError as error:
        return DomainCheck(name="route", status="failed", message=error.message)
    if holders == [key]:
        return DomainCheck(name="route", status="ok", message=f"the proxy sends it to {key}")
    waits = "the proxy does not have it: " + ("it comes back by itself" if domain.routed else "it waits for DNS")
    return DomainCheck(name="route", status="failed" if domain.routed else "waiting", message=waits)


async def _certificate_check(services: Services, domain: Domain) -> DomainCheck:
    try:
        fronts = (await placement_of(services, domain.key)).fronts
        served = await on_all(fronts, lambda place: place.drivers.outside.certificate(domain.name))
    except CodebError as error:
        return DomainCheck(name="certificate", status="failed" if domain.routed else "waiting", message=error.message)
    return _check("certificate", [one.problem for one in served if not one.trusted], f"from {served[0].issuer}")


async def _visit(services: Services, domain: Domain) -> DomainCheck:
    """A request for the domain through the public listener reaches the slot that is live."""
    key = domain.key
    front = (await placement_of(services, key)).fronts[0]
    answer = await front.drivers.prober.public(domain.name, "/", timeout_seconds=PROBE_SECONDS)
    live = await front.drivers.traffic.live(key)
    if answer.status is None:
        return _check("http", [answer.problem or "no answer"], "")
    if live is None and answer.status == 503:
        return _check("http", [], "the proxy answers; no release is live yet")
    right = live is not None and answer.slot == live.value
    return _check("http", [] if right else [f"status {answer.status} from no slot of ours"], f"slot {live} answers")


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def domain_list(ctx: Context, request: DomainListRequest) -> DomainPage:
    """List the domains of your team's projects that were set up, with their status and what is wrong with them."""
    names = [request.project_name] if request.project_name else await callers_projects(ctx.store, ctx.caller)
    rows = [
        DomainRow(
            domain=one.name,
            project_name=one.project,
            environment=one.environment.value,
            status=one.status,
            provider=zoned(ctx.services.settings, one.name, one.provider).provider,
            added_at=one.added_at,
            problems=list(one.problems),
        )
        for name in names
        for one in await project_domains(ctx.store, name)
        if in_scope(ctx.caller.scopes, "environment", one.environment.value)
    ]
    return DomainPage.of(rows, request)


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def ssl_status(ctx: Context, request: DomainRequest) -> SslResult:
    """Show the certificate that a domain is really served with, from a handshake made now.

    Who issued it, for which names, until when, and whether clients trust it.
    """
    services = ctx.services
    domain = await find_domain(ctx, request, changes=False)
    if services.settings.proxy.tls == "off":
        said = f"{domain.name} is served without TLS: proxy.tls is off"
        return SslResult(data=SslData(domain=domain.name, ssl="off"), message=said)
    try:
        front = (await placement_of(services, domain.key)).fronts[0]
        served = await front.drivers.outside.certificate(domain.name)
    except CodebError as error:
        data = SslData(domain=domain.name, ssl="pending", problem=error.message)
        return SslResult(data=data, message=f"{domain.name} has no certificate yet: {error.message}")
    days = _days_between(services.drivers.clock.now(), served.not_after)
    data = SslData(
        domain=domain.name,
        ssl="active",
        issuer=served.issuer,
        names=list(served.names),
        not_before=utc_text(served.not_before, "seconds"),
        not_after=utc_text(served.not_after, "seconds"),
        days_left=days,
        trusted=served.trusted,
        problem=served.problem or None,
    )
    end = "is trusted" if served.trusted else f"is not trusted: {served.problem}"
    return SslResult(
        data=data, message=f"the certificate of {domain.name} from {served.issuer} {end}; {days} days left"
    )


def _days_between(now: datetime, end: datetime) -> int:
    return (end - now).days
