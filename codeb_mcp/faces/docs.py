"""`python -m codeb_mcp.faces.docs [--check]`: the parts of `docs/` that follow from the code.

Writes `docs/API-REFERENCE.md` from the catalog and the settings table inside `docs/DEPLOYMENT.md`; with `--check` it
writes nothing and fails when a file differs from the code.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from codeb_mcp.faces.cli import command_words
from codeb_mcp.faces.cli_flags import Flag, default_text, flags_of, is_positional, plain_type
from codeb_mcp.model.errors import ERRORS
from codeb_mcp.operations.catalog import Catalog, Operation, load_all
from codeb_mcp.settings import _ENVIRONMENT as VARIABLES
from codeb_mcp.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS_MARKS = ("<!-- settings: written by codeb_mcp.faces.docs -->", "<!-- end of settings -->")

SAMPLES: Mapping[str, Any] = {
    "projectName": "shop",
    "image": "ghcr.io/acme/shop:v2",
    "operationId": "op_01a208fb5b20a6e0",
    "tokenId": "key_6512935722b4",
    "memberId": "mem_853b610270d5",
    "teamId": "acme",
    "name": "ci",
    "role": "member",
    "driftIds": ["drift_4f1c2a9b07de"],
    "values": {"LOG_LEVEL": "debug"},
    "names": ["LOG_LEVEL"],
    "to": "master",
    "pullRequest": 12,
    "repository": "acme/shop",
    "type": "nodejs",
    "files": {"Dockerfile": "FROM node:24"},
    "serverKey": "storage",
    "host": "192.0.2.30",
    "domain": "www.example.com",
}
"""Example values by field. Required fields that are not here are a mistake, which the generator reports."""

SETTINGS_SAY: Mapping[str, str] = {
    "base_domain": "Names of apps without a domain of their own end in it",
    "preview_domain": "Preview names of slots end in it; every name below it is CodeB's, and one that is no site gets 404",
    "housekeeping_seconds": "Time between two rounds of housekeeping",
    "log_level": "What goes to the log on stderr",
    "server.host": "Address to listen on",
    "server.port": "Port to listen on",
    "server.allowed_hosts": "Host names besides localhost under which the server may be called",
    "server.allowed_origins": "Origins of browser pages that may call it",
    "server.max_body_bytes": "Largest request body",
    "server.calls_per_minute": "Calls of one key",
    "server.team_calls_per_minute": "Calls of one team",
    "server.failed_logins_per_minute": "Failed logins from one address",
    "docker.host": "The engine's socket",
    "docker.allowed_registries": "Image registries that may be used; empty: all",
    "docker.credentials_file": "Logins for image registries",
    "docker.min_free_mb": "A pull needs this much free disk space",
    "proxy.admin": "Caddy's admin endpoint, `http://…` or `unix:///…`",
    "proxy.listen": "Where Caddy listens for the apps, the public address first",
    "proxy.public": "Where a request for a public name arrives on this machine",
    "proxy.tls": "`off`: plain HTTP; `internal`: Caddy's own authority; `acme`: a public one",
    "proxy.root_certificate": "The authority to believe when it is no public one",
    "proxy.http_port": "Where plain HTTP arrives at our addresses; authorities ask there before they issue a certificate",
    "proxy.acme_directory": "The authority's directory, `https://…`; without it that of Caddy",
    "proxy.acme_root": "Root certificate of the directory's own address, when it is no public one",
    "proxy.acme_email": "Whom the authority writes to",
    "proxy.acme_names": "How the authority is called in CAA records",
    "dns.addresses": "Addresses at which our proxy is reached from outside; domains are pointed at them",
    "dns.resolvers": "Who is asked where a name leads, with or without a port; empty: the system's resolvers",
    "dns.ttl": "How long others may remember a record, in seconds",
    "dns.timeout_seconds": "How long a name server or provider may take",
    "dns.zones": "Who keeps which zone: see [DOMAINS.md](DOMAINS.md#providers)",
    "ports.production": "Port ranges",
    "ports.staging": "Port ranges",
    "ports.preview": "Port ranges",
    "env.require_backup": "Refuse changes of variables while the Backup server cannot be reached",
    "env.backup_folder": "Where the Backup server keeps its encrypted copies of variables",
    "env.backup_seconds": "How long a change of variables waits for its copy",
    "env.immutable_master": "Protect first versions like `chattr +i`, where the file system can",
    "ssh.key_file": "Private key that logs in to the servers; without it `ssh/id_ed25519` below the root",
    "ssh.agent": "Socket of an SSH agent whose keys are tried as well",
    "ssh.connect_seconds": "How long a server may take to log in",
    "ssh.keepalive_seconds": "A silent connection is asked for a sign of life, and given up after two of them",
    "github.api": "Where pull requests are asked for",
    "github.token_file": "Token that may read pull requests; previews of closed ones then end by themselves",
    "previews.ttl_hours": "How long a preview environment stays unless the call says otherwise",
    "previews.per_project": "Preview environments that a project may have at once",
}

SHOWN = {"deploy": ("environment", "image"), "rollback": ("reason",), "project_create": ("image",)}
EXTRA = {"environment": "staging", "reason": "checkout fails"}


def main() -> None:
    """Write or check; exits 1 when a file is not what the code says."""
    parser = argparse.ArgumentParser(prog="python -m codeb_mcp.faces.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    check = parser.parse_args().check
    stale = [path for path, text in generated().items() if not _same(path, text, check=check)]
    for path in stale:
        sys.stderr.write(f"{path.name} differs from the code: run python -m codeb_mcp.faces.docs\n")
    sys.exit(1 if stale else 0)


def generated(docs: Path = DOCS) -> dict[Path, str]:
    """Every generated file with what it should hold."""
    deployment = docs / "DEPLOYMENT.md"
    return {
        docs / "API-REFERENCE.md": reference(load_all()),
        deployment: with_settings(deployment.read_text(encoding="utf-8")),
    }


def _same(path: Path, text: str, *, check: bool) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return True
    if check:
        return False
    path.write_text(text, encoding="utf-8")
    return True


# ── the reference ───────────────────────────────────────────────────────────────────────────────────────────────


def reference(catalog: Catalog) -> str:
    """The whole of API-REFERENCE.md."""
    return "\n".join([*_head(catalog), *_envelope(), *_mcp(), *_errors(), *_operations(catalog)]).rstrip() + "\n"


def _head(catalog: Catalog) -> Iterator[str]:
    yield "# API reference\n"
    yield "<!-- Generated by `python -m codeb_mcp.faces.docs` from the catalog; a test compares the two. -->\n"
    yield "Every operation is offered the same way over MCP, HTTP and the command line: same parameters, same checks,"
    yield "same answer. Names on the wire are camelCase; parameters that are not known are refused by name. No answer is"
    yield "longer than 20,000 characters: lists are paged with `limit` and `offset`, and `nextOffset` says where to go on.\n"
    yield "## Operations\n"
    yield "| operation | role | effect | what it does |"
    yield "| --- | --- | --- | --- |"
    for operation in catalog.values():
        old = f" (also `{'`, `'.join(operation.aliases)}`)" if operation.aliases else ""
        name = f"[`{operation.name}`](#{operation.name}){old}"
        yield f"| {name} | {operation.role} | {operation.effect} | {_cell(operation.summary)} |"
    yield "\nRoles include the ones below them: owner, admin, member, viewer. Effects: `read` changes nothing, `change`"
    yield "changes something, `destroy` takes something away for good (the command line asks, or wants `--yes`).\n"


def _envelope() -> Iterator[str]:
    yield from _lines("""
## HTTP

`POST /api/tool` with the headers `X-API-Key` and `Content-Type: application/json`, and this body:

```json
{"tool": "slot_status", "params": {"projectName": "shop"}}
```

A success is 200 (202 for a run that was started with `"wait": false`). The result stands at the top level and once more
under `result`, and under `data` unless the result has `data` of its own:

```json
{"success":true,"tool":"slot_status","duration":1.9,"timestamp":"…","correlationId":"…","result":{…},…}
```

Anything else is an error with the status of the table below, and never 200:

```json
{"success":false,"error":"…","code":"conflict","hint":"…","retryable":false,"details":{…},"correlationId":"…",…}
```

`error` says what is, `hint` what to do. With 422 `details` lists every field that does not fit. `X-Correlation-ID` is
accepted and returned; the server's log and the audit trail carry it.

| address | answer | key |
| --- | --- | --- |
| `POST /api/tool` | calls an operation | yes |
| `GET /api`, `GET /api/tools` | name, version and operations; which of them the key may use | yes |
| `GET /api/logs/stream?project=&environment=&slot=` | container logs as server-sent events | viewer |
| `GET /api/audit?limit=&offset=` | what your team did, newest first | viewer |
| `GET /health` | `{"status":"healthy","version":…}` | no |
| `GET /metrics` | Prometheus text | no |
""")


def _mcp() -> Iterator[str]:
    yield from _lines("""
## MCP

Streamable HTTP at `/mcp`, SSE at `/sse`, stdio with `codeb-mcp` (`codeb stdio`; with `--connect URL` a bridge to a running
server). The key comes in `X-API-Key` or `Authorization: Bearer`; on stdio from `CODEB_API_KEY` or `~/.config/codeb/key`.

Each operation is a tool of the same name with input and output schema. `readOnlyHint` and `destructiveHint` follow the
effect. A failed call is a tool result with `isError` whose text names code, message, hint and the next step; unknown tools
are protocol errors. Operations that take longer report progress when the client asks for it.

| resource | what it is |
| --- | --- |
| `codeb://registry/ssot` | your team's projects as the registry has them |
| `codeb://slots/{project}/{environment}` | both slots of an environment |
| `codeb://operations/{id}` | one run: its steps, how far it is, how it ended |
""")


def _errors() -> Iterator[str]:
    yield "## Errors\n"
    yield "| code | HTTP | exit code | retry | when |"
    yield "| --- | --- | --- | --- | --- |"
    for code, error in ERRORS.items():
        when = " ".join((error.__doc__ or "").split())
        retry = "yes" if error.retryable else "no"
        yield f'| <a id="{code}"></a>`{code}` | {error.http_status} | {error.exit_code} | {retry} | {_cell(when)} |'
    yield "\nA body that is no JSON is 400. `--json` on the command line prints the error on stdout as well.\n"


def _operations(catalog: Catalog) -> Iterator[str]:
    yield "## Each operation\n"
    for operation in catalog.values():
        yield f"### {operation.name}\n"
        yield operation.description + "\n"
        facts = [f"Role {operation.role}", f"effect {operation.effect}"]
        facts += ["reports progress"] if operation.long else []
        facts += [f"old name `{alias}`" for alias in operation.aliases]
        yield "; ".join(facts) + ".\n"
        yield from _parameters(operation)
        yield from _result(operation)
        yield from _examples(operation)


def _parameters(operation: Operation) -> Iterator[str]:
    rows = list(_fields(operation.request))
    if not rows:
        yield "No parameters.\n"
        return
    yield "| parameter | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for path, field in rows:
        default = "required" if field.is_required() else _default(field)
        yield f"| `{path}` | {type_text(field.annotation)} | {_cell(default)} | {_cell(field.description or '')} |"
    yield ""


def _result(operation: Operation) -> Iterator[str]:
    yield "| answer | type | meaning |"
    yield "| --- | --- | --- |"
    for path, field in _fields(operation.result):
        yield f"| `{path}` | {type_text(field.annotation)} | {_cell(field.description or '')} |"
    yield ""


def _fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Fields with their wire path, those of nested models after their parent."""
    for name, field in model.model_fields.items():
        path = above + (field.alias or name)
        yield path, field
        plain, _ = plain_type(field.annotation)
        several = get_origin(plain) in (list, tuple)
        inner = plain_type(get_args(plain)[0])[0] if several else plain
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, path + ("[]." if several else "."))


def type_text(annotation: Any) -> str:
    """A type as a reader of JSON knows it."""
    plain, _ = plain_type(annotation)
    if get_origin(plain) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(plain))
    if get_origin(plain) in (list, tuple):
        return f"list of {type_text(get_args(plain)[0])}"
    if isinstance(plain, type) and issubclass(plain, Enum):
        return ", ".join(f"`{one.value}`" for one in plain)
    names = {int: "integer", float: "number", bool: "true or false", str: "text"}
    if plain in names:
        return names[plain]
    return "object" if get_origin(plain) is dict or _is_model(plain) else "text"


def _is_model(plain: Any) -> bool:
    return isinstance(plain, type) and issubclass(plain, BaseModel)


def _default(field: FieldInfo) -> str:
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return default_text(field)


def _examples(operation: Operation) -> Iterator[str]:
    arguments = sample_arguments(operation)
    body = json.dumps({"tool": operation.name, "params": arguments}, ensure_ascii=False)
    yield "```bash"
    yield f"codeb {cli_line(operation, arguments)}"
    yield 'curl -sf -X POST "$CODEB_URL/api/tool" -H "X-API-Key: $CODEB_API_KEY" \\'
    yield f'  -H "Content-Type: application/json" -d {shlex.quote(body)}'
    yield "```\n"


def sample_arguments(operation: Operation) -> dict[str, Any]:
    """Parameters that fit the request: all that are required, and those that make the example worth reading."""
    arguments: dict[str, Any] = {}
    for name, field in operation.request.model_fields.items():
        wire = field.alias or name
        if wire == "confirm":
            arguments[wire] = arguments.get("projectName") or SAMPLES["teamId"]
        elif field.is_required() or name in SHOWN.get(operation.name, ()):
            arguments[wire] = EXTRA.get(wire) or SAMPLES[wire]
    return arguments


def cli_line(operation: Operation, arguments: Mapping[str, Any]) -> str:
    """The same call on the command line, without `codeb`."""
    flags = {flag.path: flag for flag in flags_of(operation.request)}
    positional: list[str] = []
    rest: list[str] = []
    for name, value in arguments.items():
        flag = flags[(name,)]
        (positional if _is_argument(operation, flag) else rest).append(_typed(operation, flag, value))
    return " ".join([*command_words(operation.name), *positional, *rest])


def _is_argument(operation: Operation, flag: Flag) -> bool:
    fields = {field.alias or name: field for name, field in operation.request.model_fields.items()}
    return is_positional(flag.path[0], fields[flag.path[0]])


def _typed(operation: Operation, flag: Flag, value: Any) -> str:
    if flag.secret:
        return f"{flag.typed} shop.env"
    values = value if isinstance(value, list) else [value]
    text = " ".join(shlex.quote(json.dumps(one) if isinstance(one, dict) else str(one)) for one in values)
    return text if _is_argument(operation, flag) else f"{flag.typed} {text}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _lines(text: str) -> Iterator[str]:
    yield from text.strip("\n").split("\n")
    yield ""


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────


def with_settings(text: str) -> str:
    """DEPLOYMENT.md with the settings table of the code between its marks; raises ValueError when they are gone."""
    start, end = SETTINGS_MARKS
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError("DEPLOYMENT.md has lost the marks of its settings table")
    table = "\n".join(settings_table())
    return re.sub(
        f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n\n{table}\n\n{end}", text, flags=re.DOTALL
    )


def settings_table() -> Iterator[str]:
    """Every key of `codeb.toml` with its type, default and environment variable."""
    variables = {".".join(keys): name for name, keys in VARIABLES.items()} | {"root": "CODEB_ROOT"}
    yield "| key in `codeb.toml` | default | variable | meaning |"
    yield "| --- | --- | --- | --- |"
    for path, field in _fields(Settings):
        plain, _ = plain_type(field.annotation)
        if _is_model(plain) or path == "root":
            continue
        variable = f"`{variables[path]}`" if path in variables else ""
        yield f"| `{path}` | {_setting_default(field)} | {variable} | {SETTINGS_SAY[path]} |"


def _setting_default(field: FieldInfo) -> str:
    default = field.default
    if default is None or default == ():
        return ""
    shown = json.dumps(default, default=str)
    return f"`{shown}`"


if __name__ == "__main__":
    main()
