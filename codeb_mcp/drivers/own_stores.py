"""Own PostgreSQL and Redis instances: a container with a named volume on the engine of a database server.

The container is known by its labels; one without ours is never touched. Its volume is never removed from here.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codeb_mcp.drivers.docker_api import EngineApi
from codeb_mcp.drivers.docker_credentials import Credentials
from codeb_mcp.drivers.docker_errors import status_of
from codeb_mcp.drivers.docker_images import DockerImages
from codeb_mcp.drivers.docker_spec import FENCE_LABEL, LOG_OPTIONS, RUN_LABEL, fence_of
from codeb_mcp.drivers.postgres import PostgresStore
from codeb_mcp.drivers.redis_acl import RedisStore
from codeb_mcp.drivers.stores import Store
from codeb_mcp.model.databases import DatabaseKind, scram_verifier
from codeb_mcp.model.errors import DriverRefused

if TYPE_CHECKING:
    import aiodocker

ADMIN = "codeb_admin"
STORE_LABEL, INSTALLATION_LABEL = "codeb.store", "codeb.installation"
STEP_SECONDS = 60.0
STOP_SECONDS = 60
PIDS = 512
_TMPFS = "rw,noexec,nosuid,nodev,size=64m,mode=1777"
_POSTGRES_HOME = "/var/lib/postgresql"
_POSTGRES_DATA, _REDIS_DATA = f"{_POSTGRES_HOME}/data", "/data"
# The first start writes the administrator into the ACL file; later ones find it there with everybody else.
_REDIS_START = (
    "set -e; umask 077; if [ ! -s /data/users.acl ]; then "
    "printf 'user default off\\nuser codeb_admin on #%s ~* &* +@all\\n' \"$CODEB_ADMIN\" > /data/users.acl.new; "
    "mv /data/users.acl.new /data/users.acl; fi; unset CODEB_ADMIN; "
    "exec redis-server --port 6379 --dir /data --aclfile /data/users.acl --appendonly yes --protected-mode no"
)


@dataclass(frozen=True, slots=True)
class Instance:
    """An own instance as it is to be. `address` and `port` are where it is published, `volume` names its data and tells one
    instance from a later one, `owner` and `installation` say whose it is. Memory in bytes."""

    kind: DatabaseKind
    container: str
    image: str
    volume: str
    address: str
    port: int
    memory_bytes: int
    cpus: float
    owner: str
    installation: str


class Stores:
    """The administrators of all kinds of stores; libraries are loaded at the first use."""

    def __init__(self, credentials: Credentials = lambda registry: None) -> None:
        self.own = OwnStores(credentials)
        self._kinds: Mapping[DatabaseKind, Store] = {
            DatabaseKind.POSTGRES: PostgresStore(),
            DatabaseKind.REDIS: RedisStore(),
        }

    def of(self, kind: DatabaseKind) -> Store:
        """The administrator of that kind."""
        return self._kinds[kind]


class OwnStores:
    """Instances on the engine behind a unix socket of this machine."""

    def __init__(self, credentials: Credentials = lambda registry: None) -> None:
        self._credentials = credentials

    async def ensure(self, socket: str, instance: Instance, password: str, *, fence: int) -> bool:
        """Have the instance running; True when it was made now. `password` is its administrator's: only a verifier of it gets
        to the engine. Raises DriverRefused for a container of that name that is not this instance."""
        api = EngineApi(f"unix://{socket}")
        try:
            found = await _inspect(api, instance.container)
            if found is None:
                await self._pull(socket, instance.image)
                await _create(api, instance, password, fence, await _declared(api, instance.image))
            else:
                _require_ours(found, instance, fence)
            await _start(api, instance.container)
            return found is None
        finally:
            await api.close()

    async def running(self, socket: str, instance: Instance) -> bool:
        """Whether the instance is there and runs."""
        api = EngineApi(f"unix://{socket}")
        try:
            found = await _inspect(api, instance.container)
            return found is not None and bool(found["State"].get("Running"))
        finally:
            await api.close()

    async def remove(self, socket: str, instance: Instance, *, fence: int) -> bool:
        """Stop and remove the container; False when there was none. The volume with the data stays."""
        api = EngineApi(f"unix://{socket}")
        try:
            found = await _inspect(api, instance.container)
            if found is None:
                return False
            _require_ours(found, instance, fence)

            async def away(docker: aiodocker.Docker) -> None:
                container = docker.containers.container(str(found["Id"]))
                await container.stop(t=STOP_SECONDS)
                await container.delete(force=True)

            await api.call(f"removing {instance.container}", away, seconds=STOP_SECONDS + STEP_SECONDS)
            return True
        finally:
            await api.close()

    async def _pull(self, socket: str, image: str) -> None:
        images = DockerImages(f"unix://{socket}", credentials=self._credentials)
        try:
            await images.pull(image, policy="missing")
        finally:
            await images.close()


def create_body(instance: Instance, password: str, fence: int, declared: Collection[str] = ()) -> dict[str, Any]:
    """The request that creates the container: no kernel rights, no privileges to gain, its image's own user, read-only but for
    its volume, published on one address. `declared` are the image's own volumes, which tell where its data goes."""
    postgres = instance.kind is DatabaseKind.POSTGRES
    inner = "5432/tcp" if postgres else "6379/tcp"
    data = _data_folder(declared) if postgres else _REDIS_DATA
    start = {} if postgres else {"Entrypoint": ["/bin/sh", "-c", _REDIS_START]}
    return {
        "Image": instance.image,
        "User": "postgres" if postgres else "redis",
        **start,
        "Env": [f"{name}={value}" for name, value in _environment(instance.kind, password, data).items()],
        "Labels": {STORE_LABEL: instance.owner, INSTALLATION_LABEL: instance.installation,
                   RUN_LABEL: instance.volume, FENCE_LABEL: str(fence)},
        "ExposedPorts": {inner: {}},
        "StopTimeout": STOP_SECONDS,
        "StopSignal": "SIGINT" if postgres else "SIGTERM",
        "HostConfig": {
            "PortBindings": {inner: [{"HostIp": instance.address, "HostPort": str(instance.port)}]},
            "Mounts": [{"Type": "volume", "Source": instance.volume, "Target": data}],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": PIDS,
            "Memory": instance.memory_bytes,
            "MemorySwap": instance.memory_bytes,
            "NanoCpus": round(instance.cpus * 1_000_000_000),
            "ReadonlyRootfs": True,
            "Tmpfs": dict.fromkeys(("/tmp", "/var/run/postgresql") if postgres else ("/tmp",), _TMPFS),
            "Init": True,
            "RestartPolicy": {"Name": "always"},
            "LogConfig": {"Type": "json-file", "Config": LOG_OPTIONS},
        },
    }  # fmt: skip


def _data_folder(declared: Collection[str]) -> str:
    """Where the volume is mounted. Images of PostgreSQL 18 and later keep each major version in a folder of its own below
    their user's home, and there only does that user own what an empty volume becomes."""
    return _POSTGRES_HOME if _POSTGRES_HOME in {path.rstrip("/") for path in declared} else _POSTGRES_DATA


def _environment(kind: DatabaseKind, password: str, data: str) -> Mapping[str, str]:
    """What the image is told. initdb hands the text on to the server, which takes a verifier as it is. An image that has its
    own place for each major version is left to it: only there does it refuse to begin anew beside an older cluster."""
    if kind is DatabaseKind.REDIS:
        return {"CODEB_ADMIN": hashlib.sha256(password.encode()).hexdigest()}
    return {
        "POSTGRES_USER": ADMIN,
        "POSTGRES_DB": "postgres",
        "POSTGRES_PASSWORD": scram_verifier(password, secrets.token_bytes(16)),
        "POSTGRES_INITDB_ARGS": "--auth-host=scram-sha-256 --data-checksums",
        **({"PGDATA": data} if data == _POSTGRES_DATA else {}),
    }


async def _inspect(api: EngineApi, name: str) -> dict[str, Any] | None:
    async def show(docker: aiodocker.Docker) -> dict[str, Any]:
        return dict(await docker.containers.container(name).show())

    try:
        found = await api.call(f"inspecting {name}", show)
    except DriverRefused as error:
        if status_of(error) == 404:
            return None
        raise
    # The engine also takes the beginning of an id for a name.
    return found if str(found["Name"]).removeprefix("/") == name else None


def _require_ours(found: Mapping[str, Any], instance: Instance, fence: int) -> None:
    labels = found["Config"].get("Labels") or {}
    wanted = {STORE_LABEL: instance.owner, INSTALLATION_LABEL: instance.installation, RUN_LABEL: instance.volume}
    if any(labels.get(name) != value for name, value in wanted.items()):
        raise DriverRefused(
            f"container {instance.container} is not this instance and is left alone",
            hint="Rename or remove it yourself, then try again.",
            reason="foreign_container",
        )
    if fence_of(labels) > fence:
        raise DriverRefused(
            f"container {instance.container} belongs to a newer run", hint="Look with operation_list.", reason="fenced"
        )


async def _declared(api: EngineApi, image: str) -> tuple[str, ...]:
    async def show(docker: aiodocker.Docker) -> tuple[str, ...]:
        return tuple((await docker.images.inspect(image)).get("Config", {}).get("Volumes") or ())

    return await api.call(f"inspecting {image}", show)


async def _create(api: EngineApi, instance: Instance, password: str, fence: int, declared: Collection[str]) -> None:
    labels = {STORE_LABEL: instance.owner, INSTALLATION_LABEL: instance.installation}

    async def make(docker: aiodocker.Docker) -> None:
        await docker.volumes.create(  # type: ignore[no-untyped-call]
            {"Name": instance.volume, "Labels": labels}
        )
        await docker.containers.create(create_body(instance, password, fence, declared), name=instance.container)

    await api.call(f"creating {instance.container}", make, seconds=STEP_SECONDS)


async def _start(api: EngineApi, name: str) -> None:
    async def start(docker: aiodocker.Docker) -> None:
        await docker.containers.container(name).start()

    await api.call(f"starting {name}", start, seconds=STEP_SECONDS)
