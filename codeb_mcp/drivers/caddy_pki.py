"""The root certificate of Caddy's own authority, from its admin API: nobody has to copy it to believe what Caddy serves here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from codeb_mcp.drivers.caddy_admin import CaddyAdmin, Locate
from codeb_mcp.model.errors import DriverRefused

AUTHORITY = "local"


def internal_root(admin: str, *, locate: Locate | None = None) -> Callable[[], Awaitable[str | None]]:
    """Asks the Caddy with that admin address each time, since it makes its authority only when it needs it."""

    async def ask() -> str | None:
        client = CaddyAdmin(admin, locate=locate)
        try:
            found = await client.get(f"/pki/ca/{AUTHORITY}")
        finally:
            await client.close()
        root = found.value.get("root_certificate") if found is not None and isinstance(found.value, dict) else None
        if not isinstance(root, str):
            raise DriverRefused("caddy has no authority of its own", hint="Set proxy.tls to internal.")
        return root

    return ask
