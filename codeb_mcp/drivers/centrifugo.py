"""Centrifugo on a server: its configuration file, its reload, its API.

The file is only ever replaced as a whole, by what Centrifugo's own check accepted, and only when it still is what was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codeb_mcp.drivers.hosts import Finished, Host
from codeb_mcp.model.centrifugo import NEWEST, OLDEST, Secrets, major_of, parse_config, pid_file_of, secrets_of, signed
from codeb_mcp.model.errors import (
    CodebError,
    Conflict,
    DeadlineExceeded,
    DriverRefused,
    DriverUnavailable,
    InsufficientStorage,
)
from codeb_mcp.model.redaction import MASK, clean_text

if TYPE_CHECKING:
    import aiohttp

BASE = "http://centrifugo"
CALL_SECONDS = 10.0
TOKEN_SECONDS = 300
SCRIPT_SECONDS = 30.0
TAKEN_SECONDS = 10.0
PAUSE_SECONDS = 0.1
LARGEST_CONFIG = 4 << 20
LARGEST_ANSWER = 1 << 20
UNKNOWN_CHANNEL = 102
"""Centrifugo's code for a channel whose namespace it does not have."""
_CHANGED, _REFUSED, _OWNER, _CUT, _BUSY, _LINK = 10, 11, 12, 9, 13, 8

# Whole or not at all: what came over a line that was cut has another digest. The checked name ends in .json since Centrifugo
# tells the format by it.
_REPLACE = """set -eu; umask 077; export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
config=$1 expected=$2 wanted=$3 program=$4; folder=$(dirname "$config"); new=$folder/.codeb-new.json
[ ! -L "$config" ] && [ -f "$config" ] || exit 8
exec 9<"$folder"; flock -w 10 9 || exit 13
trap 'rm -f "$new"' EXIT; rm -f "$new"; cat > "$new"
digest() { sha256sum < "$1" | cut -d' ' -f1; }
[ "$(digest "$new")" = "$wanted" ] || exit 9
[ "$(digest "$config")" = "$expected" ] || exit 10
if [ "$(stat -c %u:%g "$new")" != "$(stat -c %u:%g "$config")" ]; then
  chown --reference="$config" "$new" 2>/dev/null || exit 12
fi
chmod --reference="$config" "$new"
"$program" checkconfig -c "$new" >&2 || exit 11
sync "$new"; mv -fT "$new" "$config"; sync "$folder"
"""
_RELOAD = """set -eu; export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; pid=
[ -z "$1" ] || [ ! -r "$1" ] || pid=$(cat "$1")
case $pid in *[!0-9]*) pid=;; esac
if [ -z "$pid" ]; then
  found=$(pgrep -x centrifugo || :); [ "$(printf '%s\\n' $found | wc -w)" = 1 ] || exit 3; pid=$found
fi
[ "$(cat "/proc/$pid/comm" 2>/dev/null)" = centrifugo ] || exit 3
kill -HUP "$pid"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where Centrifugo is on its server: files, program, and `host:port` of its API as the server sees it."""

    config: str
    secrets: str
    program: str
    address: str


@dataclass(frozen=True, slots=True)
class Installed:
    """What is there. `text` may hold secrets and is never shown."""

    text: str
    config: dict[str, Any]
    major: int
    version: str
    secrets: Secrets

    def __repr__(self) -> str:
        return f"Installed({self.version})"


@dataclass(frozen=True, slots=True)
class Info:
    """What the API says of the server and its peers."""

    versions: tuple[str, ...]
    clients: int


class Centrifugo:
    """One server's Centrifugo. Raises DriverUnavailable, DriverRefused, DeadlineExceeded or Conflict, all of which name the
    server; no secret gets into any of them."""

    def __init__(self, host: Host, place: Place) -> None:
        self._host = host
        self._place = place

    async def read(self) -> Installed:
        """The configuration and what opens the server; raises DriverRefused when there is none, or none that we know."""
        text = await self._file(self._place.config)
        secrets = (await self._host.read(self._place.secrets)) or b""
        version, major = await self._version()
        try:
            config = parse_config(text)
            found = secrets_of(config, secrets.decode("utf-8", "replace"), major)
        except ValueError as error:
            raise self._refused(
                f"{self._place.config} {error}" if "cannot be found" not in str(error) else str(error),
                f"Correct {self._place.config} or {self._place.secrets} on the server; nothing was changed.",
                "config",
            ) from None
        return Installed(text, config, major, version, found)

    async def _file(self, path: str) -> str:
        data = await self._host.read(path, max_bytes=LARGEST_CONFIG)
        if data is None:
            raise self._refused(
                f"there is no {path}", "Set the server up with server_setup, and install Centrifugo.", "no_config"
            )
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self._refused(f"{path} is not UTF-8", "Correct it on the server.", "config") from None

    async def _version(self) -> tuple[str, int]:
        done = await self._host.run([self._place.program, "version"], timeout_seconds=CALL_SECONDS)
        said = clean_text(done.stdout.decode("utf-8", "replace").strip(), limit=80)
        major = major_of(said) if done.ok else None
        if major == 0:  # how a program calls itself that `go install` made
            major = NEWEST
        if major is None:
            raise self._refused(
                f"{self._place.program} is not there or does not say its version",
                "Install Centrifugo's program on the server, or set streaming.program to its path.",
                "no_program",
            )
        if not OLDEST <= major <= NEWEST:
            raise self._refused(
                f"version {major} of Centrifugo has another configuration than those known here ({OLDEST} to {NEWEST})",
                "Use one of these versions.",
                "version",
            )
        return said, major

    async def replace(self, before: Installed, text: str) -> None:
        """Put the new configuration in place of the one that was read, durably. Raises Conflict when it is not that one any
        more, DriverRefused with Centrifugo's words when its own check does not accept the new one; both change nothing."""
        place = self._place
        words = [place.config, _digest(before.text), _digest(text), place.program]
        done = await self._host.run(
            ["/bin/sh", "-c", _REPLACE, "codeb-centrifugo", *words],
            stdin=text.encode(),
            timeout_seconds=SCRIPT_SECONDS,
        )
        if done.ok:
            return
        if done.status == _CHANGED:
            raise Conflict(
                f"server {self._host.key}: {place.config} was changed meanwhile",
                hint="Try again.",
                server=self._host.key,
            )
        raise self._not_replaced(done, before.secrets)

    def _not_replaced(self, done: Finished, secrets: Secrets) -> CodebError:
        path = self._place.config
        if done.status == _REFUSED:
            said = _without(done.stderr.decode("utf-8", "replace") + done.stdout.decode("utf-8", "replace"), secrets)
            return self._refused(
                f"Centrifugo's own check does not accept the configuration: {clean_text(said.strip(), limit=300)}",
                f"Correct {path} on the server; it was left as it was, and the running Centrifugo too.",
                "checkconfig",
            )
        if done.status in (_CUT, _BUSY):
            why = "the line was cut" if done.status == _CUT else "somebody else is changing it"
            return DriverUnavailable(
                f"server {self._host.key}: {path} was not changed: {why}", hint="Try again.", server=self._host.key
            )
        if b"No space left" in done.stderr or b"quota" in done.stderr:
            return InsufficientStorage(
                f"the disk of server {self._host.key} is too full to change {path}",
                hint="Free some space on the server, then try again.",
                server=self._host.key,
            )
        if done.status == _LINK:
            return self._refused(f"{path} is a link or no file", "Put the file itself there.", "link")
        why = "its owner cannot be kept" if done.status == _OWNER else "its folder cannot be written"
        hint = f"Give {path} and its folder to the user that CodeB logs in with."
        return self._refused(f"{path} was not changed: {why}", hint, "permission")

    async def reload(self, config: dict[str, Any]) -> None:
        """Tell the running Centrifugo to read its configuration again; raises DriverRefused when it does not run, or we may
        not."""
        done = await self._host.run(
            ["/bin/sh", "-c", _RELOAD, "codeb-centrifugo", pid_file_of(config)], timeout_seconds=SCRIPT_SECONDS
        )
        if not done.ok:
            why = "it does not run" if done.status == 3 else "we may not tell it"
            raise self._refused(
                f"Centrifugo could not be told to read its configuration: {why}",
                "Start it as the user that CodeB logs in with (see docs/STREAMING.md), then try again.",
                "reload",
            )

    async def info(self, secrets: Secrets) -> Info:
        """What the API says; raises DriverRefused when it does not take the key."""
        nodes = (await self._api("info", {}, secrets)).get("nodes")
        found = [one for one in nodes if isinstance(one, dict)] if isinstance(nodes, list) else []
        versions = tuple(clean_text(str(one.get("version", "")), limit=30) for one in found)
        clients = [one.get("num_clients", 0) for one in found]
        return Info(versions, sum(count for count in clients if isinstance(count, int)))

    async def has_namespace(self, namespace: str, secrets: Secrets) -> bool:
        """Whether the running Centrifugo has it. Nothing is published for that."""
        answer = await self._api("presence_stats", {"channel": f"{namespace}:codeb"}, secrets, errors=True)
        return answer.get("code") != UNKNOWN_CHANNEL

    async def taken(self, namespace: str, secrets: Secrets, *, there: bool) -> bool:
        """Wait until the running Centrifugo has the namespace, or has it no more; False when it does not come to that."""
        loop = asyncio.get_running_loop()
        end = loop.time() + TAKEN_SECONDS
        while await self.has_namespace(namespace, secrets) is not there:
            if loop.time() >= end:
                return False
            await asyncio.sleep(PAUSE_SECONDS)
        return True

    async def lets_in(self, secrets: Secrets) -> bool:
        """Whether the running Centrifugo takes a token that is signed with this secret, as a client would find out."""
        claims = {"sub": "codeb", "exp": int(time.time()) + TOKEN_SECONDS}
        async with self._session() as session, session.ws_connect(f"{BASE}/connection/websocket") as line:
            await line.send_json({"id": 1, "connect": {"token": signed(claims, secrets.token)}})
            message = await line.receive(timeout=CALL_SECONDS)
            return message.type.name == "TEXT" and '"connect"' in str(message.data)

    async def health(self) -> int:
        """The status of its health endpoint."""
        return (await self._http("GET", "/health", None, {}))[0]

    async def _api(self, method: str, body: Any, secrets: Secrets, *, errors: bool = False) -> dict[str, Any]:
        """The result, or with `errors` the error that the API answers; empty for an empty result."""
        status, content = await self._http("POST", f"/api/{method}", body, {"X-API-Key": secrets.api_key})
        if status in (401, 403):
            raise self._refused(
                "Centrifugo's API does not take the key",
                "Restart Centrifugo after its secrets were changed.",
                "api_key",
            )
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if status != 200 or not isinstance(answer, dict):
            raise self._refused(
                f"Centrifugo's API answered {status}", f"See what listens on {self._place.address}.", "api"
            )
        error = answer.get("error")
        if isinstance(error, dict):
            if errors and isinstance(error.get("code"), int):
                return error
            code = clean_text(str(error.get("code")), limit=20)
            raise self._refused(f"Centrifugo's API refused {method}: {code}", "Read its log.", "api")
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    async def _http(self, verb: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        async with (
            self._session() as session,
            session.request(verb, f"{BASE}{path}", json=body, headers=headers, allow_redirects=False) as answer,
        ):
            content = b""
            while len(content) < LARGEST_ANSWER and (part := await answer.content.read(LARGEST_ANSWER)):
                content += part
            return answer.status, content

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A connection for one question; what the library raises is said in our words."""
        import aiohttp

        socket = await self._host.socket(self._place.address)
        limit = aiohttp.ClientTimeout(total=CALL_SECONDS)
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=socket), timeout=limit) as session:
                yield session
        except TimeoutError:
            raise DeadlineExceeded(
                f"server {self._host.key}: Centrifugo took more than {CALL_SECONDS:g} s to answer",
                hint="See whether it is overloaded.",
                server=self._host.key,
            ) from None
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise DriverUnavailable(
                f"server {self._host.key}: Centrifugo does not answer: {type(error).__name__}",
                hint=f"Start it there, or look at its log; it is expected at {self._place.address}.",
                server=self._host.key,
            ) from None

    def _refused(self, why: str, hint: str, reason: str) -> DriverRefused:
        return DriverRefused(f"server {self._host.key}: {why}", hint=hint, server=self._host.key, reason=reason)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _without(text: str, secrets: Secrets) -> str:
    for secret in (secrets.token, secrets.api_key):
        text = text.replace(secret, MASK)
    return text
