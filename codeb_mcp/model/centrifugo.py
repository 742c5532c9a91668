"""Centrifugo: its configuration as a value, namespaces of environments, and the variables by which apps find them.

The open-source server knows one secret for tokens and one API key for everything it serves. A namespace keeps names apart, it
does not keep those apart who hold the secret; see docs/decisions/0011.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from codeb_mcp.model.names import Environment

FOLDER = "/etc/centrifugo"
CONFIG_PATH, SECRETS_PATH = f"{FOLDER}/config.json", f"{FOLDER}/secrets.env"
PID_PATH = "/run/centrifugo/centrifugo.pid"
USER = "codeb"
"""Who the service runs as: the user that CodeB logs in with, which so may write its configuration and tell it to read it."""
PORT = 8000
OLDEST, NEWEST = 5, 6
"""Major versions whose configuration we know."""
SECRET_NAMES = ("CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY", "CENTRIFUGO_HTTP_API_KEY")
"""What stands in the secrets file, and is therefore in no configuration: the secret of tokens, the key of the API."""
UNIT = f"""[Unit]
Description=Centrifugo
After=network-online.target
Wants=network-online.target

[Service]
User={USER}
EnvironmentFile={SECRETS_PATH}
RuntimeDirectory=centrifugo
ExecStartPre=/usr/bin/env centrifugo checkconfig -c {CONFIG_PATH}
ExecStart=/usr/bin/env centrifugo -c {CONFIG_PATH}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=2
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""

_SECRETS_OF: Mapping[int, tuple[str, str]] = {
    5: ("CENTRIFUGO_TOKEN_HMAC_SECRET_KEY", "CENTRIFUGO_API_KEY"),
    6: SECRET_NAMES,
}
_VERSION = re.compile(r"\bv?(\d{1,3})\.(\d{1,4})\.(\d{1,4})")
_SHORTEST_NAMESPACE = 2


class Namespace(BaseModel):
    """An environment's place on a streaming server, as it stands in `ssot.json` under `projects.{name}.streaming.{environment}`.

    `state`: reserved (being made), ready, leaving (being taken away). `found`: it was there already, and is left there in the
    end. `origins`: what was added to the allowed origins for it.
    """

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    name: str = Field(max_length=64)
    server: str
    state: Literal["reserved", "ready", "leaving"] = "ready"
    found: bool = False
    origins: tuple[str, ...] = ()
    created_at: datetime | None = None
    created_by: str | None = None

    def dump(self) -> dict[str, Any]:
        """The JSON form, without values that nobody said."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def namespace_name(project: str, environment: Environment, taken: Collection[str]) -> str:
    """Production's is called like the project, others `{project}-{environment}`. A name that is taken or too short for
    Centrifugo gets a hash of the environment's own name."""
    name = project if environment is Environment.PRODUCTION else f"{project}-{environment}"
    if name not in taken and len(name) >= _SHORTEST_NAMESPACE:
        return name
    return f"{name}-{hashlib.sha256(f'{project}/{environment}'.encode()).hexdigest()[:8]}"


def initial_config(*, allowed_origins: Sequence[str] = (), port: int = PORT) -> dict[str, Any]:
    """The configuration of a fresh server (version 6): health endpoint on, no anonymous clients, no admin pages, no namespaces
    yet, and no secret, which the service gets from its environment. `allowed_origins`: pages that may connect, with `*` for any
    part of a name; other pages' browsers are refused."""
    return {
        "http_server": {"port": port},
        "pid_file": PID_PATH,
        "health": {"enabled": True},
        "admin": {"enabled": False},
        "usage_stats": {"disabled": True},
        "client": {"allowed_origins": list(allowed_origins)},
        "channel": {"namespaces": []},
    }


def initial_text(*, allowed_origins: Sequence[str] = (), port: int = PORT) -> str:
    """The same as a file's content."""
    return rendered(initial_config(allowed_origins=allowed_origins, port=port))


def major_of(version: str) -> int | None:
    """The major version in what `centrifugo version` or the API says; None when there is none."""
    found = _VERSION.search(version)
    return int(found[1]) if found else None


# ── the configuration ───────────────────────────────────────────────────────────────────────────────────────────


def parse_config(text: str) -> dict[str, Any]:
    """The configuration; raises ValueError, without any of its content, when it is no JSON object or names a key twice, which
    Centrifugo would read in its own way."""
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON (line {error.lineno})") from None
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Centrifugo does not tell upper from lower case.
    if len({name.lower() for name, _ in pairs}) < len(pairs):
        raise ValueError("names a key twice")
    return dict(pairs)


def rendered(config: Mapping[str, Any]) -> str:
    """The file's content."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _key(config: Mapping[str, Any], name: str) -> str:
    """How the configuration spells that key."""
    return next((one for one in config if one.lower() == name), name)


def _at(config: Mapping[str, Any], *path: str) -> Any:
    value: Any = config
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(_key(value, name))
    return value


def _with(config: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The configuration with that value at the path; all else as it was. Raises ValueError for a section that is none."""
    key = _key(config, path[0])
    if len(path) == 1:
        return {**config, key: value}
    inner = config.get(key)
    if inner is not None and not isinstance(inner, Mapping):
        raise ValueError(f"has {path[0]} as something else than an object")
    return {**config, key: _with(inner or {}, path[1:], value)}


def _namespaces_path(major: int) -> tuple[str, ...]:
    return ("namespaces",) if major <= OLDEST else ("channel", "namespaces")


def _origins_path(major: int) -> tuple[str, ...]:
    return ("allowed_origins",) if major <= OLDEST else ("client", "allowed_origins")


def _listed(config: Mapping[str, Any], path: tuple[str, ...]) -> list[Any]:
    found = _at(config, *path)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ValueError(f"has {'.'.join(path)} as something else than a list")
    return found


def namespaces_in(config: Mapping[str, Any], major: int) -> list[str]:
    """The names of its namespaces; raises ValueError when they are no list of objects with names."""
    names = [_at(one, "name") if isinstance(one, Mapping) else None for one in _listed(config, _namespaces_path(major))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("has a namespace without a name")
    return [str(name) for name in names]


def with_namespace(config: Mapping[str, Any], major: int, name: str, origins: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration with that namespace and these allowed origins. One that is there keeps its options; a new one has
    Centrifugo's defaults: who subscribes needs a token for the channel, and only the API publishes. Raises ValueError."""
    path, found = _namespaces_path(major), dict(config)
    if name not in namespaces_in(config, major):
        found = _with(found, path, [*_listed(config, path), {"name": name}])
    missing = missing_origins(config, major, origins)
    if missing:
        found = _with(found, _origins_path(major), [*_listed(config, _origins_path(major)), *missing])
    return found


def without_namespace(
    config: Mapping[str, Any], major: int, name: str, origins: Collection[str] = ()
) -> dict[str, Any]:
    """The configuration without that namespace and these allowed origins. Raises ValueError."""
    path, found = _namespaces_path(major), dict(config)
    if name in namespaces_in(config, major):
        found = _with(found, path, [one for one in _listed(config, path) if _at(one, "name") != name])
    allowed = _listed(config, _origins_path(major))
    left = [one for one in allowed if one not in origins]
    return found if left == allowed else _with(found, _origins_path(major), left)


def missing_origins(config: Mapping[str, Any], major: int, origins: Sequence[str]) -> list[str]:
    """Those that the configuration does not allow yet."""
    allowed = [str(one).lower() for one in _listed(config, _origins_path(major))]
    return [one for one in dict.fromkeys(origins) if not any(fnmatchcase(one, pattern) for pattern in allowed)]


@dataclass(frozen=True, slots=True)
class Secrets:
    """What opens a server: nothing of it is ever shown."""

    token: str
    api_key: str

    def __repr__(self) -> str:
        return "Secrets(***)"


def secrets_of(config: Mapping[str, Any], environment: str, major: int) -> Secrets:
    """The server's secrets: from its environment file (`NAME=value` lines), which wins, or from its configuration. Raises
    ValueError that names what is missing."""
    lines = [line.strip().partition("=") for line in environment.splitlines() if not line.lstrip().startswith("#")]
    values = {name.strip(): value.strip().strip("\"'") for name, _, value in lines}
    names = _SECRETS_OF[major]
    paths = (("token_hmac_secret_key",), ("api_key",)) if major <= OLDEST else (
        ("client", "token", "hmac_secret_key"), ("http_api", "key"))  # fmt: skip
    found = [values.get(name) or _at(config, *path) for name, path in zip(names, paths, strict=True)]
    missing = [name for name, value in zip(names, found, strict=True) if not isinstance(value, str) or not value]
    if missing:
        raise ValueError(f"{' and '.join(missing)} cannot be found")
    return Secrets(str(found[0]), str(found[1]))


def pid_file_of(config: Mapping[str, Any]) -> str:
    """Where the server writes its process id; empty when it does not."""
    found = _at(config, "pid_file")
    return found if isinstance(found, str) else ""


def dangers_in(config: Mapping[str, Any], major: int) -> list[str]:
    """Options that let in who should not be, in words."""
    flags = {"client_insecure": "clients need no token", "api_insecure": "the API needs no key",
             "admin_insecure": "the admin pages need no password"}  # fmt: skip
    if major > OLDEST:
        flags = {
            name.replace("_insecure", ".insecure").replace("api.", "http_api."): said for name, said in flags.items()
        }
    found = [f"{name}: {said}" for name, said in flags.items() if _at(config, *name.split(".")) is True]
    if "*" in _listed(config, _origins_path(major)):
        found.append(f"{'.'.join(_origins_path(major))} *: every page may connect with its visitors' cookies")
    return found


# ── the variables of an app ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StreamingAccess:
    """How an app gets at its namespace. `url` is for browsers, `api_url` for the app itself."""

    namespace: str
    url: str
    api_url: str

    def variables(self, secrets: Secrets) -> dict[str, str]:
        """The app's variables."""
        return {
            "CENTRIFUGO_URL": self.url,
            "CENTRIFUGO_NAMESPACE": self.namespace,
            "CENTRIFUGO_TOKEN_SECRET": secrets.token,
            "CENTRIFUGO_API_URL": self.api_url,
            "CENTRIFUGO_API_KEY": secrets.api_key,
        }

    def is_ours(self, values: Mapping[str, str]) -> bool:
        """Whether these variables are those of this very namespace, wherever its server is by now."""
        return values.get("CENTRIFUGO_NAMESPACE") == self.namespace

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its variables."""
        return tuple(self.variables(Secrets("", "")))


def signed(claims: Mapping[str, Any], secret: str) -> str:
    """A token (JWT, HS256) with these claims."""
    parts = [
        _base64(json.dumps(one, separators=(",", ":")).encode()) for one in ({"alg": "HS256", "typ": "JWT"}, claims)
    ]
    return ".".join([*parts, _base64(hmac.digest(secret.encode(), ".".join(parts).encode(), "sha256"))])


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
