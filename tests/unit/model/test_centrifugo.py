"""Centrifugo's configuration as a value: what is ours is put in and taken out, all else stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.centrifugo import (
    SECRET_NAMES,
    Secrets,
    StreamingAccess,
    dangers_in,
    initial_config,
    initial_text,
    major_of,
    missing_origins,
    namespace_name,
    namespaces_in,
    parse_config,
    rendered,
    secrets_of,
    signed,
    with_namespace,
    without_namespace,
)
from codeb_mcp.model.names import Environment

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OTHERS = st.dictionaries(st.text(alphabet="abcdefghij_", min_size=1, max_size=8), VALUES, max_size=4)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
LIVE = Environment.PRODUCTION


@given(
    OTHERS, st.lists(st.tuples(NAMES, OTHERS), max_size=4, unique_by=lambda one: one[0]), NAMES, st.sampled_from([5, 6])
)
def test_a_namespace_comes_and_goes_and_nothing_else_changes(
    others: dict[str, Any], there: list[tuple[str, dict[str, Any]]], name: str, major: int
) -> None:
    listed = [{**options, "name": one} for one, options in there]
    inner = {"channel": {**others, "namespaces": listed}} if major == 6 else {"namespaces": listed}
    config: dict[str, Any] = {**{f"x_{key}": value for key, value in others.items()}, **inner}
    after = with_namespace(config, major, name, ["https://shop.example.com"])
    assert namespaces_in(after, major) == list(dict.fromkeys([*(one for one, _ in there), name]))
    assert with_namespace(after, major, name, ["https://shop.example.com"]) == after
    if name in (one for one, _ in there):
        return
    assert {
        key: value for key, value in after.items() if key not in ("channel", "client", "namespaces", "allowed_origins")
    } == {key: value for key, value in config.items() if key not in ("channel", "namespaces")}
    gone = without_namespace(after, major, name, ["https://shop.example.com"])
    assert namespaces_in(gone, major) == [one for one, _ in there]
    if major == 6:
        assert gone["channel"] == config["channel"]


@given(OTHERS)
def test_what_is_written_is_read_as_the_same(config: dict[str, Any]) -> None:
    if len({key.lower() for key in config}) == len(config):
        assert json.loads(rendered(config)) == config


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"a": 1, "a": 2}', '{"client": {"Token": 1, "token": 2}}', "[" * 10_000,
                                  '{"a": ' * 10_000])  # fmt: skip
def test_what_centrifugo_might_read_otherwise_is_refused_without_telling_it(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_config(text)
    assert len(str(caught.value)) < 60


def test_sections_in_capitals_are_the_same_sections() -> None:
    config = parse_config('{"Channel": {"Namespaces": [{"Name": "old"}]}}')
    assert with_namespace(config, 6, "new")["Channel"]["Namespaces"] == [{"Name": "old"}, {"name": "new"}]
    assert with_namespace(config, 6, "old") == config


@pytest.mark.parametrize(
    "config",
    [{"channel": 1}, {"channel": {"namespaces": {}}}, {"channel": {"namespaces": ["x"]}},
     {"channel": {"namespaces": [{"name": 1}]}}],
    ids=str,
)  # fmt: skip
def test_a_section_that_is_none_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        with_namespace(config, 6, "shop")


def test_the_first_configuration_holds_no_secret_and_lets_nobody_in_unasked() -> None:
    config = parse_config(initial_text(allowed_origins=["https://*.example.com"]))
    assert config == initial_config(allowed_origins=["https://*.example.com"])
    assert dangers_in(config, 6) == []
    assert config["health"] == {"enabled": True}
    assert not any(word in initial_text() for word in ("hmac", "secret", "key"))


def test_secrets_are_found_where_centrifugo_finds_them() -> None:
    text = f'# ours\n{SECRET_NAMES[0]}=one\n {SECRET_NAMES[1]} = "two"\n'
    inline = {"client": {"token": {"hmac_secret_key": "three"}}, "http_api": {"key": "four"}}
    assert secrets_of({}, text, 6) == Secrets("one", "two")
    assert secrets_of(inline, text, 6) == Secrets("one", "two")
    assert secrets_of(inline, "", 6) == Secrets("three", "four")
    assert secrets_of({"token_hmac_secret_key": "five", "api_key": "six"}, "", 5) == Secrets("five", "six")
    assert "one" not in repr(Secrets("one", "two"))
    with pytest.raises(ValueError, match="HTTP_API_KEY"):
        secrets_of({"client": {"token": {"hmac_secret_key": "three"}}}, "", 6)


@pytest.mark.parametrize(
    ("allowed", "wanted", "missing"),
    [
        ([], ["https://a.test"], ["https://a.test"]),
        (["https://*.test"], ["https://a.test", "https://b.c.test"], []),
        (["HTTPS://A.test"], ["https://a.test"], []),
        (["https://*.test"], ["http://a.test"], ["http://a.test"]),
        (["*"], ["https://a.test", "https://a.test"], []),
    ],
)
def test_origins_that_a_pattern_allows_are_not_added(allowed: list[str], wanted: list[str], missing: list[str]) -> None:
    assert missing_origins({"client": {"allowed_origins": allowed}}, 6, wanted) == missing
    assert missing_origins({"allowed_origins": allowed}, 5, wanted) == missing


@pytest.mark.parametrize(
    ("config", "major", "words"),
    [
        ({"client": {"insecure": True}}, 6, "client.insecure"),
        ({"http_api": {"insecure": True}}, 6, "http_api.insecure"),
        ({"admin": {"insecure": True}}, 6, "admin.insecure"),
        ({"client": {"allowed_origins": ["*"]}}, 6, "allowed_origins"),
        ({"client_insecure": True}, 5, "client_insecure"),
        ({"api_insecure": True}, 5, "api_insecure"),
    ],
)
def test_options_that_let_everybody_in_are_told(config: dict[str, Any], major: int, words: str) -> None:
    assert [one for one in dangers_in(config, major) if words in one]


def test_names_of_namespaces() -> None:
    assert namespace_name("shop", LIVE, ()) == "shop"
    assert namespace_name("shop", Environment.STAGING, ()) == "shop-staging"
    assert namespace_name("s", LIVE, ()).startswith("s-")
    taken = namespace_name("shop", LIVE, {"shop"})
    assert taken.startswith("shop-")
    assert taken != namespace_name("shop", Environment.STAGING, {"shop-staging"})


@pytest.mark.parametrize(("said", "major"), [("Centrifugo v6.9.6 (Go version: go1.26.8)", 6), ("5.4.9", 5), ("0.0.0", 0),
                                            ("no version", None), ("", None)])  # fmt: skip
def test_major_versions(said: str, major: int | None) -> None:
    assert major_of(said) == major


def test_a_token_is_the_one_of_the_standards_example() -> None:
    """RFC 7515, appendix A.1, has the same parts in another order; jwt.io's first example is this one."""
    claims = {"sub": "1234567890", "name": "John Doe", "iat": 1516239022}
    assert signed(claims, "your-256-bit-secret").endswith(".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c")


def test_variables_of_this_namespace_are_known_again() -> None:
    access = StreamingAccess("shop", "wss://ws.example.com/connection/websocket", "http://192.0.2.9:8000/api")
    assert access.is_ours(access.variables(Secrets("a", "b")))
    assert not access.is_ours({"CENTRIFUGO_NAMESPACE": "other"})
    assert set(access.names) == set(access.variables(Secrets("", "")))
