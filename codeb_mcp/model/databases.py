"""Data stores of environments: names, addresses, rights and password verifiers. Randomness is handed in."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment, Port

LONGEST_NAME = 63
"""Bytes of a name in PostgreSQL."""
SCRAM_ITERATIONS = 4096
_RESERVED = frozenset({"postgres", "template0", "template1", "public", "none", "default", "codeb"})


class DatabaseKind(StrEnum):
    """What keeps the data."""

    POSTGRES = "postgres"
    REDIS = "redis"


class Placement(StrEnum):
    """The server's shared instance, or one of the environment's own."""

    SHARED = "shared"
    OWN = "own"


STANDARD_PORTS: Mapping[DatabaseKind, int] = {DatabaseKind.POSTGRES: 5432, DatabaseKind.REDIS: 6379}
"""Ports of the shared instances, which are never given to an own one."""
PORT_RANGES: Mapping[DatabaseKind, tuple[int, int]] = {
    DatabaseKind.POSTGRES: (5432, 5499),
    DatabaseKind.REDIS: (6379, 6499),
}


class Database(BaseModel):
    """One data store of an environment, as it stands in `ssot.json` under `projects.{name}.databases.{environment}.{kind}`.

    `name` is database and role (PostgreSQL) or user (Redis). `state`: reserved (being made), ready, leaving (being taken
    away). `port` and `volume` belong to an own instance.
    """

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    name: str = Field(max_length=LONGEST_NAME)
    server: str
    placement: Placement = Placement.SHARED
    state: Literal["reserved", "ready", "leaving"] = "ready"
    port: Port | None = None
    volume: str | None = None
    created_at: datetime | None = None
    created_by: str | None = None

    def dump(self) -> dict[str, Any]:
        """The JSON form, without values that nobody said."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def database_name(project: str, environment: Environment, taken: Collection[str]) -> str:
    """What the database of an environment is called: production's like the project, others `{project}_{environment}`, both
    with underscores. A name that is taken, reserved or too long gets a hash of the environment's own name."""
    plain = project.replace("-", "_")
    name = plain if environment is Environment.PRODUCTION else f"{plain}_{environment}"
    if len(name) <= LONGEST_NAME and name not in taken and name not in _RESERVED and not name.startswith("pg_"):
        return name
    digest = hashlib.sha256(f"{project}/{environment}".encode()).hexdigest()[:8]
    return f"{'p_' if name.startswith('pg_') else ''}{name}"[: LONGEST_NAME - 9] + f"_{digest}"


def aside_name(name: str, stamp: str) -> str:
    """`{name}_deleted_{stamp}`, within the longest name and still different for different names."""
    suffix = f"_deleted_{stamp}"
    room = LONGEST_NAME - len(suffix)
    if len(name) > room:
        name = f"{name[: room - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name + suffix


def allocate_port(kind: DatabaseKind, taken: Collection[int], wanted: int | None) -> int:
    """The wanted port, or the lowest free one of the kind's range; raises Conflict when it is not to be had."""
    first, last = PORT_RANGES[kind]
    free = [port for port in range(first, last + 1) if port not in taken and port not in STANDARD_PORTS.values()]
    if wanted is None and free:
        return free[0]
    if wanted is not None and wanted in free:
        return wanted
    said = f"port {wanted} is not free" if wanted is not None else "no port is free"
    raise Conflict(
        f"{said} for {kind} ({first}-{last}, {STANDARD_PORTS[kind]} is the shared instance's)",
        hint="Leave port out to get the next free one." if wanted is not None else "Delete own instances not needed.",
    )


def scram_verifier(password: str, salt: bytes, iterations: int = SCRAM_ITERATIONS) -> str:
    """What PostgreSQL stores of a password (RFC 5803 in its own spelling): a login can be checked against it, the password
    cannot be read from it. The password must be ASCII, which SASLprep leaves as it is; raises ValueError otherwise."""
    if not password.isascii() or not password.isprintable():
        raise ValueError("a generated password is printable ASCII")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{words[0]}${words[1]}:{words[2]}"


_TELL_OF_OTHERS = ("scan", "randomkey", "dbsize", "pubsub", "function", "fcall", "fcall_ro", "client|tracking",
                   "client|caching", "script|flush", "script|kill")  # fmt: skip
"""Commands that tell of others' keys without naming one, or touch what all users share."""
_OF_ONES_OWN = ("keys", "flushdb", "flushall", "sort")
"""Dangerous only where others are."""


def redis_rules(prefix: str, password_hash: str) -> list[str]:
    """The words of `ACL SETUSER` that make a user who has the keys and channels under the prefix, and nothing else.

    Without a prefix the instance is the user's alone: then all but its administration is allowed. INFO stays in any case, since
    clients ask it when they connect.
    """
    keys = [f"~{prefix}*", f"&{prefix}*"]
    more = [f"-{word}" for word in _TELL_OF_OTHERS] if prefix else [f"+{word}" for word in _OF_ONES_OWN]
    return ["reset", "on", f"#{password_hash}", *keys, "+@all", "-@dangerous", "-@admin", *more, "+info"]


def redis_prefix(project: str, environment: Environment | str) -> str:
    """What every key and channel of the environment begins with on a shared instance."""
    return f"{project}:{environment}:"


class Access(BaseModel):
    """How an app gets at its data store."""

    model_config = ConfigDict(frozen=True)

    kind: DatabaseKind
    host: str
    port: int
    name: str
    prefix: str = ""

    def variables(self, password: str) -> dict[str, str]:
        """The app's variables; in the URL whatever is not unreserved is percent-encoded."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{quote(self.name, safe='')}:{quote(password, safe='')}@{host}:{self.port}"
        if self.kind is DatabaseKind.REDIS:
            found = {"REDIS_URL": f"redis://{user}/0"}
            return {**found, "REDIS_PREFIX": self.prefix} if self.prefix else found
        return {
            "DATABASE_URL": f"postgresql://{user}/{quote(self.name, safe='')}",
            "POSTGRES_HOST": self.host,
            "POSTGRES_PORT": str(self.port),
            "POSTGRES_DB": self.name,
            "POSTGRES_USER": self.name,
            "POSTGRES_PASSWORD": password,
        }

    def is_ours(self, values: Mapping[str, str]) -> bool:
        """Whether these variables lead to this very store, whatever their password."""
        url = values.get(self.main, "")
        password = url.partition("://")[2].partition("@")[0].partition(":")[2]
        return bool(password) and url.replace(f":{password}@", ":@", 1) == self.variables("")[self.main]

    @property
    def main(self) -> str:
        """The name of the variable with the URL."""
        return "REDIS_URL" if self.kind is DatabaseKind.REDIS else "DATABASE_URL"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its variables."""
        return tuple(self.variables(""))
