"""Is a server's Centrifugo well? Asked through its health endpoint and its API, and as a client would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from codeb_mcp.drivers.centrifugo import Centrifugo, Installed
from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.centrifugo import dangers_in
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.server_facts import Finding, Health
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.operations.streaming_state import centrifugo_on, on_server

NAME = "centrifugo"
MOST_ASKED = 64
OK_STATUS, OFF_STATUS = 200, 404
UNREADABLE = "permission"


async def centrifugo_findings(services: Services, host: Host, key: str) -> list[Finding]:
    """What is to be said of the Centrifugo on the server of that name; changes nothing."""
    way = centrifugo_on(services, host)
    try:
        health = _health(await way.health())
    except CodebError as error:
        return [Finding(NAME, Health.FAIL, error.message, error.hint)]
    try:
        installed = await way.read()
        info = await way.info(installed.secrets)
    except CodebError as error:
        status = Health.UNKNOWN if error.detail.get("reason") == UNREADABLE else Health.FAIL
        return [health, Finding(f"{NAME}_api", status, error.message, error.hint)]
    said = f"version {', '.join(info.versions) or 'unknown'}, {info.clients} clients"
    api = Finding(f"{NAME}_api", Health.OK, said)
    return [
        health,
        api,
        *_options(installed),
        *await _tokens(way, installed),
        *await _namespaces(services, way, installed, key),
    ]


def _health(status: int) -> Finding:
    if status == OK_STATUS:
        return Finding(NAME, Health.OK, "its health endpoint answers")
    if status == OFF_STATUS:
        return Finding(NAME, Health.FAIL, "its health endpoint is off", "Set health.enabled, and restart Centrifugo.")
    return Finding(NAME, Health.FAIL, f"its health endpoint answers {status}", "Look at its log.")


def _options(installed: Installed) -> list[Finding]:
    try:
        found = dangers_in(installed.config, installed.major)
    except ValueError as error:
        return [Finding(f"{NAME}_options", Health.FAIL, f"its configuration {error}", "Correct it on the server.")]
    if not found:
        return [Finding(f"{NAME}_options", Health.OK, "tokens, keys and origins are asked for")]
    hint = "Take these options out of its configuration, and restart it."
    return [Finding(f"{NAME}_options", Health.FAIL, "; ".join(found), hint)]


async def _tokens(way: Centrifugo, installed: Installed) -> list[Finding]:
    if await way.lets_in(installed.secrets):
        return [Finding(f"{NAME}_tokens", Health.OK, "a token of its secret is let in")]
    said = "it does not take tokens of the secret in its file: it was started with another one"
    return [Finding(f"{NAME}_tokens", Health.FAIL, said, "Restart Centrifugo, then repeat streaming_setup.")]


async def _namespaces(services: Services, way: Centrifugo, installed: Installed, key: str) -> Sequence[Finding]:
    """Those of the registry, as the running server has them."""
    known = on_server(await load_ssot(services.store), key)
    asked = sorted(known)[:MOST_ASKED]
    there = await asyncio.gather(*(way.has_namespace(name, installed.secrets) for name in asked))
    missing = [name for name, found in zip(asked, there, strict=True) if not found]
    if not missing:
        return [Finding(f"{NAME}_namespaces", Health.OK, f"{len(asked)} of {len(known)} asked for, all there")]
    hint = "Repeat streaming_setup for these."
    return [Finding(f"{NAME}_namespaces", Health.FAIL, f"it has no {', '.join(missing[:10])}", hint)]
