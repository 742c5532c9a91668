"""Keys, roles and scopes."""

from __future__ import annotations

import random
import string
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.access import (
    BASE62,
    KeyRecord,
    Role,
    compose_key,
    find_key,
    in_scope,
    key_hash,
    looks_like_key,
    scope_problem,
)
from tests.unit.model.plans import NOW

SECRETS = st.text(alphabet=BASE62, min_size=30, max_size=30)
TEAMS = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?\Z")


@given(TEAMS, st.sampled_from(Role), SECRETS)
def test_every_key_we_make_is_recognised(team: str, role: Role, secret: str) -> None:
    key = compose_key(team, role, secret)
    assert looks_like_key(key)
    assert key.startswith(f"codeb_{team}_{role}_{secret}")
    assert len(key.rpartition("_")[2]) == 36


def test_a_key_is_what_it_was_when_keys_were_first_given_out() -> None:
    assert compose_key("default", Role.ADMIN, "a" * 30) == "codeb_default_admin_" + "a" * 30 + "3GHnbP"


def test_every_single_wrong_character_is_noticed() -> None:
    for seed in range(3):
        rng = random.Random(seed)
        key = compose_key("my-team", Role.MEMBER, "".join(rng.choices(BASE62, k=30)))
        for position in range(len(key)):
            for wrong in string.ascii_letters + string.digits + "-_ .é":
                if wrong != key[position]:
                    typo = key[:position] + wrong + key[position + 1 :]
                    assert not looks_like_key(typo), f"seed {seed}: {typo}"


def test_a_missing_doubled_or_swapped_character_is_noticed() -> None:
    key = compose_key("default", Role.OWNER, "".join(random.Random(7).choices(BASE62, k=30)))
    start = len("codeb_default_owner_")
    for position in range(start, len(key)):
        assert not looks_like_key(key[:position] + key[position + 1 :])
        assert not looks_like_key(key[:position] + key[position] + key[position:])
        if position > start and key[position] != key[position - 1]:
            assert not looks_like_key(key[: position - 1] + key[position] + key[position - 1] + key[position + 1 :])


@pytest.mark.parametrize("key", ["codeb_default_admin_a1b2c3d4e5f6g7h8", "codeb_myteam_member_x9y8z7w6v5u4t3s2"])
def test_the_guides_short_keys_have_no_checksum_and_may_be_looked_up(key: str) -> None:
    assert looks_like_key(key)


@pytest.mark.parametrize(
    "text",
    [
        "", "codeb", "codeb_", "codeb___", "codeb_default_admin", "codeb_default_admin_", "codeb_default_admin_short",
        "codeb_default_admin_" + "a" * 36, "codeb_default_admin_" + "a" * 40, "other_default_admin_a1b2c3d4e5f6g7h8",
        "codeb_default_ad min_a1b2c3d4e5f6g7h8", "codeb_default_admin_a1b2c3d4e5f6g7h\x00", "codeb_" + "a" * 300 + "_x_" + "1" * 20,
        "codeb_default_admin_a1b2c3d4e5f6g7hé", " codeb_default_admin_a1b2c3d4e5f6g7h8", "codeb_default_admin_a1b2c3d4e5f6g7h8\n",
        "Bearer codeb_default_admin_a1b2c3d4e5f6g7h8", "codeb__a1b2c3d4e5f6g7h8",
    ],
)  # fmt: skip
def test_what_is_no_key_is_turned_away_before_any_look_up(text: str) -> None:
    assert not looks_like_key(text)


@given(st.text(max_size=60))
def test_no_text_breaks_the_look(text: str) -> None:
    assert looks_like_key(text) in (True, False)


def test_a_key_is_found_by_its_hash_only() -> None:
    keys = {"key_1": {"keyHash": key_hash("a")}, "key_2": {"keyHash": key_hash("b")}, "key_3": {}}
    assert find_key(keys, key_hash("b")) == "key_2"
    assert find_key(keys, key_hash("c")) is None


def test_each_role_covers_itself_and_the_ones_below() -> None:
    order = [Role.VIEWER, Role.MEMBER, Role.ADMIN, Role.OWNER]
    assert [role.level for role in order] == [1, 2, 3, 4]
    for mine, role in enumerate(order):
        assert [role.covers(other) for other in order] == [theirs <= mine for theirs in range(4)]


# ── scopes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "scope",
    ["project:shop", "environment:staging", "tool:slot_*", "source:192.0.2.0/24", "source:::1", "source:192.0.2.7/24"],
)
def test_a_scope_of_the_right_shape_is_accepted(scope: str) -> None:
    assert scope_problem(scope) is None


@pytest.mark.parametrize(
    "scope", ["", "project", "project:", "PROJECT:shop", "team:a", ":x", "*", "source:somewhere", "source:1.2.3.4.5"]
)
def test_a_scope_of_another_shape_is_refused(scope: str) -> None:
    assert scope_problem(scope)


def test_a_scope_has_an_end() -> None:
    assert scope_problem("project:" + "a" * 100)


@pytest.mark.parametrize(
    ("scopes", "kind", "value", "allowed"),
    [
        ((), "project", "shop", True),
        ((), "project", None, True),
        (("project:shop",), "project", "shop", True),
        (("project:shop",), "project", "shop2", False),
        (("project:shop",), "project", None, False),
        (("project:shop", "project:blog"), "project", "blog", True),
        (("project:shop-*",), "project", "shop-a", True),
        (("project:shop",), "environment", "production", True),
        (("tool:slot_*",), "tool", "slot_status", True),
        (("tool:slot_*",), "tool", "deploy", False),
        (("source:192.0.2.0/24",), "source", "192.0.2.9", True),
        (("source:192.0.2.0/24",), "source", "192.0.3.9", False),
        (("source:192.0.2.0/24",), "source", None, False),
        (("source:2001:db8::/32",), "source", "2001:db8::7", True),
        (("source:192.0.2.0/24",), "source", "2001:db8::7", False),
        (("source:192.0.2.0/24",), "source", "::ffff:192.0.2.9", True),
        (("source:192.0.2.0/24",), "source", "a.host.name", False),
    ],
)
def test_a_scope_limits_its_kind_and_nothing_else(
    scopes: tuple[str, ...], kind: str, value: str | None, allowed: bool
) -> None:
    assert in_scope(scopes, kind, value) is allowed


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────

RECORD = KeyRecord(
    id="key_1", key_hash="h", name="ci", team_id="default", role=Role.MEMBER, created_at=NOW, created_by="init"
)


@pytest.mark.parametrize(
    ("update", "usable"),
    [
        ({}, True),
        ({"expires_at": NOW + timedelta(seconds=1)}, True),
        ({"expires_at": NOW}, False),
        ({"expires_at": NOW - timedelta(days=1)}, False),
        ({"revoked_at": NOW}, False),
        ({"revoked_at": NOW, "expires_at": NOW + timedelta(days=1)}, False),
    ],
)
def test_a_key_that_is_revoked_or_has_expired_is_not_usable(update: dict[str, object], usable: bool) -> None:
    assert RECORD.model_copy(update=update).usable(NOW) is usable


def test_the_documented_record_survives_a_round_trip_with_unknown_keys() -> None:
    entry = {
        "id": "key_1", "keyHash": "ab", "name": "ci", "teamId": "default", "role": "member",
        "createdAt": "2026-01-07T00:00:00Z", "createdBy": "init", "scopes": ["project:worb"],
        "expiresAt": "2026-04-07T00:00:00Z", "lastUsed": "2026-01-08",
    }  # fmt: skip
    record = KeyRecord.model_validate(entry)
    assert record.model_dump(mode="json", by_alias=True, exclude_none=True) == entry
