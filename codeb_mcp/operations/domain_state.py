"""The documents of domains: whose a host is, entries that come and go, and those whose traces are still to be removed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from codeb_mcp.model.domains import Domain, domains_in, with_entry, without_entry
from codeb_mcp.model.errors import Conflict, LockHeld, NotFound
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.routing import Owner
from codeb_mcp.registry.store import Change, Document, StateStore, update

PREFIX = "domains/"
LEAVING = "leaving-domains"
"""Domains that are nobody's any more and whose records or routes are still to be taken away."""
TRIES = 50
LEASE_SECONDS = 180.0
WAIT_SECONDS = 15.0
PAUSE_SECONDS = 0.05


def document_of(project: str) -> str:
    """The document key of a project's further domains."""
    return PREFIX + project


async def project_domains(store: StateStore, project: str) -> list[Domain]:
    """The domains of a project."""
    stored = await store.get(document_of(project))
    return list(domains_in(stored.doc if stored else None, project))


async def all_domains(store: StateStore) -> list[Domain]:
    """The domains of all projects, by project."""
    found: list[Domain] = []
    for key in await store.keys(PREFIX):
        found += await project_domains(store, key.removeprefix(PREFIX))
    return found


async def leaving(store: StateStore) -> list[Domain]:
    """The domains whose traces are still to be removed."""
    stored = await store.get(LEAVING)
    rows = stored.doc.get("domains", []) if stored else []
    return [
        domain
        for row in rows
        if isinstance(row, dict)
        for domain in domains_in({"domains": [row]}, row.get("project", ""))
    ]


async def further_hosts(services: Services) -> dict[str, Owner]:
    """Every host that is a further domain, or was one and is not gone yet, or is the control plane's own; and whose it is."""
    own = (host.partition(":")[0] for host in services.settings.server.allowed_hosts)
    found = {host: Owner("") for host in own}
    found |= {one.name: Owner(one.project) for one in await leaving(services.store)}
    return found | {one.name: Owner(one.project, one.environment) for one in await all_domains(services.store)}


@contextlib.asynccontextmanager
async def domain_lease(services: Services, name: str, *, wait: bool) -> AsyncIterator[None]:
    """Be the only one, in any process, that works on this domain. Raises LockHeld when somebody else goes on doing so."""
    loop = asyncio.get_running_loop()
    end = loop.time() + (WAIT_SECONDS if wait else 0)
    while True:
        try:
            lease = await services.store.acquire(f"domain/{name}", "domains", ttl_seconds=LEASE_SECONDS)
            break
        except LockHeld:
            if loop.time() >= end:
                raise
            await asyncio.sleep(random.uniform(PAUSE_SECONDS / 2, PAUSE_SECONDS))
    try:
        yield
    finally:
        await services.store.release(lease)


async def claim(
    services: Services,
    project: str,
    name: str,
    said: Mapping[str, Any],
    check: Callable[[Document, Mapping[str, Owner]], None],
) -> bool:
    """Write the entry into the project's document if `check` (given `ssot` and the further hosts of all) lets it; True when
    it was not there before.

    `ssot` is committed along with it, so that nobody else who claims a host at the same moment goes unnoticed.
    """
    key = document_of(project)
    for _ in range(TRIES):
        ssot = await services.store.get("ssot")
        if ssot is None or project not in ssot.doc.get("projects", {}):
            raise NotFound(f"there is no project {project}", hint="Create it with project_create.", project=project)
        check(ssot.doc, await further_hosts(services))
        stored, gone = await services.store.get(key), await services.store.get(LEAVING)
        new = name not in {one.name for one in domains_in(stored.doc if stored else None, project)}
        changed = with_entry(stored.doc if stored else None, name, said)
        if stored is not None and changed == dict(stored.doc):
            return False
        changes = [Change(key, changed, stored.version if stored else 0), Change("ssot", ssot.doc, ssot.version)]
        if gone is not None and any(row.get("domain") == name for row in gone.doc.get("domains", [])):
            changes.append(Change(LEAVING, without_entry(gone.doc, name), gone.version))
        try:
            await services.store.commit(changes)
        except Conflict:
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
            continue
        return new
    raise Conflict("the registry kept changing", hint="Try again.")


async def note(services: Services, domain: Domain, said: Mapping[str, Any]) -> bool:
    """Write what was found out about a domain; False when it is no longer there. Nothing is written when nothing changed."""
    there: list[bool] = []

    def apply(doc: Document | None) -> Document | None:
        entries = {one.name: one for one in domains_in(doc, domain.project)}
        there.append(domain.name in entries)
        if doc is None or domain.name not in entries:
            return doc
        changed = with_entry(doc, domain.name, said)
        return doc if changed == dict(doc) else changed

    if await services.store.get(document_of(domain.project)) is None:
        return False
    await update(services.store, document_of(domain.project), apply)
    return there[-1]


async def release(services: Services, domain: Domain) -> None:
    """Strike the domain from its project and note that its traces are to be removed, in one commit."""
    key = document_of(domain.project)
    for _ in range(TRIES):
        stored = await services.store.get(key)
        if stored is None or domain.name not in {one.name for one in domains_in(stored.doc, domain.project)}:
            return
        changes = [
            Change(key, without_entry(stored.doc, domain.name), stored.version),
            *await leaving_changes(services.store, [domain]),
        ]
        try:
            await services.store.commit(changes)
        except Conflict:
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
            continue
        return
    raise Conflict("the registry kept changing", hint="Try again.")


async def leaving_changes(store: StateStore, domains: list[Domain]) -> list[Change]:
    """The changes that note these domains as leaving; for a commit that strikes them elsewhere."""
    if not domains:
        return []
    stored = await store.get(LEAVING)
    doc: Mapping[str, Any] = stored.doc if stored else {}
    for one in domains:
        said = {"project": one.project, "environment": one.environment.value, "provider": one.provider}
        doc = with_entry(without_entry(doc, one.name), one.name, said)
    return [Change(LEAVING, doc, stored.version if stored else 0)]


async def forget(services: Services, domain: Domain) -> None:
    """The traces of a domain that left are gone."""
    if await services.store.get(LEAVING) is not None:
        await update(services.store, LEAVING, lambda doc: without_entry(doc, domain.name))
