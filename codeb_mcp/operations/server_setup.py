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
from codeb_mcp.model.machine import Action
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.model.sequence import Sequence as Machine
from codeb_mcp.model.sequence import Step
from codeb_mcp.model.server import Server, ServerKey, ServerRole, UserName
from codeb_mcp.model.server_setup import SCRIPTS, Item, digest, firewall, items_of, merged
from codeb_mcp.operations.answers import RunRequest, fact, header_of, run_to_answer
from codeb_mcp.operations.catalog import Effect, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.ownership import require_unlimited
from codeb_mcp.operations.perform import Performer, step
from codeb_mcp.operations.runs import Planned, planner
from codeb_mcp.operations.servers import load_server, load_servers
from codeb_mcp.registry.entries import RunHeader

SETUP_SECONDS = 1800.0
PACKAGE_SECONDS = 900.0
ITEM_SECONDS = 60.0
READ = '[ ! -e "$1" ] || cat -- "$1"'
RUNNER = "/opt/actions-runner/.runner"
RUNNER_SAYS = (
    "the self-hosted runner is not registered: as user runner in /opt/actions-runner run `./config.sh --url "
    "https://github.com/OWNER/REPOSITORY --token TOKEN --labels codeb,app-server`, then `./svc.sh install runner`"
)
START_SAYS = (
    "when `codeb init` has run: `systemctl daemon-reload && systemctl enable --now codeb codeb-housekeeping.timer`"
)


class ServerSetupRequest(Request):
    """Which server to set up. Unless `dryRun` is false nothing is changed."""

    server_key: ServerKey = Field(description="Its name in the inventory")
    dry_run: bool = Field(True, description="Only look, and say what would be done")
    login_user: UserName | None = Field(
        None, description="Log in as this user: root, or one that has sudo without a password; default: the inventory's"
    )


class SetupRow(Result):
    """One thing that the role needs. `status`: right, change (to be made) or changed."""

    name: str
    status: str
    says: str


class ServerSetupResult(Result):
    """What is right, and what was or would be changed. `firewall`: rules for nftables, which are not applied."""

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


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.PLATFORM, long=True)
async def server_setup(ctx: Context, request: ServerSetupRequest) -> ServerSetupResult:
    """Set a server up for its role; a dry run, which is the default, only looks and says what would be done.

    Packages, the user codeb and its key, folders, and the files of engine, proxy, Centrifugo, systemd and log rotation. Only
    what is not right is changed; a file that is replaced is kept beside as .before-codeb, and those of Caddy and Centrifugo
    are never replaced. A server that goes away in between leaves the step before or after, and the same call goes on. No
    service is started or restarted, but for what a new package starts by itself, and no firewall rule is applied.
    """
    require_unlimited(ctx.caller)
    server = await load_server(ctx.store, request.server_key)
    host = _host(ctx.services, request.server_key, server, request.login_user)
    before = await _looked(ctx.services, host, server)
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
        firewall=firewall(server.role, server.port, await _peers(ctx, server)),
        notes=await _notes(host, server),
        summary=f"{request.server_key}: {said}",
        next_step="Repeat with dryRun: false to do it." if differing and not done else None,
    )


async def _run(ctx: Context, request: ServerSetupRequest) -> str:
    run = _SetupRun(project_name="server", server_key=request.server_key, login_user=request.login_user)
    header = header_of(ctx, "server_setup", run, team=ctx.caller.team, seconds=SETUP_SECONDS)
    # No project can be called so: a server's lease is its own.
    header = replace(header, project=f"server.{request.server_key}", environment=None)
    view = await run_to_answer(ctx, header, wait=True)
    if warnings := fact(view, "warnings"):
        raise DriverRefused(str(warnings[0]), hint="Repeat the call.")
    return view.header.run_id


async def _peers(ctx: Context, server: Server) -> list[str]:
    """The addresses of the other servers; those that have only a name cannot stand in a rule."""
    others = (one.host for one in (await load_servers(ctx.store)).values() if one.host != server.host)
    return sorted({host for host in others if host.replace(".", "").isdigit() or ":" in host})


async def _notes(host: Host, server: Server) -> list[str]:
    if server.role is not ServerRole.APPLICATION:
        return []
    there = (await host.run(["test", "-e", RUNNER], timeout_seconds=ITEM_SECONDS)).ok
    return [START_SAYS, "the self-hosted runner is registered" if there else RUNNER_SAYS]


@planner("server_setup")
async def plan_setup(services: Services, header: RunHeader) -> Planned:
    """Looks at everything, and plans what is not right."""
    request = _SetupRun.model_validate(header.request)
    server = await load_server(services.store, request.server_key)
    host = _host(services, request.server_key, server, request.login_user)
    steps = []
    for item, status in await _looked(services, host, server):
        if status == "right":
            continue
        detail = {"server": request.server_key, "user": request.login_user, "item": asdict(item)}
        seconds = PACKAGE_SECONDS if item.kind == "packages" else ITEM_SECONDS
        steps.append(Step(Action("setup_item", item.name, detail, deadline_seconds=seconds, says=item.says)))
    return Planned(Machine(tuple(steps)))


@step("setup_item")
async def setup_item(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have the thing, by its kind's fixed script."""
    detail = action.detail
    server = await load_server(run.store, detail["server"])
    host = _host(run.services, detail["server"], server, detail["user"])
    item = Item(**{**detail["item"], "words": tuple(detail["item"]["words"])})
    return {"status": await _script(host, await _sudo(host), item, "apply", action.deadline_seconds)}


def _host(services: Services, key: str, server: Server, user: str | None) -> Host:
    if user is None or user == server.user:
        return services.drivers.hosts.at(key, server)
    # A connection of its own: that of the inventory's user stays as it is.
    return services.drivers.hosts.at(f"{key} ({user})", server.model_copy(update={"user": user}))


def _items(services: Services, server: Server) -> tuple[Item, ...]:
    path: Path = services.settings.ssh_key
    if path.exists():
        return items_of(server.role, have_key(path).line)
    if services.settings.ssh.agent is None and server.connection != "local":
        raise Conflict("this installation has no SSH key", hint="Make it with `codeb ssh-key`.")
    return items_of(server.role, None)


async def _looked(services: Services, host: Host, server: Server) -> list[tuple[Item, str]]:
    """Every item with `right` or `change`. Raises DriverRefused for what is in the way."""
    sudo = await _sudo(host)
    return [(item, await _script(host, sudo, item, "check", ITEM_SECONDS)) for item in _items(services, server)]


async def _sudo(host: Host) -> Sequence[str]:
    """The words before a command that root has to run."""
    who = (await host.run(["id", "-u"], timeout_seconds=ITEM_SECONDS)).stdout.strip()
    if who == b"0":
        return ()
    if (await host.run(["sudo", "-n", "true"], timeout_seconds=ITEM_SECONDS)).ok:
        return ("sudo", "-n")
    raise DriverRefused(
        f"{host.key}: the user that logs in is not root and has no sudo without a password",
        hint="Give loginUser: root, or a user with sudo -n; only set-up needs it.",
        server=host.key,
    )


async def _script(host: Host, sudo: Sequence[str], item: Item, mode: str, seconds: float) -> str:
    words, content, kind = item.words, item.content, item.kind
    if kind == "merge":
        content, kind = await _merged(host, sudo, item), "file"
    if kind in ("file", "line"):
        words = (*words, digest(content))
    done = await host.run(
        [*sudo, "/bin/sh", "-c", SCRIPTS[kind], "codeb-setup", mode, *words],
        stdin=content.encode(),
        timeout_seconds=seconds,
    )
    said = done.stdout.decode("utf-8", "replace").strip()
    if not done.ok or said not in ("right", "change", "changed"):
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
