"""Domains of an environment: set up, looked at, taken away. All of them follow each promote, since an environment has one flag."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.dns import address_record
from codeb_mcp.model.domains import ACTIVE, PENDING, Domain
from codeb_mcp.model.errors import CodebError, Conflict, DriverRefused, InvalidRequest, NotFound
from codeb_mcp.model.names import Domain as DomainName
from codeb_mcp.model.names import ProjectName
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.answers import EnvironmentRequest
from codeb_mcp.operations.catalog import Effect, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.domain_state import claim, domain_lease, further_hosts, leaving, project_domains, release
from codeb_mcp.operations.domain_work import (
    CERTIFICATE_SECONDS,
    Found,
    bring_into_place,
    preflight,
    withdraw,
    zoned,
)
from codeb_mcp.operations.ownership import callers_projects, require_scope
from codeb_mcp.operations.places import placement_of
from codeb_mcp.operations.routing import Owner, require_free_domain
from codeb_mcp.operations.state import find_slots, load_project, load_ssot, url_of
from codeb_mcp.registry.store import Document

Provider = Literal["rfc2136", "powerdns", "cloudflare", "manual"]


class DomainSetupRequest(EnvironmentRequest):
    """A domain for an environment."""

    domain: DomainName = Field(description="Full host name, lower case, like www.example.com; no wildcard")
    provider: Provider | None = Field(
        None,
        description="Who writes its DNS records: that of its zone in the settings, or manual to enter them yourself",
    )


class DomainRequest(Request):
    """One domain. Without a project it is looked for among those of the caller's team."""

    domain: DomainName = Field(description="Full host name")
    project_name: ProjectName | None = Field(None, description="Project; found by the domain when it is not given")


class DomainDeleteRequest(DomainRequest):
    """A domain to take away."""


class DomainRecord(Result):
    """A DNS record that the domain needs. `found`: the resolvers know it now."""

    type: str
    name: str
    value: str
    found: bool


class DomainData(Result):
    """A domain. `ssl`: off, pending or active; `status`: pending or active (deleting, deleted)."""

    domain: str
    project_name: str
    environment: str
    type: str
    target: str | None = None
    ssl: str
    records: list[DomainRecord] = Field(default_factory=list)
    status: str
    provider: str
    zone: str | None = None
    url: str
    problems: list[str] = Field(default_factory=list)


class DomainResult(Result):
    """A domain, and what to do next. `to_enter`: records to enter by hand, as zone files write them."""

    data: DomainData
    created: bool | None = None
    message: str
    to_enter: list[str] = Field(default_factory=list)


# ── set up ──────────────────────────────────────────────────────────────────────────────────────────────────────


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT, long=True)
async def domain_setup(ctx: Context, request: DomainSetupRequest) -> DomainResult:
    """Give an environment a domain: DNS records, a place in the proxy, a certificate. It follows every promote.

    Refused when anybody else has the domain, or its name has DNS records that were not written here. Status pending names
    what is still missing; it is looked at again by itself, and this call may be repeated. No certificate is asked for
    before the name leads here, answers here, and CAA allows it. Provider manual tells the records to enter.
    """
    services, project, environment = ctx.services, request.project_name, request.environment
    team = (await load_project(ctx.store, project)).team_id
    if await find_slots(ctx.store, project, environment) is None:
        raise NotFound(
            f"{project} has no {environment} environment",
            hint="Add it with project_create and environments, or say another environment.",
            environment=environment.value,
        )
    _require_provider(services, request, team)

    def check(ssot: Document, further: Mapping[str, Owner]) -> None:
        _require_free(services, request, ssot, further)

    async with domain_lease(services, request.domain, wait=True):
        former = await _stored(services, project, request.domain)
        said = _said(ctx, request, former)
        created = await claim(services, project, request.domain, said, check)
        domain = await _stored(services, project, request.domain)
        if domain is None:
            raise Conflict(f"{request.domain} was deleted meanwhile", hint="Set it up again.")
        try:
            found = await bring_into_place(services, domain, wait_seconds=CERTIFICATE_SECONDS)
        except (Conflict, DriverRefused):
            if created:  # nothing of it is anywhere yet
                await _take_back(services, domain)
            raise
    return _set_up(services, found, created=created)


async def require_settable(services: Services, request: DomainSetupRequest, team: str) -> None:
    """Raise what domain_setup would refuse by the registry and the settings alone; also before there is a project."""
    _require_provider(services, request, team)
    _require_free(services, request, await load_ssot(services.store), await further_hosts(services))


def _require_free(
    services: Services, request: DomainSetupRequest, ssot: Document, further: Mapping[str, Owner]
) -> None:
    owner = Owner(request.project_name, request.environment)
    require_free_domain(services.settings, ssot.get("projects", {}), request.domain, owner, further)


async def _stored(services: Services, project: str, name: str) -> Domain | None:
    return next((one for one in await project_domains(services.store, project) if one.name == name), None)


async def _take_back(services: Services, domain: Domain) -> None:
    """A wish that was refused is none: as if it had never been made."""
    await release(services, domain)
    try:
        await withdraw(services, domain)
    except CodebError as error:
        services.log.warning("domain is still leaving", domain=domain.name, problem=error.message)


def _said(ctx: Context, request: DomainSetupRequest, former: Domain | None) -> dict[str, Any]:
    said: dict[str, Any] = {"environment": request.environment.value}
    if request.provider is not None or former is None:
        said["provider"] = "manual" if request.provider == "manual" else None
    if former is None or former.added_at is None:
        said["addedAt"] = utc_text(ctx.services.drivers.clock.now(), "seconds")
        said["addedBy"] = ctx.caller.key_id
    if former is None:
        said |= {"status": PENDING, "routed": False}
    return said


def _require_provider(services: Services, request: DomainSetupRequest, team: str) -> None:
    """Raise InvalidRequest for a provider that is not that of the zone, Conflict for a zone of other teams or one that we
    would write to without knowing our addresses."""
    zone = zoned(services.settings, request.domain, None)
    if request.provider not in (None, "manual", zone.provider):
        where = f"zone {zone.name} is kept by {zone.provider}" if zone.name else "no zone in the settings has this name"
        raise InvalidRequest(
            f"provider: {where}",
            hint="Leave provider out, or say manual to enter the records yourself.",
            fields=[{"field": "provider", "problem": where}],
        )
    teams = services.settings.dns.zones[zone.name].teams if zone.name else ()
    if teams and team not in teams:
        raise Conflict(
            f"the zone {zone.name} is kept for other teams",
            hint="Choose another domain, or ask who runs the installation.",
        )


def _set_up(services: Services, found: Found, *, created: bool) -> DomainResult:
    domain = found.domain
    data = domain_data(services, found)
    to_enter = [
        f"{one.name}. {services.settings.dns.ttl} IN {one.type} {one.value}" for one in data.records if not one.found
    ]
    if domain.status == ACTIVE:
        message = f"{domain.name} serves {domain.project} {domain.environment} and follows its promotes"
    else:
        message = f"{domain.name} is pending for {domain.project} {domain.environment}: {found.problems[0]}"
    return DomainResult(
        data=data, created=created, message=message, to_enter=to_enter if data.provider == "manual" else []
    )


def domain_data(services: Services, found: Found, status: str | None = None) -> DomainData:
    domain, settings = found.domain, services.settings
    zone = zoned(settings, domain.name, domain.provider)
    wanted = [address_record(domain.name, address) for address in found.preflight.ours]
    held = set(found.preflight.addresses)
    ssl = "off" if settings.proxy.tls == "off" else "active" if found.certificate else "pending"
    return DomainData(
        domain=domain.name,
        project_name=domain.project,
        environment=domain.environment.value,
        type=wanted[0].type if wanted else "A",
        target=wanted[0].value if wanted else None,
        ssl=ssl,
        records=[
            DomainRecord(type=one.type, name=one.name, value=one.value, found=one.value in held) for one in wanted
        ],
        status=status or domain.status,
        provider=zone.provider,
        zone=zone.name,
        url=url_of(settings, domain.name),
        problems=list(found.problems),
    )


# ── take away ───────────────────────────────────────────────────────────────────────────────────────────────────


@operation(effect=Effect.DESTROY, role=Role.MEMBER, reach=Reach.TEAM, long=True)
async def domain_delete(ctx: Context, request: DomainDeleteRequest) -> DomainResult:
    """Take a domain away: out of the proxy, and its DNS records that were written here out of their zone.

    Foreign records stay. What cannot be reached now is taken away later by itself (status deleting).
    """
    services = ctx.services
    domain = await find_domain(ctx, request, changes=True)
    fronts = (await placement_of(services, domain.key)).fronts
    async with domain_lease(services, domain.name, wait=True):
        await release(services, domain)
        problems: tuple[str, ...] = ()
        try:
            if any(one.name == domain.name and one.project == domain.project for one in await leaving(services.store)):
                await withdraw(services, domain)
        except CodebError as error:
            problems = (error.message,)
    status = "deleting" if problems else "deleted"
    seen = Found(domain, await preflight(services, domain.name, fronts), problems, certificate=False)
    data = domain_data(services, seen, status).model_copy(update={"ssl": "off"})
    end = f"; still to do: {problems[0]}" if problems else ""
    return DomainResult(data=data, message=f"{domain.name} no longer belongs to {domain.project}{end}")


async def find_domain(ctx: Context, request: DomainRequest, *, changes: bool) -> Domain:
    """The domain among the caller's; raises NotFound for a stranger's like for none at all."""
    names = [request.project_name] if request.project_name else await callers_projects(ctx.store, ctx.caller)
    found = await asyncio.gather(*(project_domains(ctx.store, name) for name in names))
    for domain in (one for several in found for one in several):
        if domain.name == request.domain:
            require_scope(ctx.caller, domain.project, [domain.environment], changes=changes)
            return domain
    if changes and request.project_name:
        gone = [
            one
            for one in await leaving(ctx.store)
            if one.name == request.domain and one.project == request.project_name
        ]
        if gone:
            require_scope(ctx.caller, gone[0].project, [gone[0].environment], changes=True)
            return gone[0]
    raise NotFound(
        f"your projects have no domain {request.domain}",
        hint="List them with domain_list, or add it with domain_setup.",
        domain=request.domain,
    )
