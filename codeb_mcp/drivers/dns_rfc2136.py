"""A zone on a name server that takes dynamic updates (RFC 2136), signed with TSIG.

Each update carries what was read as its prerequisites, so that the server itself refuses it when anything at the name has
changed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from codeb_mcp.drivers.dns import read_secret
from codeb_mcp.model.dns import TAKING, Change, Record, mark_name, txt_parts
from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable

if TYPE_CHECKING:
    from dns.message import Message
    from dns.tsig import Key

_CHANGED = frozenset({"YXDOMAIN", "YXRRSET", "NXRRSET", "NXDOMAIN"})


@dataclass(frozen=True, slots=True)
class TsigKey:
    """What signs: the key's name and algorithm, and the file that holds its secret (base64, as tsig-keygen prints it)."""

    name: str
    secret_file: Path
    algorithm: str = "hmac-sha256"


class UpdateZone:
    """Implements `Zone`. `server` is `address` or `address:port`; without a key updates go unsigned."""

    def __init__(
        self, zone: str, server: str, *, key: TsigKey | None = None, ttl: int = 300, timeout_seconds: float = 5.0
    ) -> None:
        self._zone = zone
        self._server = server
        self._address, self._port = split_address(server)
        self._tsig = key
        self._ttl = ttl
        self._seconds = timeout_seconds

    async def read(self, name: str) -> frozenset[Record]:
        """See `Zone.read`."""
        sets = await asyncio.gather(*(self._read(at, kind) for at, kind in _places(name)))
        return frozenset(record for one in sets for record in one)

    async def _read(self, at: str, kind: str) -> list[Record]:
        import dns.flags
        import dns.message

        query = dns.message.make_query(at + ".", kind)
        query.flags &= ~dns.flags.RD
        answer = await self._ask(query)
        if (code := _code(answer)) not in ("NOERROR", "NXDOMAIN"):
            raise self._refused("the question", code)
        return list(_records(answer, at, kind))

    async def write(self, change: Change, seen: frozenset[Record]) -> bool:
        """See `Zone.write`."""
        from dns.update import UpdateMessage

        name = next(iter(change.delete | change.add)).name.removeprefix("_codeb.")
        update = UpdateMessage(self._zone + ".")
        for at, kind in _places(name):
            values = [_text(record) for record in sorted(seen) if (record.name, record.type) == (at, kind)]
            if values:
                update.present(at + ".", kind, *values)
            else:
                update.absent(at + ".", kind)
        for record in sorted(change.delete):
            update.delete(record.name + ".", record.type, _text(record))
        for record in sorted(change.add):
            update.add(record.name + ".", self._ttl, record.type, _text(record))
        code = _code(await self._ask(update))
        if code in _CHANGED:
            return False
        if code != "NOERROR":
            raise self._refused("the update", code)
        return True

    async def close(self) -> None:
        """Each question has its own connection."""

    async def _ask(self, message: Message) -> Message:
        """A question goes over UDP, since servers take few TCP connections at once; an update must not be made twice and goes
        over TCP, like an answer that is too long or does not come."""
        import dns.asyncquery
        import dns.exception
        import dns.opcode

        async with self._errors():
            if self._tsig is not None:
                message.use_tsig(self._key(self._tsig))
            if message.opcode() == dns.opcode.QUERY:
                with contextlib.suppress(dns.exception.Timeout):
                    answer, _ = await dns.asyncquery.udp_with_fallback(
                        message, self._address, port=self._port, timeout=self._seconds / 2, ignore_unexpected=True
                    )
                    return answer
            return await dns.asyncquery.tcp(message, self._address, port=self._port, timeout=self._seconds)

    def _key(self, tsig: TsigKey) -> Key:
        import binascii

        from dns.tsig import Key

        secret = read_secret(tsig.secret_file, self._zone)
        try:
            return Key(f"{tsig.name}.", secret, tsig.algorithm)
        except (ValueError, binascii.Error):
            raise DriverRefused(
                f"{tsig.secret_file} does not hold a TSIG secret (base64)",
                hint="Copy the secret that tsig-keygen printed.",
            ) from None

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        import dns.exception
        import dns.tsig

        where = f"zone {self._zone} at {self._server}"
        try:
            async with asyncio.timeout(self._seconds * 2):
                yield
        except CodebError:
            raise
        except (TimeoutError, dns.exception.Timeout):
            raise DeadlineExceeded(
                f"{where}: no answer within {self._seconds:g} s", hint="Look at the name server.", zone=self._zone
            ) from None
        except (dns.tsig.PeerError, dns.tsig.BadSignature, dns.tsig.BadTime, dns.exception.DNSException) as error:
            raise DriverRefused(
                f"{where}: the signed exchange failed ({type(error).__name__})",
                hint="Compare key name, algorithm, secret and clock with the name server's.",
                zone=self._zone,
            ) from None
        except (OSError, EOFError) as error:
            raise DriverUnavailable(
                f"{where} cannot be reached: {type(error).__name__}",
                hint="Start the name server or correct its address.",
            ) from None

    def _refused(self, what: str, code: str) -> CodebError:
        kind: type[CodebError] = DriverUnavailable if code == "SERVFAIL" else DriverRefused
        return kind(
            f"zone {self._zone} at {self._server}: {what} was answered with {code}",
            hint="See that the server has this zone and that the key may update it.",
            zone=self._zone,
        )


def split_address(text: str, port: int = 53) -> tuple[str, int]:
    """Address and port of `192.0.2.1`, `192.0.2.1:53`, `2001:db8::1` or `[2001:db8::1]:53`. Raises ValueError."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        number = rest.removeprefix(":")
    elif text.count(":") > 1:
        host, number = text, ""
    else:
        host, _, number = text.partition(":")
    ip_address(host)
    if number and not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        raise ValueError("has a port that is none")
    return host, int(number) if number else port


def _places(name: str) -> list[tuple[str, str]]:
    """Where a name's addresses and its mark stand, and of which type they are."""
    return [*((name, kind) for kind in TAKING), (mark_name(name), "TXT")]


def _code(answer: Message) -> str:
    import dns.rcode

    return str(dns.rcode.to_text(answer.rcode()))


def _records(answer: Message, at: str, kind: str) -> Iterable[Record]:
    for rrset in answer.answer:
        if str(rrset.name).rstrip(".").lower() != at:
            continue
        for rdata in rrset:
            got = rdata.rdtype.name
            if got != kind:
                continue
            if got == "TXT":
                yield Record(at, got, b"".join(rdata.strings).decode("utf-8", "replace"))
            else:
                yield Record(at, got, rdata.to_text().rstrip(".").lower())


def _text(record: Record) -> str:
    """A value as zone files write it."""
    if record.type == "TXT":
        return " ".join('"' + _escaped(part) + '"' for part in txt_parts(record.value))
    return record.value + "." if record.type == "CNAME" else record.value


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace('"', '\\"')
