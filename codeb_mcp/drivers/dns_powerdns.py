"""A zone in PowerDNS, over its HTTP API.

The API replaces whole record sets and cannot compare, so each write looks again right before; foreign values of the same
set are written back as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codeb_mcp.drivers.dns import read_secret
from codeb_mcp.drivers.dns_http import JsonApi
from codeb_mcp.model.dns import TAKING, Change, Record, mark_name, txt_parts
from codeb_mcp.model.errors import DriverRefused


class PowerDnsZone:
    """Implements `Zone`. `server` is the API's address, like `http://192.0.2.53:8081`; `server_id` is nearly always
    `localhost`."""

    def __init__(
        self, zone: str, server: str, *, secret_file: Path, server_id: str = "localhost", ttl: int = 300,
        timeout_seconds: float = 5.0,
    ) -> None:  # fmt: skip
        self._zone = zone
        self._ttl = ttl
        self._writing = asyncio.Lock()
        self._path = f"/api/v1/servers/{server_id}/zones/{zone}."
        self._api = JsonApi(
            server, zone, lambda: {"X-API-Key": read_secret(secret_file, zone)}, timeout_seconds=timeout_seconds
        )

    async def read(self, name: str) -> frozenset[Record]:
        """See `Zone.read`."""
        rows = [row for at in (name, mark_name(name)) for row in await self._rrsets(at)]
        return frozenset(record for row in rows for record in _records(row, name))

    async def write(self, change: Change, seen: frozenset[Record]) -> bool:
        """See `Zone.write`."""
        name = next(iter(change.delete | change.add)).name.removeprefix("_codeb.")
        after = (seen - change.delete) | change.add
        touched = sorted({(record.name, record.type) for record in change.delete | change.add})
        # One at a time: nothing of ours comes between look and change, and a small database behind the API that is locked
        # by another change answers 500.
        async with self._writing:
            if await self.read(name) != seen:
                return False
            await self._api.call(
                "PATCH", self._path, {"rrsets": [self._rrset(at, kind, after) for at, kind in touched]}
            )
        return True

    async def close(self) -> None:
        """See `Zone.close`."""
        await self._api.close()

    async def _rrsets(self, at: str) -> list[dict[str, Any]]:
        answer = await self._api.call("GET", self._path, query={"rrset_name": f"{at}."})
        rows = answer.get("rrsets") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise DriverRefused(
                f"zone {self._zone}: what answers is not PowerDNS", hint="Check the server's address.", zone=self._zone
            )
        return rows

    def _rrset(self, at: str, kind: str, after: frozenset[Record]) -> dict[str, Any]:
        values = sorted(record for record in after if (record.name, record.type) == (at, kind))
        base = {"name": f"{at}.", "type": kind}
        if not values:
            return {**base, "changetype": "DELETE"}
        records = [{"content": _content(record), "disabled": False} for record in values]
        return {**base, "changetype": "REPLACE", "ttl": self._ttl, "records": records}


def _records(row: dict[str, Any], name: str) -> Iterator[Record]:
    at, kind = str(row.get("name", "")).rstrip(".").lower(), row.get("type", "")
    if (at != name or kind not in TAKING) and (at != mark_name(name) or kind != "TXT"):
        return
    for one in row.get("records", []):
        content = str(one.get("content", ""))
        yield Record(at, kind, plain_txt(content) if kind == "TXT" else content.rstrip(".").lower())


def plain_txt(content: str) -> str:
    """The text of a TXT value as providers write it: quoted parts, or bare."""
    if not content.startswith('"'):
        return content
    parts, inside, escaped = [], False, False
    for char in content:
        if escaped:
            parts.append(char)
            escaped = False
        elif inside and char == "\\":
            escaped = True
        elif char == '"':
            inside = not inside
        elif inside:
            parts.append(char)
    return "".join(parts)


def quoted_txt(value: str) -> str:
    """A TXT value in quoted parts."""
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in txt_parts(value))


def _content(record: Record) -> str:
    if record.type == "TXT":
        return quoted_txt(record.value)
    return record.value + "." if record.type == "CNAME" else record.value
