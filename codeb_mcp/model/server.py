"""Servers of the inventory, as they stand under `servers` in `ssot.json`."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from codeb_mcp.model.names import LABEL_PATTERN, PATTERNS, Domain, Port

SERVER_PATTERN = r"^[a-z0-9][a-z0-9-]{0,31}$"
USER_PATTERN = r"^[a-z_][a-z0-9_-]{0,31}$"
HOST_KEY_PATTERN = r"^(ssh-ed25519|ecdsa-sha2-nistp(256|384|521)|ssh-rsa) [A-Za-z0-9+/]{40,1400}={0,2}$"
FINGERPRINT_PATTERN = r"^SHA256:[A-Za-z0-9+/]{43}$"
ENGINE_PATTERN = r"^(none|local|ssh|tcp://[a-z0-9.-]{1,253}:[0-9]{1,5})$"
PATTERNS.update(
    {
        SERVER_PATTERN: "must be 1 to 32 lower-case letters, digits and hyphens, beginning with a letter or digit",
        USER_PATTERN: "must be a user name of lower-case letters, digits, hyphens and underscores",
        HOST_KEY_PATTERN: "must be a public host key like 'ssh-ed25519 AAAA…'",
        FINGERPRINT_PATTERN: "must be a fingerprint as ssh-keygen -l shows it, SHA256: and 43 characters",
        ENGINE_PATTERN: "must be none, local, ssh or tcp://host:port",
    }
)


class ServerRole(StrEnum):
    """What a server is for; the words of the infrastructure guide's registry."""

    APPLICATION = "application"
    STREAMING = "streaming"
    DATABASE = "database"
    BACKUP = "backup"


def _address(value: str) -> str:
    """An IP address or a host name of lower-case labels."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        pass
    labels = value.split(".")
    if labels[-1].isdigit() or not all(re.fullmatch(LABEL_PATTERN, label) for label in labels):
        raise ValueError("must be an IP address or a host name of lower-case labels")
    return value


ServerKey = Annotated[str, StringConstraints(pattern=SERVER_PATTERN, max_length=32)]
Address = Annotated[str, StringConstraints(min_length=1, max_length=253), AfterValidator(_address)]
UserName = Annotated[str, StringConstraints(pattern=USER_PATTERN, max_length=32)]
HostKey = Annotated[str, StringConstraints(pattern=HOST_KEY_PATTERN, max_length=1500)]
Fingerprint = Annotated[str, StringConstraints(pattern=FINGERPRINT_PATTERN)]
EngineAddress = Annotated[str, StringConstraints(pattern=ENGINE_PATTERN, max_length=270)]


class Server(BaseModel):
    """One server. The guide's entries, with `host` and `role` only, load as well; keys of others are kept.

    `connection` `local` is the machine that the control plane runs on, which needs no SSH. `host_key` is the one public
    key that the server may show; without it nothing is ever sent there.
    """

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    host: Address
    role: ServerRole
    connection: Literal["ssh", "local"] = "ssh"
    port: Port = 22
    user: UserName = "codeb"
    host_key: HostKey | None = None
    domain: Domain | None = None
    engine: EngineAddress | None = Field(None, description="Its container engine; without it, that of its role")
    added_at: datetime | None = None
    added_by: str | None = None

    @property
    def where(self) -> str:
        """The server for people: `user@host:port`, or `this machine`."""
        return "this machine" if self.connection == "local" else f"{self.user}@{self.host}:{self.port}"

    @property
    def usable(self) -> bool:
        """Whether it may be talked to: it is this machine, or its host key was accepted."""
        return self.connection == "local" or self.host_key is not None

    def dump(self) -> dict[str, Any]:
        """The JSON form, without values that are defaults nobody chose."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def fingerprint(host_key: str) -> str:
    """The SHA-256 fingerprint of a public key `type base64`, as `ssh-keygen -l` shows it: unpadded base64 of the hash of
    the key's bytes."""
    digest = hashlib.sha256(base64.b64decode(host_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def entries_of(ssot: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inventory of the document `ssot`, unparsed."""
    servers = ssot.get("servers", {})
    return servers if isinstance(servers, Mapping) else {}


def plain_addresses(host: str) -> tuple[str, ...]:
    """The host if it is an IP address; a name says nothing about where it leads."""
    try:
        return (str(ipaddress.ip_address(host)),)
    except ValueError:
        return ()
