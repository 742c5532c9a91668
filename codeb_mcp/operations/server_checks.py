"""Is a server ready for its role? Each check asks the real thing and says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pydantic import Field

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import CodebError, ReleaseUnhealthy
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.model.server import Server, ServerKey, ServerRole
from codeb_mcp.model.server_facts import (
    Finding,
    Health,
    Listener,
    judge_clock,
    judge_disks,
    judge_listeners,
    judge_registered_ports,
    judge_root_login,
    listeners,
)
from codeb_mcp.model.slot import SlotState
from codeb_mcp.operations.catalog import Effect, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.places import Place, placement_left, places
from codeb_mcp.operations.server_answers import ASK_SECONDS, MISSING, Answers
from codeb_mcp.operations.servers import load_server, load_servers
from codeb_mcp.operations.state import environments
from codeb_mcp.operations.streaming_checks import centrifugo_findings

UNSURE_SECONDS = 0.5
"""When the answer with the clock took twice that, it is asked again: the first one includes the login."""
AT_ONCE = 32
"""Servers that are asked at the same time."""

Check = Callable[["Probe"], Awaitable[Sequence[Finding]]]


class ServerCheckRequest(Request):
    """What to check."""

    server_key: ServerKey | None = Field(None, description="One server; all of the inventory if not given")


class CheckAnswer(Result):
    """One check of one server."""

    server_key: str
    check: str
    status: Health
    message: str
    hint: str | None = None


class ServerCheckResult(Result):
    """`status` is the worst of all checks; `unknown` counts as `warn`."""

    status: Health
    servers: int
    checks: list[CheckAnswer]
    summary: str

    @property
    def exit_code(self) -> int:
        """That of something unhealthy when a check failed."""
        return ReleaseUnhealthy.exit_code if self.status is Health.FAIL else 0


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PLATFORM, long=True)
async def server_check(ctx: Context, request: ServerCheckRequest) -> ServerCheckResult:
    """Check servers for their role, and say what to do about what is not well; changes nothing.

    Login, clock, disk, open ports and root login, and engine, proxy, PostgreSQL, Redis, Centrifugo or Prometheus as the role
    has them.
    """
    if request.server_key is not None:
        wanted = {request.server_key: await load_server(ctx.store, request.server_key)}
    else:
        wanted = await load_servers(ctx.store)
    return await checked(ctx.services, wanted)


async def checked(services: Services, servers: dict[str, Server]) -> ServerCheckResult:
    """All checks of these servers, many servers at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(key: str, server: Server) -> list[CheckAnswer]:
        async with gate:
            found = await Probe(services, services.drivers.hosts.at(key, server), server).run()
        return [
            CheckAnswer(server_key=key, check=it.check, status=it.status, message=it.message, hint=it.hint or None)
            for it in found
        ]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(key, server)) for key, server in servers.items()]
    answers = [answer for task in tasks for answer in task.result()]
    counts = {health: sum(answer.status is health for answer in answers) for health in Health}
    worst = next((one for one in (Health.FAIL, Health.WARN) if counts[one]), Health.OK)
    if worst is Health.OK and counts[Health.UNKNOWN]:
        worst = Health.WARN
    said = ", ".join(f"{count} {health}" for health, count in counts.items() if count) or "nothing to check"
    return ServerCheckResult(
        status=worst, servers=len(servers), checks=answers, summary=f"{len(servers)} servers: {said}"
    )


class Probe:
    """One server being asked."""

    def __init__(self, services: Services, host: Host, server: Server) -> None:
        self.services = services
        self.host = host
        self.server = server
        self.answers = Answers(host, server.role)
        self.listening: list[Listener] = []

    async def run(self) -> list[Finding]:
        """Its findings; when nobody answers, only that."""
        login = await self._asked("login", _login)
        if login[0].status is not Health.OK:
            return login
        ports = await self._asked("ports", _sockets)
        checks = (
            ("clock", _clock),
            ("disk", _disk),
            ("root_login", _root_login),
            ("system", _system),
            ("firewall", _firewall),
        )
        mine = (*checks, *ROLE_CHECKS[self.server.role])
        rest = await asyncio.gather(*(self._asked(name, check) for name, check in mine))
        return [*login, *ports, *(finding for found in rest for finding in found)]

    async def _asked(self, name: str, check: Check) -> list[Finding]:
        try:
            async with asyncio.timeout(ASK_SECONDS * 2):
                return list(await check(self))
        except CodebError as error:
            status = Health.FAIL if name == "login" else Health.UNKNOWN
            return [Finding(name, status, error.message, error.hint)]
        except TimeoutError:
            return [
                Finding(name, Health.FAIL, f"no answer within {ASK_SECONDS * 2:.0f} s", "Look at the server itself.")
            ]

    async def said(self, question: str) -> str | None:
        """The answer; None when there is none."""
        said = await self.answers.to(question)
        return said.text if said.ok else None


async def _login(probe: Probe) -> list[Finding]:
    await probe.answers.gather()
    who = (await probe.answers.to("user")).text.strip()
    return [Finding("login", Health.OK, f"logged in as {clean_text(who, limit=40)}")]


async def _sockets(probe: Probe) -> list[Finding]:
    said = await probe.answers.to("listeners")
    if said.status > 1:  # 1 is grep's for: there are none
        return [Finding("exposed_ports", Health.UNKNOWN, "/proc/net/tcp cannot be read", "Check the user's rights.")]
    probe.listening = list(listeners(said.text))
    meant = await _published_for_an_edge(probe)
    return judge_listeners([one for one in probe.listening if (one.address, one.port) not in meant])


async def _published_for_an_edge(probe: Probe) -> set[tuple[str, int]]:
    """Where slots are published on purpose, for the one proxy in front of several app servers."""
    if probe.server.role is not ServerRole.APPLICATION:
        return set()
    services, place = probe.services, await _place(probe)
    meant = set()
    for slots in await environments(services.store):
        placement = await placement_left(services, slots.key)
        if placement.edge and place.key in {one.key for one in placement.apps}:
            meant |= {(place.address, record.port) for record in (slots.blue, slots.green)}
    return meant


async def _clock(probe: Probe) -> list[Finding]:
    said = await probe.answers.to("clock")
    if said.answered - said.asked > 2 * UNSURE_SECONDS:
        said = await probe.answers.to("clock", anew=True)
    if not said.ok:
        return [Finding("clock", Health.UNKNOWN, "date did not answer")]
    skew = float(said.text.strip()) - (said.asked + said.answered) / 2
    return [judge_clock(skew, (said.answered - said.asked) / 2)]


async def _disk(probe: Probe) -> list[Finding]:
    return judge_disks(await probe.said("disk") or "")


async def _root_login(probe: Probe) -> list[Finding]:
    said = await probe.said("sshd")
    if said is None:
        return [Finding("root_login", Health.UNKNOWN, "/etc/ssh/sshd_config cannot be read")]
    return [judge_root_login(said)]


async def _system(probe: Probe) -> list[Finding]:
    said = await probe.said("system")
    name = next(
        (line.partition("=")[2].strip('"') for line in (said or "").splitlines() if line.startswith("PRETTY")), ""
    )
    kernel = (await probe.said("kernel") or "").strip()
    return [Finding("system", Health.OK, clean_text(f"{name or 'unknown system'}, Linux {kernel}", limit=120))]


async def _engine(probe: Probe) -> list[Finding]:
    if probe.server.engine == "none":
        return [Finding("engine", Health.OK, "none wanted")]
    engine = await (await _place(probe)).drivers.containers.engine()
    free = "" if engine.free_bytes is None else f", {engine.free_bytes >> 20} MiB free"
    return [Finding("engine", Health.OK, f"Docker Engine {engine.version}{free}")]


async def _place(probe: Probe) -> Place:
    """The server as an app server: its engine, proxy and flags as the settings say."""
    return (await places(probe.services, [probe.host.key]))[0]


async def _http(probe: Probe, name: str, target: str, path: str) -> Finding:
    status, head = await probe.services.drivers.inspect.http(await probe.host.socket(target), path, host=target)
    good = Health.OK if status == 200 else Health.FAIL
    said = f"{target}{path} answers {status}" + (f" {clean_text(head, limit=60)}" if status != 200 else "")
    return Finding(name, good, said, "" if good is Health.OK else f"Look at {name} on the server.")


async def _caddy(probe: Probe) -> list[Finding]:
    sites = await (await _place(probe)).drivers.proxy.sites()
    version = (await probe.said("caddy") or "").split(" ")[0].strip()
    named = f"Caddy {clean_text(version, limit=40)}, " if version else ""
    return [Finding("proxy", Health.OK, f"{named}{len(sites)} sites of ours")]


async def _centrifugo(probe: Probe) -> list[Finding]:
    return await centrifugo_findings(probe.services, probe.host, probe.host.key)


async def _prometheus(probe: Probe) -> list[Finding]:
    return [await _http(probe, "prometheus", "127.0.0.1:9090", "/-/ready")]


async def _rsync(probe: Probe) -> list[Finding]:
    said = await probe.said("rsync")
    if said is None:
        return [Finding("rsync", Health.FAIL, "rsync is not installed", "Install the package rsync.")]
    return [Finding("rsync", Health.OK, clean_text(said.splitlines()[0], limit=80))]


async def _postgres(probe: Probe) -> list[Finding]:
    done = await probe.answers.to("postgresql")
    if done.status == MISSING:
        return [
            Finding("postgresql", Health.FAIL, "pg_isready is not installed", "Install PostgreSQL with its client.")
        ]
    said = clean_text(done.text.strip(), limit=100)
    if not done.ok:
        return [Finding("postgresql", Health.FAIL, said or "no answer", "Start PostgreSQL, or look at its log.")]
    clusters = (await probe.said("clusters") or "").split()
    version = f", version {clusters[0]}" if clusters else ""
    return [Finding("postgresql", Health.OK, f"{said}{version}")]


async def _redis(probe: Probe) -> list[Finding]:
    done = await probe.answers.to("redis")
    if done.status == MISSING:
        return [Finding("redis", Health.FAIL, "redis-cli is not installed", "Install Redis with its tools.")]
    said = clean_text(done.text.strip(), limit=100)
    # Who asks for a password is there; whether ours is right is another question.
    if done.ok and said.startswith(("PONG", "NOAUTH")):
        version = (await probe.said("redis_version") or "").partition("v=")[2].partition(" ")[0]
        return [
            Finding("redis", Health.OK, f"answers{', version ' + clean_text(version, limit=20) if version else ''}")
        ]
    return [Finding("redis", Health.FAIL, said or "no answer", "Start Redis, or look at its log.")]


async def _slots(probe: Probe) -> list[Finding]:
    """The ports that the registry says are in use there."""
    services, place = probe.services, await _place(probe)
    expected: dict[int, str] = {}
    for slots in await environments(services.store):
        if place.key in {one.key for one in (await placement_left(services, slots.key)).apps}:
            full = [record for record in (slots.blue, slots.green) if record.state is not SlotState.EMPTY]
            expected |= {record.port: f"{slots.key} {record.name}" for record in full}
    return judge_registered_ports(probe.listening, expected)


async def _firewall(probe: Probe) -> list[Finding]:
    """Whether our rules are there; who else keeps a firewall is not known, and exposed_ports tells what it leaves open."""
    said = (await probe.said("firewall") or "").strip()
    words = {
        "active": "CodeB's rules are in place",
        "kept": "CodeB's rules are kept in /etc/codeb/firewall.nft; whether they are in place only root can see",
        "none": "no rules of CodeB: `codeb server setup --apply-firewall` makes them",
    }
    if said not in words:
        return [Finding("firewall", Health.UNKNOWN, "the server does not say")]
    return [Finding("firewall", Health.OK, words[said])]


ROLE_CHECKS: dict[ServerRole, tuple[tuple[str, Check], ...]] = {
    ServerRole.APPLICATION: (("engine", _engine), ("proxy", _caddy), ("registered_ports", _slots)),
    ServerRole.STREAMING: (("centrifugo", _centrifugo),),
    ServerRole.DATABASE: (("postgresql", _postgres), ("redis", _redis)),
    ServerRole.BACKUP: (("rsync", _rsync), ("prometheus", _prometheus)),
}
