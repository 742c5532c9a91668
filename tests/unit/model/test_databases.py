"""Names, addresses and verifiers of data stores."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.databases import (
    LONGEST_NAME,
    Access,
    DatabaseKind,
    allocate_port,
    aside_name,
    database_name,
    redis_rules,
    scram_verifier,
)
from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment

PROJECTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,38}[a-z0-9]", fullmatch=True)
POSTGRES, REDIS = DatabaseKind.POSTGRES, DatabaseKind.REDIS


def test_a_verifier_is_that_of_the_examples_in_rfc_7677() -> None:
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    keys = scram_verifier("pencil", salt).rpartition("$")[2].split(":")
    nonces = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    said = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonces},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonces}"
    stored, server = (base64.b64decode(key) for key in keys)
    assert (
        base64.b64encode(hmac.digest(server, said.encode(), "sha256"))
        == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    )
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signed = hmac.digest(stored, said.encode(), "sha256")
    client = bytes(one ^ other for one, other in zip(proof, signed, strict=True))
    assert hashlib.sha256(client).digest() == stored


def test_passwords_that_saslprep_would_change_are_refused() -> None:
    for password in ("é", "a\n", "\u00a0", "\x7f"):
        with pytest.raises(ValueError, match="ASCII"):
            scram_verifier(password, b"salt")


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60), st.sampled_from(DatabaseKind)
)
def test_any_password_comes_out_of_the_url_as_it_went_in(password: str, kind: DatabaseKind) -> None:
    access = Access(kind=kind, host="192.0.2.3", port=5450, name="da_rak")
    values = access.variables(password)
    parts = urlsplit(values[access.main])
    assert unquote(parts.password or "") == password
    assert (parts.hostname, parts.port, parts.username) == ("192.0.2.3", 5450, "da_rak")
    assert access.is_ours(values)
    assert not access.is_ours({access.main: values[access.main].replace("192.0.2.3", "192.0.2.4")})
    assert not access.is_ours({})


def test_an_ipv6_address_stands_in_brackets() -> None:
    access = Access(kind=POSTGRES, host="2001:db8::3", port=5432, name="shop")
    assert access.variables("x")["DATABASE_URL"] == "postgresql://shop:x@[2001:db8::3]:5432/shop"
    assert access.is_ours(access.variables("x"))


def test_names_are_those_of_the_guide() -> None:
    assert database_name("worb", Environment.PRODUCTION, ()) == "worb"
    assert database_name("da-rak", Environment.PRODUCTION, ()) == "da_rak"
    assert database_name("worb", Environment.STAGING, ()) == "worb_staging"


@given(st.sets(st.tuples(PROJECTS, st.sampled_from(Environment)), max_size=20))
def test_names_are_unique_short_and_never_the_servers_own(wanted: set[tuple[str, Environment]]) -> None:
    taken: set[str] = {"postgres"}
    for project, environment in sorted(wanted):
        name = database_name(project, environment, taken)
        assert name not in taken
        assert len(name) <= LONGEST_NAME
        assert not name.startswith("pg_")
        taken.add(name)


@pytest.mark.parametrize("project", ["postgres", "template1", "public", "codeb", "pg-monitor", "default"])
def test_reserved_words_get_another_name(project: str) -> None:
    assert database_name(project, Environment.PRODUCTION, ()) != project.replace("-", "_")


def test_names_aside_stay_different_and_short() -> None:
    stamp = "20261123t171521"
    names = {aside_name("a" * 50 + end, stamp) for end in ("x", "y", "z")}
    assert len(names) == 3
    assert all(len(name) <= LONGEST_NAME and name.endswith(f"_deleted_{stamp}") for name in names)


def test_ports_are_the_guides_and_the_shared_ones_are_nobodys() -> None:
    assert allocate_port(POSTGRES, (), None) == 5433
    assert allocate_port(REDIS, {6380}, None) == 6381
    assert (allocate_port(POSTGRES, (), 5450), allocate_port(REDIS, (), 6400)) == (5450, 6400)
    for kind, port in ((POSTGRES, 5432), (REDIS, 6379), (POSTGRES, 6400), (REDIS, 5450), (REDIS, 6500)):
        with pytest.raises(Conflict):
            allocate_port(kind, (), port)
    with pytest.raises(Conflict):
        allocate_port(POSTGRES, range(5432, 5500), None)


def test_a_user_of_a_shared_redis_gets_its_own_keys_only() -> None:
    rules = redis_rules("shop:production:", "0" * 64)
    assert rules[0] == "reset"
    assert [word for word in rules if word.startswith(("~", "&"))] == ["~shop:production:*", "&shop:production:*"]
    assert {"-@dangerous", "-@admin", "-scan", "-client|tracking"} <= set(rules)
