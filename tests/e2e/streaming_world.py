"""An installation whose streaming server is a lab host with a real Centrifugo behind a real sshd, and real clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from centrifuge import (
    CentrifugeError,
    Client,
    ClientEventHandler,
    ConnectedContext,
    DisconnectedContext,
    PublicationContext,
    SubscribedContext,
    SubscriptionErrorContext,
    SubscriptionEventHandler,
    UnsubscribedContext,
)

from codeb_mcp.drivers.hosts import Host, Hosts
from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.model.centrifugo import signed
from codeb_mcp.model.server import Server
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.registry.env_history import values_of
from codeb_mcp.registry.store import update
from codeb_mcp.settings import StreamingSettings
from tests.lab.centrifugo import LabCentrifugo
from tests.lab.hosts import LabHosts
from tests.unit.operations.world import World, initialised

HOST = "streaming"
CLIENT_SECONDS = 20.0
LIVE = {"environment": "production"}


@contextlib.contextmanager
def centrifugo_on(lab: LabHosts, host: str = HOST, *, alone: bool = False) -> Iterator[LabCentrifugo]:
    """A Centrifugo of its own."""
    made = LabCentrifugo(lab, host, random.randrange(20_000, 30_000))
    with lab.alone(host) if alone else lab.using(host):
        try:
            made.start()
            yield made
        finally:
            lab.heal(host)
            made.remove()


@dataclasses.dataclass
class StreamingWorld:
    """One installation, and what can be seen of it."""

    world: World
    server: LabCentrifugo
    root: Path

    async def setup(self, project: str, **more: Any) -> dict[str, Any]:
        """A namespace for production."""
        return await self.world.call("streaming_setup", **{"projectName": project} | LIVE | more)

    async def remove(self, project: str, **more: Any) -> dict[str, Any]:
        """Take it away."""
        given = {"projectName": project, "confirm": project} | LIVE
        return await self.world.call("streaming_remove", **given | more)

    async def entry(self, project: str) -> dict[str, Any] | None:
        """What the registry says of production."""
        found = (await load_ssot(self.world.services.store))["projects"][project]
        entry: dict[str, Any] | None = found.get("streaming", {}).get("production")
        return entry

    def namespaces(self) -> list[str]:
        """Those of the configuration, in its order."""
        return [one["name"] for one in self.server.read_config()["channel"]["namespaces"]]

    def variables(self, project: str, environment: str = "production") -> dict[str, str]:
        """What a container of the environment would get."""
        path = self.root / f"projects/{project}/.env.{environment}"
        return dict(values_of(path.read_bytes())) if path.exists() else {}

    def files_with(self, secret: str) -> list[str]:
        """Files of the installation that hold the text, except those that are there to hold variables."""
        found = [path for path in self.root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        return [str(path) for path in found if "env-backup" not in path.parts and "projects" not in path.parts]


@contextlib.asynccontextmanager
async def installation(
    server: LabCentrifugo, root: Path, wrapped: Callable[[Hosts], Hosts] = lambda hosts: hosts, **streaming: Any
) -> AsyncIterator[StreamingWorld]:
    """A fresh registry whose server `streaming` is the lab's; `streaming` are settings, `wrapped` goes around the way there."""
    lab, host = server.lab, server.host
    world = await initialised(root)
    env = world.settings.env.model_copy(update={"immutable_master": False})
    settings = StreamingSettings.model_validate({**server.settings, **streaming})
    world.settings = world.settings.model_copy(update={"streaming": settings, "env": env})
    ssh = SshHosts(SshSettings(key_file=lab.key_file, connect_seconds=2.0, keepalive_seconds=0.5))
    hosts, start = wrapped(ssh), world.start

    def started(*args: Any, **more: Any) -> Services:
        services = start(*args, **more)
        drivers = dataclasses.replace(services.drivers, hosts=hosts)
        services = dataclasses.replace(services, settings=world.settings, drivers=drivers)
        services.runs.bind(services)
        return services

    world.start = started  # type: ignore[method-assign]
    world.services = started()
    entry = {
        "host": lab.address(host), "role": "streaming", "user": "codeb", "hostKey": lab.host_key(host),
        "domain": "ws.codeb.test",
    }  # fmt: skip
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": {HOST: entry}})
    try:
        yield StreamingWorld(world, server, root)
    finally:
        await ssh.close()
        await world.close()


class CutAt:
    """Implements `Hosts`: at the call of this number to a server its line is cut, before or after the call's effect; or only
    Centrifugo there is killed before it."""

    def __init__(self, server: LabCentrifugo, real: Hosts) -> None:
        self.server, self.real = server, real
        self.at_call: int | None = None
        self.after = False
        self.killing = False
        self.calls = 0

    def at(self, key: str, server: Server) -> Host:
        """See `Hosts.at`."""
        return _CutHost(self, self.real.at(key, server))  # type: ignore[return-value]

    async def host_keys(self, address: str, port: int) -> list[str]:
        """See `Hosts.host_keys`."""
        return await self.real.host_keys(address, port)

    async def close(self) -> None:
        """See `Hosts.close`."""
        await self.real.close()

    async def around(self, call: Callable[[], Any], probe: Callable[[], Any]) -> Any:
        """One call."""
        self.calls += 1
        if self.calls != self.at_call:
            return await call()
        if self.killing:
            self.server.stop()
            return await call()
        if self.after:
            await call()
        self.server.lab.cut(self.server.host)
        return await (probe() if self.after else call())


class _CutHost:
    def __init__(self, owner: CutAt, host: Host) -> None:
        self.owner, self.host = owner, host

    @property
    def key(self) -> str:
        return self.host.key

    async def run(self, argv: list[str], **more: Any) -> Any:
        return await self.owner.around(lambda: self.host.run(argv, **more), lambda: self.host.run(["true"]))

    async def read(self, path: str, **more: Any) -> Any:
        return await self.owner.around(lambda: self.host.read(path, **more), lambda: self.host.run(["true"]))

    async def socket(self, target: str) -> Any:
        return await self.owner.around(lambda: self.host.socket(target), lambda: self.host.run(["true"]))


def token(secret: str, **claims: Any) -> str:
    """A token as an app makes it."""
    return signed({"sub": "anna", "exp": int(time.time()) + 600, **claims}, secret)


class _Heard(ClientEventHandler):
    """What happens to a client, in the order in which it happens."""

    def __init__(self) -> None:
        self.outcome: asyncio.Queue[str] = asyncio.Queue()
        self.publications: asyncio.Queue[Any] = asyncio.Queue()

    async def on_connected(self, ctx: ConnectedContext) -> None:
        self.outcome.put_nowait("connected")

    async def on_disconnected(self, ctx: DisconnectedContext) -> None:
        self.outcome.put_nowait(f"disconnected {ctx.code}")


class _HeardThere(SubscriptionEventHandler):
    def __init__(self, heard: _Heard) -> None:
        self.heard = heard

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        self.heard.outcome.put_nowait("subscribed")

    async def on_unsubscribed(self, ctx: UnsubscribedContext) -> None:
        self.heard.outcome.put_nowait(f"unsubscribed {ctx.code}")

    async def on_error(self, ctx: SubscriptionErrorContext) -> None:
        self.heard.outcome.put_nowait("error")

    async def on_publication(self, ctx: PublicationContext) -> None:
        self.heard.publications.put_nowait(ctx.pub.data)


async def listened(
    address: str, connection: str, channel: str, subscription: str, publish: Callable[[], Any]
) -> Mapping[str, Any]:
    """What happens to a client (the one that Centrifugo's authors make for Python) with these tokens: how its connection and
    its subscription went, and what it got after `publish`."""
    heard = _Heard()
    client = Client(address, events=heard, token=connection)
    said: dict[str, Any] = {}
    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            await client.connect()
            said["connection"] = await heard.outcome.get()
            if said["connection"] != "connected":
                return said
            wanted = client.new_subscription(channel, events=_HeardThere(heard), token=subscription)
            await wanted.subscribe()
            said["subscription"] = await heard.outcome.get()
            if said["subscription"] == "subscribed":
                await publish()
                said["publication"] = await heard.publications.get()
            return said
    finally:
        with contextlib.suppress(CentrifugeError):
            await client.disconnect()
