"""Commands that make and run an installation. They are no operations: whoever may read the registry's files may use them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
from typing import Any

import click

from codeb_mcp import __version__
from codeb_mcp.faces.cli_audit import somebody
from codeb_mcp.faces.cli_call import Manner, Surroundings, print_answer, with_services
from codeb_mcp.faces.cli_doctor import doctor
from codeb_mcp.faces.cli_keys import LONGEST, VARIABLE, save_key
from codeb_mcp.faces.cli_servers import ssh_key
from codeb_mcp.model.errors import InvalidRequest, RegistryDamaged


def say_version() -> None:
    """The one version there is."""
    click.echo(f"codeb {__version__}")


@click.command("version", short_help="Show the version.")
def version() -> None:
    """Show the version."""
    say_version()


@click.command("init", short_help="Set up CODEB_ROOT; prints the first owner key once.")
@click.option("--save-key", "keep", is_flag=True, help="Store the key in ~/.config/codeb/key (mode 0600)")
@click.option(
    "--new-owner-key", "anew", is_flag=True, help="When all keys are lost: void them and make one new owner key"
)
@click.option("--yes", is_flag=True, help="Do not ask")
@click.option("--json", "as_json", is_flag=True, help="Answer JSON")
@click.pass_obj
def init(around: Surroundings, *, keep: bool, anew: bool, yes: bool, as_json: bool) -> None:
    """Create what is missing below CODEB_ROOT: folders, an empty registry and the first owner key.

    Safe to repeat: it never erases or replaces anything. The key is printed once and stored nowhere unless --save-key
    says so. Only --new-owner-key replaces: keys that are damaged and of which no version is left.
    """
    from codeb_mcp.operations.setup import initialise

    if anew:
        _make_owner_key(around, Manner(json=as_json), keep=keep, yes=yes)
        return

    done = with_services(around, initialise)
    root = around.settings().root
    stored = save_key(done.owner_key, around.environ) if keep and done.owner_key else None
    if as_json:
        answer = {"root": str(root), "created": list(done.created), "ownerKey": done.owner_key}
        more = {"repaired": list(done.repaired) or None, "warnings": list(done.warnings) or None}
        print_answer({name: value for name, value in (answer | more).items() if value is not None}, Manner(json=True))
        return
    made = ", ".join(done.created)
    for folder in done.repaired:
        click.echo(f"{folder}: its permissions were too narrow for the proxy and have been widened")
    if made or not done.repaired:
        click.echo(f"{root}: created {made}" if made else f"{root}: everything is there, nothing was changed")
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    if done.owner_key is None:
        return
    _say_key("First owner key", done.owner_key, stored)


def _make_owner_key(around: Surroundings, manner: Manner, *, keep: bool, yes: bool) -> None:
    """`codeb init --new-owner-key`."""
    from codeb_mcp.operations.new_owner import new_owner_key, require_keys_lost

    with_services(around, require_keys_lost)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequest("this voids all keys, and nobody is there to agree", hint="Repeat with --yes.")
        click.confirm("All former keys become void; the damaged file is put aside. Go on?", abort=True, err=True)
    key = with_services(around, functools.partial(new_owner_key, by=somebody()))
    stored = save_key(key, around.environ) if keep else None
    if manner.json:
        print_answer({"root": str(around.settings().root), "ownerKey": key}, manner)
    else:
        _say_key("New owner key", key, stored)


def _say_key(what: str, key: str, stored: Any) -> None:
    click.echo(f"\n{what}, shown this once:\n\n  {key}\n")
    if stored is not None:
        click.echo(f"It is stored in {stored}. Next: codeb serve")
    else:
        click.echo(f"Keep it safe. Use it with `codeb login` (stores it) or {VARIABLE}. Next: codeb serve")


@click.command("login", short_help="Store your API key; reads it from stdin.")
@click.pass_obj
def login(around: Surroundings) -> None:
    """Store your API key in ~/.config/codeb/key (mode 0600). It is read from stdin, so that it is in no process list."""
    if sys.stdin.isatty():
        text = click.prompt("API key", hide_input=True, type=str, err=True)
    else:
        text = sys.stdin.read(LONGEST)
    click.echo(f"stored in {save_key(text.strip(), around.environ)}")


@click.command("serve", short_help="Run the server: MCP, HTTP API, metrics, housekeeping.")
@click.option("--host", metavar="ADDRESS", help="Listen here instead of what the settings say")
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here instead of what the settings say")
@click.pass_obj
def serve(around: Surroundings, *, host: str | None, port: int | None) -> None:
    """Run the server on one port: MCP at /mcp and /sse, POST /api/tool, /health, /metrics; housekeeping included."""
    from codeb_mcp.faces.http import serve as run_server
    from codeb_mcp.settings import load

    settings = load(environ=around.environ)
    said = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    if said:
        settings = settings.model_copy(update={"server": settings.server.model_copy(update=said)})
    _run_face(run_server, settings)


@click.command("stdio", short_help="Speak MCP on stdin and stdout, for clients that start a command.")
@click.option("--connect", metavar="URL", envvar="CODEB_URL", help="Pass everything on to a running server")
@click.pass_obj
def stdio(around: Surroundings, *, connect: str | None) -> None:
    """Speak MCP on stdin and stdout, on the local registry with your key; with --connect as a bridge to a server."""
    from codeb_mcp.faces.stdio import stdio as run_stdio

    _run_face(run_stdio, around.settings(), connect or None)


def _run_face(face: Any, *arguments: Any) -> None:
    """Faces may be written as coroutines or as functions that run their own loop."""
    made = face(*arguments)
    if asyncio.iscoroutine(made):
        asyncio.run(made)


@click.command("housekeeping", short_help="One round of what codeb serve does by itself, for cron.")
@click.option("--json", "as_json", is_flag=True, help="Answer JSON")
@click.option("--no-color", is_flag=True, help="Plain text")
@click.pass_obj
def housekeeping(around: Surroundings, *, as_json: bool, no_color: bool) -> None:
    """One round of what `codeb serve` does by itself: expire grace slots, take up open runs, refresh health, restore
    routes, remove images that nobody needs."""
    from codeb_mcp.operations.catalog import load_all
    from codeb_mcp.operations.housekeeping import Housekeeper

    async def once(services: Any) -> Any:
        report = await Housekeeper(services).once()
        await services.runs.drain()
        return report

    load_all()
    report = {
        name: value for name, value in dataclasses.asdict(with_services(around, once)).items() if value or as_json
    }
    if not report:
        click.echo("nothing to do")
        return
    warnings = report.get("problems")
    shown = report if as_json else {**report, "problems": None, "warnings": warnings}
    print_answer(shown, Manner(json=as_json, color=not no_color))


@click.command("rebuild", short_help="Restore a damaged registry from kept versions and from reality.")
@click.option("--apply", "really", is_flag=True, help="Do it; without this only say what would be done")
@click.option("--json", "as_json", is_flag=True, help="Answer JSON")
@click.pass_obj
def rebuild_registry(around: Surroundings, *, really: bool, as_json: bool) -> int:
    """Restore a damaged or incomplete registry from its kept versions, the engine's labels and the proxy.

    Without --apply nothing is changed. What can be read is never replaced. Exits with 30 when something stays lost.
    """
    from codeb_mcp.operations.rebuild import rebuild

    async def work(services: Any) -> list[Any]:
        return list(await rebuild(services, apply=really))

    rows = [{"key": one.key, "action": one.action, "detail": one.detail} for one in with_services(around, work)]
    lost = [row["key"] for row in rows if row["action"] == "lost"]
    if as_json:
        print_answer({"applied": really, "lost": lost, "data": rows}, Manner(json=True))
    elif not rows:
        click.echo("the registry is whole; nothing to do")
    else:
        print_answer({"data": rows}, Manner())
        done = f"done, but for what stays lost: {', '.join(lost)}" if lost else "done"
        click.echo(done if really else "nothing was changed; repeat with --apply to do this")
    return RegistryDamaged.exit_code if lost else 0


COMMANDS = (version, init, login, serve, stdio, housekeeping, doctor, ssh_key)
