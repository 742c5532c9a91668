"""JSON over HTTP as DNS providers speak it: time limits, typed errors that name zone and server, no secret in any of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from codeb_mcp.model.errors import DeadlineExceeded, DriverRefused, DriverUnavailable

if TYPE_CHECKING:
    from httpx2 import AsyncClient

_WORDS = 200
LARGEST_ANSWER = 8 << 20


class JsonApi:
    """One provider's API. `headers` are made anew for each call, since they hold a secret read from a file."""

    def __init__(
        self, base: str, zone: str, headers: Callable[[], Mapping[str, str]], *, timeout_seconds: float
    ) -> None:
        self._base = base.rstrip("/")
        self._where = f"zone {zone} at {self._base}"
        self._zone = zone
        self._headers = headers
        self._seconds = timeout_seconds
        self._client: AsyncClient | None = None

    async def call(self, method: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None) -> Any:
        """The parsed answer; None for an empty one. Raises NotFound-like refusals as DriverRefused with `status`."""
        import httpx2

        headers = {"Accept": "application/json", **self._headers()}
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._connected().request(method, path, json=body, params=query, headers=headers)
        except (TimeoutError, httpx2.TimeoutException):
            raise DeadlineExceeded(
                f"{self._where}: no answer within {self._seconds:g} s", hint="Look at the provider.", zone=self._zone
            ) from None
        except (httpx2.HTTPError, OSError, httpx2.InvalidURL) as error:
            raise DriverUnavailable(
                f"{self._where} cannot be reached: {type(error).__name__}",
                hint="Start the provider's server or correct its address.",
                zone=self._zone,
            ) from None
        return self._parsed(answer.status_code, answer.content)

    def _parsed(self, status: int, content: bytes) -> Any:
        try:
            value = json.loads(content) if content else None
        except ValueError:
            value = None
            if 200 <= status < 300:
                raise self.refusal(status, "what answers is not its API") from None
        if not 200 <= status < 300:
            raise self.refusal(status, _words(value))
        return value

    def refusal(self, status: int, words: str) -> DriverRefused | DriverUnavailable:
        """The error for a call that was answered no."""
        kind = DriverUnavailable if status == 429 or status >= 500 else DriverRefused
        hint = {
            401: "The secret is not accepted: renew it in its file.",
            403: "The secret is not accepted or may not change this zone.",
            404: "See that the provider has this zone.",
        }.get(status, "Read the provider's words.")
        return kind(f"{self._where}: answered {status}: {words}", hint=hint, zone=self._zone, status=status)

    async def close(self) -> None:
        """Let go of connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _connected(self) -> AsyncClient:
        if self._client is None:
            import httpx2

            self._client = httpx2.AsyncClient(
                base_url=self._base, timeout=self._seconds, follow_redirects=False, trust_env=False
            )
        return self._client


def _words(value: Any) -> str:
    """The provider's own explanation: printable, short."""
    said = value.get("error") or value.get("errors") if isinstance(value, dict) else None
    if isinstance(said, list):
        said = "; ".join(str(one.get("message", "")) if isinstance(one, dict) else str(one) for one in said[:3])
    text = " ".join("".join(char if char.isprintable() else " " for char in str(said or "")).split())
    return text[:_WORDS] or "nothing"
