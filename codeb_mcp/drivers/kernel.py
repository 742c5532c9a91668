"""The kernel's view of this host: which TCP ports are taken, whoever took them."""

from __future__ import annotations

from pathlib import Path

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.errors import DriverUnavailable
from codeb_mcp.model.server_facts import listeners

_TABLES = ("tcp", "tcp6")


class KernelPorts:
    """Listening TCP sockets of the network namespace this process runs in. Implements `Ports`."""

    def __init__(self, tables: Path = Path("/proc/net")) -> None:
        self._tables = tables

    async def listening(self) -> frozenset[int]:
        """Ports that something listens on, on any address, IPv4 or IPv6.

        Raises DriverUnavailable when the kernel shows neither table: "no port is taken" must never be a guess.
        """
        texts = [text for name in _TABLES if (text := self._read(name)) is not None]
        if not texts:
            raise DriverUnavailable(
                f"the kernel's socket tables cannot be read in {self._tables}",
                hint="Run on Linux with /proc mounted.",
            )
        return frozenset(one.port for text in texts for one in listeners(text))

    def _read(self, name: str) -> str | None:
        try:
            return (self._tables / name).read_text(encoding="ascii")
        except OSError:
            return None  # a host without IPv6 has no tcp6


class HostPorts:
    """Listening TCP sockets of a server. Implements `Ports`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def listening(self) -> frozenset[int]:
        """See `KernelPorts.listening`."""
        texts = [text for name in _TABLES if (text := await self._host.read(f"/proc/net/{name}")) is not None]
        if not texts:
            raise DriverUnavailable(
                f"{self._host.key} shows no socket tables in /proc/net", hint="It has to run Linux with /proc mounted."
            )
        return frozenset(one.port for text in texts for one in listeners(text.decode("ascii", "replace")))
