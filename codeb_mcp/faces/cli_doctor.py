"""`codeb doctor`: everything that can be checked, in one table with what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from codeb_mcp.faces.cli_call import Body, Manner, Surroundings, print_answer
from codeb_mcp.faces.cli_keys import configured_key
from codeb_mcp.model.errors import CodebError, ReleaseUnhealthy

ASKED = ("health_check", "registry_check", "server_check")
SEVERITY = ("fail", "warn", "unknown", "ok")
AS_SEVERITY: Mapping[str, str] = {"healthy": "ok", "unhealthy": "fail", "empty": "ok"}
Ask = Callable[[str], Awaitable[Body]]


@click.command("doctor", short_help="Check everything: installation, registry, all servers.")
@click.option("--all", "everything", is_flag=True, help="Show also what is well")
@click.option("--connect", metavar="URL", envvar="CODEB_URL", help="Ask this server, not the local registry")
@click.option("--json", "as_json", is_flag=True, help="Answer JSON")
@click.option("--no-color", is_flag=True, help="Plain text")
@click.pass_obj
def doctor(around: Surroundings, *, everything: bool, connect: str | None, as_json: bool, no_color: bool) -> int:
    """Check the engine, the proxy, the registry against reality, and every server for its role; changes nothing.

    Exits with 17 when a check failed, so that a schedule or a pipeline notices.
    """
    rows = sorted(asyncio.run(_rows(around, connect)), key=lambda row: SEVERITY.index(row["status"]))
    counts = {name: sum(row["status"] == name for row in rows) for name in SEVERITY}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    shown = rows if everything or as_json else [row for row in rows if row["status"] != "ok"]
    if as_json:
        print_answer({"data": shown, "counts": counts, "summary": said}, Manner(json=True))
    else:
        if shown:
            print_answer({"data": shown}, Manner(color=not no_color))
        click.echo(said)
    return ReleaseUnhealthy.exit_code if counts["fail"] else 0


async def _rows(around: Surroundings, connect: str | None) -> list[dict[str, Any]]:
    key = configured_key(around.environ)
    if connect:
        from codeb_mcp.faces.cli_remote import Remote
        from codeb_mcp.faces.client import connected

        async with connected(connect, key) as client:
            remote = Remote(client, lambda event: None)

            async def far(tool: str) -> Body:
                return await remote.answer(tool, {}, None)

            return await _asked(far)
    from codeb_mcp.operations.catalog import load_all
    from codeb_mcp.operations.invoke import Call, invoke
    from codeb_mcp.operations.keys import KeyRing

    load_all()
    async with around.open(around.settings()) as services:
        caller = await KeyRing().authenticate(services, key, via="cli")

        async def near(tool: str) -> Body:
            return (await invoke(services, Call(tool, {}, caller))).body

        return await _asked(near)


async def _asked(ask: Ask) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for tool in ASKED:
        try:
            rows += _read(tool, await ask(tool))
        except CodebError as error:
            status = "unknown" if error.code == "forbidden" else "fail"
            rows.append(_row("codeb", tool, status, error.message, error.hint))
    return rows


def _read(tool: str, body: Body) -> Iterator[dict[str, Any]]:
    if tool == "health_check":
        for part in body.get("parts", ()):
            yield _row(
                "codeb", part["name"], AS_SEVERITY.get(part["status"], "unknown"), part["message"], part.get("hint")
            )
    elif tool == "registry_check":
        found: Sequence[Mapping[str, Any]] = body.get("data", ())
        for drift in found:
            yield _row("codeb", "registry", "warn", f"{drift['environment']}: {drift['message']}", drift["proposal"])
        if not found:
            yield _row("codeb", "registry", "ok", "registry, engine, proxy and ports agree", None)
    else:
        for check in body.get("checks", ()):
            yield _row(check["serverKey"], check["check"], check["status"], check["message"], check.get("hint"))


def _row(server: str, check: str, status: str, message: str, todo: str | None) -> dict[str, Any]:
    return {"status": status, "server": server, "check": check, "message": message, "whatToDo": todo or ""}
