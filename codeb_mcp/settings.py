"""The installation's settings: `$CODEB_ROOT/codeb.toml`, overridden by the environment; read once, checked, frozen."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.model.names import Domain, Environment, Port, TeamId
from codeb_mcp.model.server import ServerKey

DEFAULT_ROOT = "/opt/codeb"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Server(_Section):
    """Where `codeb serve` listens and whom it believes. Sizes in bytes."""

    host: str = "127.0.0.1"
    port: Port = 9101
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = Field(1_048_576, ge=1024, le=64 * 1_048_576)
    calls_per_minute: int = Field(600, ge=1)
    team_calls_per_minute: int = Field(3000, ge=1)
    failed_logins_per_minute: int = Field(20, ge=1)


class Docker(_Section):
    """The container engine. `allowed_registries`: hosts that images may come from; empty allows all."""

    host: str = "unix:///var/run/docker.sock"
    allowed_registries: tuple[str, ...] = ()
    credentials_file: Path | None = None
    min_free_mb: int = Field(1024, ge=0)


def _plain_address(value: str) -> str:
    return str(ip_address(value))


class AppServerSettings(_Section):
    """What is otherwise on an app server of the inventory than it is usual, as that server sees it. `flags`: where its proxy
    looks for the flag files, the same folder as here if not given; `addresses`: where visitors reach its proxy, its own
    address if not given; `public`: where requests for public names arrive, by
    default the server's address and the port of `proxy.public`; `tls`: folder with the client's `ca.pem`, `cert.pem` and
    `key.pem` for an engine at a tcp address."""

    addresses: tuple[Annotated[str, AfterValidator(_plain_address)], ...] = Field((), max_length=8)
    admin: str = Field("http://127.0.0.1:2019", pattern=r"^(unix:///|http://)[!-~]{1,200}$")
    engine_socket: str = Field("/var/run/docker.sock", pattern=r"^/[!-~]{1,100}$")
    flags: Path | None = None
    listen: tuple[str, ...] | None = None
    public: str | None = None
    tls: Path | None = None


class ProxySettings(_Section):
    """Caddy. `public`: where a request for a public host name arrives on this machine (`host:port`)."""

    admin: str = "http://127.0.0.1:2019"
    listen: tuple[str, ...] = (":80",)
    public: str = "127.0.0.1:80"
    tls: Literal["off", "internal", "acme"] = "off"
    root_certificate: Path | None = None
    http_port: Port = 80
    acme_directory: str | None = Field(None, pattern=r"^https://[!-~]{1,300}$")
    acme_root: Path | None = None
    acme_email: str | None = Field(None, pattern=r"^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,190}$")
    acme_names: tuple[Domain, ...] = ("letsencrypt.org",)


def _server_address(value: str) -> str:
    host, number = value, ""
    if value.startswith("["):
        host, _, number = value[1:].partition("]")
        number = number.removeprefix(":")
    elif value.count(":") == 1:
        host, _, number = value.partition(":")
    ip_address(host)
    if number and not (number.isascii() and number.isdigit() and 0 < int(number) < 65536):
        raise ValueError("must be an address, or an address and a port")
    return value


DnsProvider = Literal["rfc2136", "powerdns", "cloudflare", "manual"]


class DnsZone(_Section):
    """Who keeps a zone, and what may write to it. `server`: address (and port) of the name server, or the API's URL;
    `teams`: whose projects may have names in it, all when empty. The secret stands in a file of its own."""

    provider: DnsProvider
    server: str | None = Field(None, max_length=300)
    server_id: str = Field("localhost", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    key_name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,200}$")
    key_algorithm: Literal["hmac-sha256", "hmac-sha384", "hmac-sha512"] = "hmac-sha256"
    secret_file: Path | None = None
    teams: tuple[TeamId, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        wanted = {
            "rfc2136": ("server", "key_name", "secret_file"), "powerdns": ("server", "secret_file"),
            "cloudflare": ("secret_file",), "manual": (),
        }[self.provider]  # fmt: skip
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            raise ValueError(f"provider {self.provider} needs {', '.join(missing)}")
        if self.provider == "rfc2136":
            _server_address(self.server or "")
        elif self.server is not None and not self.server.startswith(("http://", "https://")):
            raise ValueError("server must be the address of an HTTP API")
        return self


class DnsSettings(_Section):
    """Names. `addresses`: where our proxy is reached from outside; `resolvers`: who is asked where a name leads, the
    system's when empty. Times in seconds."""

    addresses: tuple[Annotated[str, AfterValidator(_plain_address)], ...] = Field((), max_length=8)
    resolvers: tuple[Annotated[str, AfterValidator(_server_address)], ...] = Field((), max_length=8)
    ttl: int = Field(300, ge=1, le=86_400)
    timeout_seconds: float = Field(5.0, ge=0.1, le=60)
    zones: dict[Domain, DnsZone] = Field({})


def _rising(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] >= span[1]:
        raise ValueError("must be the first port and then a higher last one")
    return span


Range = Annotated[tuple[Port, Port], AfterValidator(_rising)]


class PortSettings(_Section):
    """Port ranges per environment, as `[[first, last], …]`."""

    production: tuple[Range, ...] = ((4000, 4499),)
    staging: tuple[Range, ...] = ((4500, 4999),)
    preview: tuple[Range, ...] = ((5000, 5431),)

    def of(self, environment: Environment) -> tuple[tuple[int, int], ...]:
        """The ranges of one environment."""
        ranges: tuple[tuple[int, int], ...] = getattr(self, environment.value)
        return ranges


class SshSettings(_Section):
    """How servers of the inventory are logged in to. Times in seconds."""

    key_file: Path | None = None
    agent: Path | None = None
    connect_seconds: float = Field(10.0, ge=0.5, le=120)
    keepalive_seconds: float = Field(5.0, ge=0.5, le=300)


class GitHubSettings(_Section):
    """Where pull requests are asked for, so that previews of closed ones end by themselves."""

    api: str = Field("https://api.github.com", pattern=r"^https?://[A-Za-z0-9.:/_-]{1,200}$")
    token_file: Path | None = None


class PreviewSettings(_Section):
    """Preview environments of pull requests."""

    ttl_hours: float = Field(72.0, gt=0, le=24 * 90)
    per_project: int = Field(10, ge=1, le=200)


class EnvSettings(_Section):
    """Variables of apps. `backup_folder`: where the Backup server keeps its copies; `backup_seconds`: how long a change waits
    for them; `require_backup`: refuse changes while they cannot be made; `immutable_master`: `chattr +i` on first versions."""

    require_backup: bool = False
    backup_folder: str = Field(f"{DEFAULT_ROOT}/env-backup", pattern=r"^(/[A-Za-z0-9._-]+)+$", max_length=200)
    backup_seconds: float = Field(20.0, ge=0.1, le=300)
    immutable_master: bool = True


class DatabaseSettings(_Section):
    """Data stores of apps. `postgres_role`: who makes databases on the shared PostgreSQL, the SSH user if not given;
    `addresses`: per server, its private address that apps reach and that own instances are published on; own images are named
    by digest. Memory of an own instance in MiB."""

    postgres_socket: str = Field("/var/run/postgresql/.s.PGSQL.5432", pattern=r"^(/[A-Za-z0-9._-]+)+$", max_length=100)
    postgres_role: str | None = Field(None, pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    postgres_port: Port = 5432
    postgres_connections: int = Field(20, ge=1, le=1000)
    redis_address: str = Field("127.0.0.1:6379", pattern=r"^[A-Za-z0-9.-]{1,253}:[0-9]{1,5}$")
    redis_user: str = Field("default", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    redis_password_file: Path | None = None
    redis_port: Port = 6379
    addresses: dict[str, Annotated[str, AfterValidator(_plain_address)]] = Field({})
    engine_socket: str = Field("/var/run/docker.sock", pattern=r"^(/[A-Za-z0-9._-]+)+$", max_length=100)
    postgres_image: str | None = Field(None, pattern=r"^[a-z0-9./:_-]{1,300}@sha256:[a-f0-9]{64}$")
    redis_image: str | None = Field(None, pattern=r"^[a-z0-9./:_-]{1,300}@sha256:[a-f0-9]{64}$")
    own_memory_mb: int = Field(512, ge=64, le=1_048_576)
    own_cpus: float = Field(1.0, ge=0.05, le=512)


class StreamingSettings(_Section):
    """Centrifugo. `addresses`: per server, its private address that apps reach the API at; `urls`: per server, where browsers
    reach it; `share_between_teams`: whoever has a namespace on a server can use all namespaces there."""

    config: str = Field("/etc/centrifugo/config.json", pattern=r"^(/[A-Za-z0-9._-]+)+\.json$", max_length=200)
    secrets: str = Field("/etc/centrifugo/secrets.env", pattern=r"^(/[A-Za-z0-9._-]+)+$", max_length=200)
    program: str = Field("centrifugo", pattern=r"^([A-Za-z0-9._-]+|(/[A-Za-z0-9._-]+)+)$", max_length=200)
    port: Port = 8000
    addresses: dict[str, Annotated[str, AfterValidator(_plain_address)]] = Field({})
    urls: dict[str, Annotated[str, Field(pattern=r"^wss?://[A-Za-z0-9.:/_-]{1,200}$")]] = Field({})
    share_between_teams: bool = False


class Settings(_Section):
    """Everything an operator may decide about this installation."""

    root: Path = Path(DEFAULT_ROOT)
    base_domain: Domain = "codeb.localhost"
    preview_domain: Domain = "preview.codeb.localhost"
    housekeeping_seconds: float = Field(30.0, ge=0.2, le=3600)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    server: Server = Server()
    docker: Docker = Docker()
    proxy: ProxySettings = ProxySettings()
    app_servers: dict[ServerKey, AppServerSettings] = Field(default_factory=dict)
    ports: PortSettings = PortSettings()
    env: EnvSettings = EnvSettings()
    previews: PreviewSettings = PreviewSettings()
    databases: DatabaseSettings = DatabaseSettings()
    streaming: StreamingSettings = StreamingSettings()
    ssh: SshSettings = SshSettings()
    dns: DnsSettings = DnsSettings()
    github: GitHubSettings = GitHubSettings()

    @property
    def registry(self) -> Path:
        """The registry's folder."""
        return self.root / "registry"

    @property
    def projects(self) -> Path:
        """Where the projects' live env files are."""
        return self.root / "projects"

    @property
    def traffic(self) -> Path:
        """Where the proxy looks for the flag files."""
        return self.root / "traffic"

    @property
    def ssh_key(self) -> Path:
        """The private key that logs in to the servers."""
        return self.ssh.key_file or self.root / "ssh" / "id_ed25519"

    @property
    def run(self) -> Path:
        """State that may vanish at a reboot."""
        return self.root / "run"


_ENVIRONMENT: Mapping[str, tuple[str, ...]] = {
    "CODEB_HOST": ("server", "host"),
    "CODEB_PORT": ("server", "port"),
    "CODEB_DOCKER_HOST": ("docker", "host"),
    "CODEB_CADDY_ADMIN": ("proxy", "admin"),
    "CODEB_CADDY_PUBLIC": ("proxy", "public"),
    "CODEB_BASE_DOMAIN": ("base_domain",),
    "CODEB_PREVIEW_DOMAIN": ("preview_domain",),
    "CODEB_LOG_LEVEL": ("log_level",),
}


def load(root: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of the installation at `root` (default: CODEB_ROOT, else /opt/codeb).

    Raises InvalidRequest naming the file and the key that is wrong.
    """
    environ = os.environ if environ is None else environ
    root = (root or Path(environ.get("CODEB_ROOT", DEFAULT_ROOT))).absolute()
    path = root / "codeb.toml"
    values = _read(path)
    for variable, keys in _ENVIRONMENT.items():
        if variable in environ:
            _put(values, keys, environ[variable])
    try:
        return Settings.model_validate({**values, "root": root})
    except ValidationError as error:
        problems = [
            {"field": ".".join(map(str, item["loc"])), "problem": item["msg"]}
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        said = "; ".join(f"{item['field']}: {item['problem']}" for item in problems)
        raise InvalidRequest(
            f"the settings are not valid: {said}", hint=f"Correct {path} or the CODEB_* variable.", fields=problems
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", hint="Correct or remove the file.") from None


def _put(values: dict[str, Any], keys: tuple[str, ...], value: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            return  # the file has a value where a section belongs, which is refused with its path
    values[keys[-1]] = value
