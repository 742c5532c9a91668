"""What may be changed in a zone: the wish comes true or is refused, and nothing foreign is ever among what is deleted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.dns import (
    Caa,
    Preflight,
    Record,
    Wish,
    address_record,
    caa_problem,
    mark_name,
    mark_of,
    to_have,
    to_remove,
    txt_parts,
    zone_of,
)
from codeb_mcp.model.errors import Conflict

NAME, OWNER, OTHER = "www.example.com", "0123/shop", "0123/blog"
POOL = ("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1")
ADDRESSES = st.frozensets(st.sampled_from(POOL), max_size=4)
MARKS = st.sampled_from([None, OWNER, OTHER])


def _present(held: frozenset[str], marked: frozenset[str], owner: str | None, *, alias: bool) -> frozenset[Record]:
    records = {address_record(NAME, one) for one in held}
    records |= {mark_of(NAME, owner, marked)} if owner else set()
    records |= {Record(NAME, "CNAME", "elsewhere.example")} if alias else set()
    return frozenset({*records, Record(mark_name(NAME), "TXT", "what somebody else noted")})


@given(held=ADDRESSES, marked=ADDRESSES, owner=MARKS, alias=st.booleans(), wanted=ADDRESSES.filter(bool))
def test_a_change_deletes_only_what_our_mark_names_and_ends_with_the_wish(
    held: frozenset[str], marked: frozenset[str], owner: str | None, alias: bool, wanted: frozenset[str]
) -> None:
    present = _present(held, marked, owner, alias=alias)
    wish = Wish(NAME, OWNER, tuple(sorted(wanted)))
    ours = {address_record(NAME, one) for one in held & marked} if owner == OWNER else set()
    ours |= {mark_of(NAME, OWNER, marked)} if owner == OWNER else set()
    assert to_remove(present, NAME, OWNER).delete == ours
    try:
        change = to_have(present, wish)
    except Conflict:
        foreign = {address_record(NAME, one) for one in held} - ours
        assert alias or owner == OTHER or foreign - wish.records
        return
    assert change.delete <= ours
    after = (present - change.delete) | change.add
    assert {one for one in after if one.name == NAME} == wish.records
    assert not to_have(after, wish)
    gone = after - to_remove(after, NAME, OWNER).delete
    assert {one for one in gone if one.name == NAME} == {one for one in present if one.name == NAME} - ours


@pytest.mark.parametrize(
    "text", ["codeb owner=0123/shop", "codeb owner= for=", "codeb owner=0123/shop for=192.0.2.1 ", "v=spf1"]
)
def test_a_text_that_is_nearly_a_mark_is_foreign(text: str) -> None:
    present = {address_record(NAME, "192.0.2.1"), Record(mark_name(NAME), "TXT", text)}
    assert not to_remove(present, NAME, OWNER)


def test_what_a_zone_holds_cannot_steer_a_terminal() -> None:
    with pytest.raises(Conflict) as caught:
        to_have({Record(NAME, "CNAME", "evil\x1b[2J\u202e.example")}, Wish(NAME, OWNER, POOL))
    assert "\x1b" not in f"{caught.value.message}{caught.value.detail}"
    assert "\u202e" not in f"{caught.value.message}{caught.value.detail}"


def test_a_long_mark_is_stored_in_parts() -> None:
    value = mark_of(NAME, OWNER, [f"2001:db8:{number:x}::1" for number in range(40)]).value
    assert "".join(txt_parts(value)) == value
    assert max(map(len, txt_parts(value))) <= 255


def test_the_most_exact_zone_counts() -> None:
    zones = {"example.com": 1, "apps.example.com": 2}
    assert zone_of(zones, "a.apps.example.com") == ("apps.example.com", 2)
    assert zone_of(zones, "example.com") == ("example.com", 1)
    assert zone_of(zones, "notexample.com") is None


@pytest.mark.parametrize(
    ("records", "allowed"),
    [
        ([], True),
        ([Caa(0, "issue", "letsencrypt.org")], True),
        ([Caa(0, "issue", "LetsEncrypt.org; validationmethods=http-01")], True),
        ([Caa(0, "issue", "other.example"), Caa(0, "issue", "letsencrypt.org")], True),
        ([Caa(0, "issue", "other.example")], False),
        ([Caa(0, "issue", ";")], False),
        ([Caa(0, "issuewild", ";"), Caa(0, "iodef", "mailto:a@example.com")], True),
        ([Caa(128, "tbs", "unknown")], False),
        ([Caa(0, "tbs", "unknown")], True),
    ],
)
def test_caa_is_read_as_the_standard_says(records: list[Caa], allowed: bool) -> None:
    assert (caa_problem(records, ("letsencrypt.org",)) is None) is allowed


def test_a_name_leads_here_only_when_it_leads_nowhere_else() -> None:
    assert Preflight(("2001:db8::1",), ("2001:DB8::1",)).pointing
    assert not Preflight((), ("192.0.2.1",)).pointing
    assert not Preflight(("192.0.2.1", "192.0.2.9"), ("192.0.2.1",)).pointing
    assert not Preflight(("192.0.2.1",), ("192.0.2.1",), problems=("nobody knows",)).pointing
