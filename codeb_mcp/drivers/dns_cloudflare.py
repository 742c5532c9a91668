"""A zone at Cloudflare, over its API (version 4). A change is one batch: all of it is stored, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codeb_mcp.drivers.dns import read_secret
from codeb_mcp.drivers.dns_http import JsonApi
from codeb_mcp.drivers.dns_powerdns import plain_txt, quoted_txt
from codeb_mcp.model.dns import TAKING, Change, Record, mark_name
from codeb_mcp.model.errors import DriverRefused

SERVER = "https://api.cloudflare.com/client/v4"
SHORTEST_TTL = 60
PER_PAGE = 100


class CloudflareZone:
    """Implements `Zone`. The secret is an API token that may edit the zone's DNS."""

    def __init__(
        self, zone: str, server: str = SERVER, *, secret_file: Path, ttl: int = 300, timeout_seconds: float = 5.0
    ) -> None:
        self._zone = zone
        self._ttl = max(ttl, SHORTEST_TTL)
        self._zone_id: str | None = None
        self._api = JsonApi(
            server,
            zone,
            lambda: {"Authorization": f"Bearer {read_secret(secret_file, zone)}"},
            timeout_seconds=timeout_seconds,
        )

    async def read(self, name: str) -> frozenset[Record]:
        """See `Zone.read`."""
        return frozenset(await self._found(name))

    async def write(self, change: Change, seen: frozenset[Record]) -> bool:
        """See `Zone.write`."""
        name = next(iter(change.delete | change.add)).name.removeprefix("_codeb.")
        found = await self._found(name)
        if found.keys() != seen:
            return False
        body = {
            "deletes": [{"id": found[record]} for record in sorted(change.delete)],
            "posts": [self._post(record) for record in sorted(change.add)],
        }
        try:
            await self._call("POST", f"/zones/{await self._id()}/dns_records/batch", body)
        except DriverRefused:
            if (await self._found(name)).keys() != seen:
                return False  # refused because somebody was faster
            raise
        return True

    async def close(self) -> None:
        """See `Zone.close`."""
        await self._api.close()

    async def _found(self, name: str) -> dict[Record, str]:
        """The records at the name and its mark, with their ids."""
        zone = await self._id()
        here, mark = await asyncio.gather(self._list(zone, name), self._list(zone, mark_name(name)))
        return dict(_records([*here, *mark], name))

    async def _list(self, zone: str, at: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for page in range(1, 50):
            query = {"name.exact": at, "page": str(page), "per_page": str(PER_PAGE)}
            part = await self._call("GET", f"/zones/{zone}/dns_records", query=query)
            if not isinstance(part, list):
                break
            rows += part
            if len(part) < PER_PAGE:
                return rows
        raise DriverRefused(f"zone {self._zone}: the list of {at} does not end", hint="Look at that name in the zone.")

    async def _id(self) -> str:
        if self._zone_id is None:
            found = await self._call("GET", "/zones", query={"name": self._zone})
            ids = [str(one["id"]) for one in found if one.get("name") == self._zone] if isinstance(found, list) else []
            if len(ids) != 1 or not ids[0].isalnum():
                raise DriverRefused(
                    f"the token sees no zone {self._zone}",
                    hint="Give the token DNS edit rights on it.",
                    zone=self._zone,
                )
            self._zone_id = ids[0]
        return self._zone_id

    async def _call(self, method: str, path: str, body: Any = None, *, query: dict[str, str] | None = None) -> Any:
        answer = await self._api.call(method, path, body, query=query)
        if not isinstance(answer, dict) or answer.get("success") is not True:
            raise self._api.refusal(200, "without success")
        return answer.get("result")

    def _post(self, record: Record) -> dict[str, Any]:
        content = quoted_txt(record.value) if record.type == "TXT" else record.value
        row: dict[str, Any] = {"type": record.type, "name": record.name, "content": content, "ttl": self._ttl}
        return row if record.type == "TXT" else {**row, "proxied": False}


def _records(rows: list[dict[str, Any]], name: str) -> Iterator[tuple[Record, str]]:
    for row in rows:
        at, kind = str(row.get("name", "")).rstrip(".").lower(), str(row.get("type", ""))
        if (at == name and kind in TAKING) or (at == mark_name(name) and kind == "TXT"):
            content = str(row.get("content", ""))
            yield Record(at, kind, plain_txt(content) if kind == "TXT" else content.rstrip(".").lower()), str(row["id"])
