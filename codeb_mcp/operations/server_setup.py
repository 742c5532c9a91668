"""Setting a server up for its role: looked at first, then only what is missing, each step whole and harmless to repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from codeb_mcp.drivers.hosts import Finished, Host
from codeb_mcp.drivers.ssh_keygen import have_key
from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import Conflict, DriverRefused
from codeb_mcp.model.github_runner import LOOK, REGISTER, runner_says
from codeb_mcp.model.machine import Action
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.model.sequence import Sequence as Machine
from codeb_mcp.model.sequence import Step
from codeb_mcp.model.server import Server, ServerKey, ServerRole, UserName
from codeb_mcp.model.server_scripts import SCRIPTS, digest
from codeb_mcp.model.server_setup import Item, firewall_items, items_of, merged
from codeb_mcp.operations.answers import RunRequest, fact, header_of, run_to_answer
from codeb_mcp.operations.catalog import Effect, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.ownership import require_unlimited
from codeb_mcp.operations.perform import Performer, step
from codeb_mcp.operations.runs import Planned, planner
from codeb_mcp.operations.server_firewall import require_way_in, rules_for
from codeb_mcp.operations.servers import load_server
from codeb_mcp.registry.entries import RunHeader

SETUP_SECONDS = 1800.0
PACKAGE_SECONDS = 900.0
ITEM_SECONDS = 60.0
READ = '[ ! -e "$1" ] || cat -- "$1"'
CODEB_THERE = "command -v codeb"
NO_CODEB = (
    "codeb itself is not installed for all users: put links to its programs into /usr/local/bin, then "
    "`systemctl restart codeb`"
)
HOST_KEY_FILE = "/etc/ssh/ssh_host_ed25519_key.pub"
BACK_SECONDS = 45
"""How long new rules of the firewall are there before the former ones come back by themselves."""


class ServerSetupRequest(Request):
    """Which server to set up. Unless `dryRun` is false nothing is changed."""

    server_key: ServerKey = Field(description="Its name in the inventory")
    dry_run: bool = Field(True, description="Only look, and say what would be done")
    login_user: UserName | None = Field(
        None, description="Log in as this user: root, or one that has sudo without a password; default: the inventory's"
    )
    apply_firewall: bool = Field(False, description="Also apply the firewall's rules")


class SetupRow(Result):
    """One thing that the role needs. `status`: right, change (to be made) or changed."""

    name: str
    status: str
    says: str


class ServerSetupResult(Result):
    """What is right, and what was or would be changed. `firewall`: the role's rules for nftables."""

    server_key: str
    role: ServerRole
    dry_run: bool
    changed: bool
    operation_id: str | None = None
    data: list[SetupRow]
    firewall: str
    notes: list[str] = Field(default_factory=list)
    summary: str
    next_step: str | None = None


class _SetupRun(RunRequest):
    """The request as the journal keeps it."""

    server_key: ServerKey
    login_user: UserName | None = None
    apply_firewall: bool = False


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.PLATFORM, long=True)
async def server_setup(ctx: Context, request: ServerSetupRequest) -> ServerSetupResult:
    """Set a server up for its role; a dry run, which is the default, only looks and says what would be done.

    Packages, the user codeb and its key, folders, files of engine, proxy, Centrifugo and log rotation, and units that are
    enabled and, where systemd runs, started. Only what is not right is changed; a file that is replaced is kept beside as
    .before-codeb, and those of Caddy and Centrifugo are never replaced. A server that goes away in between leaves the step
    before or after, and the same call goes on. Nothing that runs is restarted. With applyFirewall its rules are applied; the
    former ones come back by themselves unless a new connection gets through.
    """
    require_unlimited(ctx.caller)
    server = await load_server(ctx.store, request.server_key)
    host = await _host(ctx.services, request.server_key, server, request.login_user)
    rules, before = await _looked(ctx.services, host, server, firewalled=request.apply_firewall)
    differing = [item.name for item, status in before if status != "right"]
    operation_id = None
    if differing and not request.dry_run:
        operation_id = await _run(ctx, request)
    done = bool(operation_id)
    rows = [
        SetupRow(name=item.name, status="changed" if done and status == "change" else status, says=item.says)
        for item, status in before
    ]
    said = f"{len(differing)} of {len(rows)} {'were' if done else 'are to be'} changed" if differing else "all is right"
    return ServerSetupResult(
        server_key=request.server_key,
        role=server.role,
        dry_run=request.dry_run,
        changed=done,
        operation_id=operation_id,
        data=rows,
        firewall=rules,
        notes=await _notes(host, server),
        summary=f"{request.server_key}: {said}",
        next_step="Repeat with dryRun: false to do it." if differing and not done else None,
    )


async def _run(ctx: Context, request: ServerSetupRequest) -> str:
    run = _SetupRun(
        project_name="server",
        server_key=request.server_key,
        login_user=request.login_user,
        apply_firewall=request.apply_firewall,
    )
    header = header_of(ctx, "server_setup", run, team=ctx.caller.team, seconds=SETUP_SECONDS)
    # No project can be called so: a server's lease is its own.
    header = replace(header, project=f"server.{request.server_key}", environment=None)
    view = await run_to_answer(ctx, header, wait=True)
    if warnings := fact(view, "warnings"):
        raise DriverRefused(str(warnings[0]), hint="Repeat the call.")
    return view.header.run_id


async def _notes(host: Host, server: Server) -> list[str]:
    if server.role is not ServerRole.APPLICATION:
        return []
    sudo = await _sudo(host)
    seen = await host.run([*sudo, "/bin/sh", "-c", LOOK, "codeb-setup"], timeout_seconds=ITEM_SECONDS)
    runner = runner_says(seen.stdout.decode("utf-8", "replace")) if seen.ok else REGISTER
    there = await host.run(["/bin/sh", "-c", CODEB_THERE, "codeb-setup"], timeout_seconds=ITEM_SECONDS)
    return [runner] if there.ok else [NO_CODEB, runner]


@planner("server_setup")
async def plan_setup(services: Services, header: RunHeader) -> Planned:
    """Looks at everything, and plans what is not right."""
    request = _SetupRun.model_validate(header.request)
    server = await load_server(services.store, request.server_key)
    host = await _host(services, request.server_key, server, request.login_user)
    steps = []
    _, looked = await _looked(services, host, server, firewalled=request.apply_firewall)
    for item, status in looked:
        if status == "right":
            continue
        detail = {"server": request.server_key, "user": request.login_user, "item": asdict(item), "run": header.run_id}
        seconds = PACKAGE_SECONDS if item.kind == "packages" else ITEM_SECONDS
        steps.append(Step(Action("setup_item", item.name, detail, deadline_seconds=seconds, says=item.says)))
    return Planned(Machine(tuple(steps)))


@step("setup_item")
async def setup_item(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have the thing, by its kind's fixed script. Rules of the firewall are kept only when a new connection gets through."""
    detail = action.detail
    server = await load_server(run.store, detail["server"])
    host = await _host(run.services, detail["server"], server, detail["user"])
    item = Item(**{**detail["item"], "words": tuple(detail["item"]["words"])})
    sudo = await _sudo(host)
    if item.kind != "firewall":
        return {"status": await _script(host, sudo, item, "apply", action.deadline_seconds)}
    item = replace(item, words=(*item.words, digest(item.content), detail["run"], str(BACK_SECONDS)))
    if (said := await _script(host, sudo, item, "apply", ITEM_SECONDS)) == "armed":
        await require_way_in(run.services, detail["server"], server)
        said = await _script(host, sudo, item, "keep", ITEM_SECONDS)
    return {"status": said}


async def _host(services: Services, key: str, server: Server, user: str | None) -> Host:
    hosts = services.drivers.hosts
    if user is None or (server.connection == "ssh" and user == server.user):
        return hosts.at(key, server)
    if server.connection == "local":
        # Its own key is read from its own disk, so nobody can be in between.
        line = await hosts.at(key, server).read(HOST_KEY_FILE)
        if line is None:
            raise DriverRefused(
                f"{key}: {HOST_KEY_FILE} is missing", hint="Have sshd with an ed25519 host key.", server=key
            )
        own = b" ".join(line.split()[:2]).decode("ascii", "replace")
        server = server.model_copy(update={"connection": "ssh", "host": "127.0.0.1", "host_key": own})
    # A connection of its own: that of the inventory's user stays as it is.
    return hosts.at(f"{key} ({user})", server.model_copy(update={"user": user}))


def _items(services: Services, server: Server) -> tuple[Item, ...]:
    path: Path = services.settings.ssh_key
    if path.exists():
        return items_of(server.role, have_key(path).line)
    if services.settings.ssh.agent is None and server.connection != "local":
        raise Conflict("this installation has no SSH key", hint="Make it with `codeb ssh-key`.")
    return items_of(server.role, None)


async def _looked(
    services: Services, host: Host, server: Server, *, firewalled: bool
) -> tuple[str, list[tuple[Item, str]]]:
    """The firewall's rules, and every item with `right` or `change`. Raises DriverRefused for what is in the way."""
    sudo = await _sudo(host)
    rules = await rules_for(services, host, server, needed=firewalled)
    items = (*_items(services, server), *(firewall_items(rules) if firewalled else ()))
    return rules, [(item, await _script(host, sudo, item, "check", ITEM_SECONDS)) for item in items]


async def _sudo(host: Host) -> Sequence[str]:
    """The words before a command that root has to run."""
    who = (await host.run(["id", "-u"], timeout_seconds=ITEM_SECONDS)).stdout.strip()
    if who == b"0":
        return ()
    if (await host.run(["sudo", "-n", "true"], timeout_seconds=ITEM_SECONDS)).ok:
        return ("sudo", "-n")
    raise DriverRefused(
        f"{host.key}: the user that logs in is not root and has no sudo without a password",
        hint="Give loginUser: root, or let that user `sudo -n` everything (NOPASSWD: ALL); only set-up needs it.",
        server=host.key,
    )


async def _script(host: Host, sudo: Sequence[str], item: Item, mode: str, seconds: float) -> str:
    words, content, kind = item.words, item.content, item.kind
    if kind == "merge":
        content, kind = await _merged(host, sudo, item), "file"
    if kind in ("file", "line") or (kind == "firewall" and mode == "check"):
        words = (*words, digest(content))
    done = await host.run(
        [*sudo, "/bin/sh", "-c", SCRIPTS[kind], "codeb-setup", mode, *words],
        stdin=content.encode(),
        timeout_seconds=seconds,
    )
    said = done.stdout.decode("utf-8", "replace").strip()
    if not done.ok or said not in ("right", "change", "changed", "armed"):
        raise _refused(host, item, done)
    return said


async def _merged(host: Host, sudo: Sequence[str], item: Item) -> str:
    path = item.words[0]
    done = await host.run([*sudo, "/bin/sh", "-c", READ, "codeb-setup", path], timeout_seconds=ITEM_SECONDS)
    if not done.ok:
        raise _refused(host, item, done)
    try:
        return merged(done.stdout.decode("utf-8"), item.values)
    except ValueError as error:
        raise DriverRefused(
            f"{host.key}: {path} {error}", hint="Correct it on the server; it was left alone.", server=host.key
        ) from None


def _refused(host: Host, item: Item, done: Finished) -> DriverRefused:
    lines = clean_text(done.stderr.decode("utf-8", "replace").strip(), limit=2000).splitlines()
    why = lines[-1] if lines else f"exit status {done.status}"
    return DriverRefused(
        f"{host.key}: {item.name} failed: {why[:300]}",
        hint="See to it on the server and repeat the call: what is right already is left alone.",
        server=host.key,
        step=item.name,
        output=lines[-15:],
    )
