"""Our own front door as others find it: whether an address leads to this proxy, and which certificate a name is served with."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, Name

HANDSHAKE_SECONDS = 5.0
KNOCK_SECONDS = 5.0
NOBODY = "codeb-proof.invalid"


@dataclass(frozen=True, slots=True)
class Served:
    """A certificate as it is served. `trusted`: a client that believes the configured authority accepts it for that name;
    `problem` says why not."""

    names: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    trusted: bool
    problem: str = ""


class Outside(Protocol):
    """Asks for our own addresses and names as a stranger would."""

    async def knock(self, address: str, path: str) -> Answer:
        """GET over plain HTTP at that very address, for a host that nobody has; never raises, the answer's `problem`
        tells. A host that somebody has might be redirected."""
        ...

    async def certificate(self, host: str) -> Served:
        """The certificate of a real handshake for that name at the public listener. Raises DriverUnavailable when there
        is none or nobody listens, DeadlineExceeded."""
        ...


async def the_systems() -> str | None:
    """The root certificates that this host believes anyway."""
    return None


def from_file(path: Path) -> Callable[[], Awaitable[str | None]]:
    """Root certificates in a file, read each time, since it may be made later or renewed."""

    async def read() -> str | None:
        return path.read_text(encoding="ascii")

    return read


class NetworkOutside:
    """Implements `Outside`. `public` is the public TLS listener (`host:port`); `http_port` is where plain HTTP arrives at our
    addresses; `authority` tells the root certificates to believe (PEM), or None for those of the system."""

    def __init__(
        self, public: str, *, http_port: int = 80, authority: Callable[[], Awaitable[str | None]] = the_systems
    ) -> None:
        self._host, _, port = public.rpartition(":")
        self._port = int(port)
        self._http_port = http_port
        self._authority = authority

    async def knock(self, address: str, path: str) -> Answer:
        """See `Outside.knock`."""
        from codeb_mcp.drivers.probe import HttpProber

        prober = HttpProber(address=address, port=self._http_port)
        try:
            return await prober.public(NOBODY, path, timeout_seconds=KNOCK_SECONDS)
        finally:
            await prober.close()

    async def certificate(self, host: str) -> Served:
        """See `Outside.certificate`."""
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE  # looks at what is served; whether to believe it is asked next
        encoded = await self._shake(host, blind)
        problem = await self._distrust(host)
        return _read(encoded, problem)

    async def _distrust(self, host: str) -> str:
        """Why a client would not believe it; empty when it would."""
        try:
            context = ssl.create_default_context(cadata=await self._authority())
        except CodebError as error:
            return f"the authority's root certificate is not to be had: {error.message}"
        except (OSError, ValueError, ssl.SSLError) as error:
            return f"the authority's root certificate cannot be used: {type(error).__name__}"
        try:
            await self._shake(host, context)
        except DriverRefused as refused:
            return refused.message
        return ""

    async def _shake(self, host: str, context: ssl.SSLContext) -> bytes:
        where = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                _, writer = await asyncio.open_connection(self._host, self._port, ssl=context, server_hostname=host)
        except TimeoutError:
            raise DeadlineExceeded(
                f"no TLS handshake for {host} at {where} within {HANDSHAKE_SECONDS:g} s", hint="Look at the proxy."
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise DriverRefused(error.verify_message.lower().rstrip("."), hint="Look at the authority.") from None
        except (OSError, ssl.SSLError) as error:
            words = getattr(error, "reason", None) or type(error).__name__
            raise DriverUnavailable(
                f"{host} is served no certificate at {where}: {words}",
                hint="See with domain_verify whether it may have one yet; the proxy's log tells what the authority said.",
            ) from None
        try:
            encoded = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
        return bytes(encoded or b"")


def _read(encoded: bytes, problem: str) -> Served:
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(encoded)
    return Served(
        names=tuple(sorted(_names(certificate))),
        issuer=_common_name(certificate.issuer),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        trusted=not problem,
        problem=problem,
    )


def _names(certificate: Certificate) -> list[str]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [_common_name(certificate.subject)]
    return list(found.get_values_for_type(x509.DNSName))


def _common_name(name: Name) -> str:
    from cryptography.x509.oid import NameOID

    found = name.get_attributes_for_oid(NameOID.COMMON_NAME) or name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    text = str(found[0].value) if found else name.rfc4514_string()
    return "".join(char if char.isprintable() else " " for char in text)[:200]
