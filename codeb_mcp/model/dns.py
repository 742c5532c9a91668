"""What may be changed in a DNS zone, decided from what stands there: nothing that somebody else wrote is ever touched.

Each name whose addresses we write has a mark beside it, a TXT record at `_codeb.{name}` that says whose they are and which
values were written. Values that no mark names are foreign, also at the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.redaction import clean_text

TAKING = ("A", "AAAA", "CNAME")
"""Types that decide where a name leads."""
TXT_PART = 255
_MARK = re.compile(r"codeb owner=(?P<owner>[A-Za-z0-9._/-]{1,120}) for=(?P<values>[0-9a-f.:,]{0,600})")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """One value of one name, without a final dot; a TXT value is its plain text."""

    name: str
    type: str
    value: str


@dataclass(frozen=True, slots=True)
class Wish:
    """These addresses at this name, written in the name of `owner`."""

    name: str
    owner: str
    addresses: tuple[str, ...]

    @property
    def records(self) -> frozenset[Record]:
        """The records that are to be there."""
        return frozenset(address_record(self.name, address) for address in self.addresses)


@dataclass(frozen=True, slots=True)
class Change:
    """Records to take away and to add, all of them or none."""

    delete: frozenset[Record] = frozenset()
    add: frozenset[Record] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.delete or self.add)


def address_record(name: str, address: str) -> Record:
    """The record for an address; raises ValueError for a text that is none."""
    parsed = ip_address(address)
    return Record(name, "AAAA" if isinstance(parsed, IPv6Address) else "A", str(parsed))


def mark_name(name: str) -> str:
    """Where the mark of a name stands."""
    return f"_codeb.{name}"


def mark_of(name: str, owner: str, values: Iterable[str]) -> Record:
    """The mark that names these values."""
    return Record(mark_name(name), "TXT", f"codeb owner={owner} for={','.join(sorted(values))}")


def txt_parts(value: str) -> list[str]:
    """A TXT value in parts that a record can hold."""
    return [value[start : start + TXT_PART] for start in range(0, len(value), TXT_PART)] or [""]


def to_have(present: Iterable[Record], wish: Wish) -> Change:
    """What makes the wish true. Raises Conflict when the name belongs to somebody else: it has other addresses, is an
    alias, or carries another owner's mark."""
    held, marks = _sorted_out(present, wish.name)
    others = sorted(owner for owner in marks if owner != wish.owner)
    if others:
        raise Conflict(
            f"{wish.name} is marked as {others[0]}'s in its zone",
            hint=f"Delete the domain there first, or remove the record {mark_name(wish.name)} if nobody uses it.",
            name=wish.name,
        )
    mark, values = marks.get(wish.owner, (None, frozenset()))
    mine = frozenset(record for record in held if record.type != "CNAME" and record.value in values)
    foreign = held - mine
    if foreign - wish.records:
        raise _foreign(wish.name, foreign - wish.records)
    written = wish.records - foreign
    wanted_mark = mark_of(wish.name, wish.owner, (record.value for record in written)) if written else None
    delete = set(mine - wish.records) | ({mark} if mark and mark != wanted_mark else set())
    add = set(wish.records - held) | ({wanted_mark} if wanted_mark and mark != wanted_mark else set())
    return Change(frozenset(delete), frozenset(add))


def to_remove(present: Iterable[Record], name: str, owner: str) -> Change:
    """What takes away everything that was written for this owner, and nothing else."""
    held, marks = _sorted_out(present, name)
    if owner not in marks:
        return Change()
    mark, values = marks[owner]
    mine = {record for record in held if record.type != "CNAME" and record.value in values}
    return Change(frozenset({*mine, mark}))


def _sorted_out(
    present: Iterable[Record], name: str
) -> tuple[frozenset[Record], dict[str, tuple[Record, frozenset[str]]]]:
    held, marks = set(), {}
    for record in present:
        if record.name == name and record.type in TAKING:
            held.add(record)
        elif record.name == mark_name(name) and (found := _MARK.fullmatch(record.value)):
            marks[found["owner"]] = (record, frozenset(found["values"].split(",")))
    return frozenset(held), marks


def _foreign(name: str, records: Iterable[Record]) -> Conflict:
    shown = ", ".join(f"{one.type} {clean_text(one.value, limit=100)}" for one in sorted(records)[:5])
    return Conflict(
        f"{name} already has records that were not written by CodeB: {shown}",
        hint="Remove them in the zone if the domain shall lead here, or say provider manual to leave the zone alone.",
        name=name,
        records=[{"type": one.type, "value": clean_text(one.value, limit=100)} for one in sorted(records)[:20]],
    )


def zone_of(zones: Mapping[str, V], name: str) -> tuple[str, V] | None:
    """The zone that the name lies in, the most exact of several; None when none of these."""
    labels = name.split(".")
    tails = (".".join(labels[start:]) for start in range(len(labels)))
    return next(((tail, zones[tail]) for tail in tails if tail in zones), None)


@dataclass(frozen=True, slots=True)
class Caa:
    """One CAA record: which authority may issue."""

    flags: int
    tag: str
    value: str


def caa_problem(records: Sequence[Caa], allowed: Sequence[str]) -> str | None:
    """Why the nearest CAA record set forbids a certificate from these authorities; None when it does not (RFC 8659)."""
    if not records:
        return None
    unknown = [one.tag for one in records if one.flags & 128 and one.tag not in ("issue", "issuewild", "iodef")]
    if unknown:
        return f"a critical CAA record with the unknown tag {unknown[0]!r:.40} forbids certificates"
    named = [one.value.split(";")[0].strip().lower() for one in records if one.tag == "issue"]
    if not named or set(named) & {one.lower() for one in allowed}:
        return None
    who = ", ".join(clean_text(one, limit=60) for one in sorted(filter(None, named))[:5]) or "nobody"
    return f"CAA allows certificates from {who}, not from {', '.join(allowed)}"


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found out about a name before anything is asked of an authority. `addresses`: where it leads;
    `unreachable`: address and reason where our proxy did not answer; `problems`: what could not be found out."""

    addresses: tuple[str, ...]
    ours: tuple[str, ...]
    caa: str | None = None
    unreachable: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def pointing(self) -> bool:
        """Whether the name leads here and nowhere else."""
        return bool(self.addresses) and not self._elsewhere() and not self.problems

    def all_problems(self, name: str) -> list[str]:
        """Everything that speaks against asking for a certificate, in words."""
        found = list(self.problems)
        if not self.addresses and not self.problems:
            found.append(f"{name} has no address yet")
        if elsewhere := self._elsewhere():
            found.append(f"{name} also leads to {', '.join(elsewhere[:5])}, which is not ours")
        found += [f"{address} does not reach our proxy over HTTP: {why}" for address, why in self.unreachable]
        return [*found, *([self.caa] if self.caa else [])]

    def _elsewhere(self) -> list[str]:
        ours = {str(ip_address(one)) for one in self.ours}
        return [one for one in self.addresses if one not in ours]
