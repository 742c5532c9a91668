"""The env file format, and the decisions about variables."""

from __future__ import annotations

import io
import string
import time

import pytest
from dotenv import dotenv_values
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from codeb_mcp.model.env import (
    EnvDiff,
    EnvFile,
    EnvName,
    EnvText,
    diff,
    is_protected,
    merged,
    parse,
    placeholder,
    render,
    sounds_secret,
)
from codeb_mcp.model.env_contract import Breach, EnvRule, breaches, is_secret
from codeb_mcp.model.names import Environment

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
ODD = "\"'`\\$#=\r\n\t \x0b\x0c\x1c\x85\xa0\u2028\u2029\ufeff{}%!;&|<>()*?[]~^,é🚀\x01\x1b\x7fnrtabfv0"
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text(ODD)
MAPS = st.dictionaries(NAMES, VALUES, max_size=8)


@pytest.mark.parametrize("examples", [1000, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_every_value_survives_the_file_and_dotenv_reads_the_same(examples: int) -> None:
    @settings(max_examples=examples)
    @given(MAPS)
    def run(values: dict[str, str]) -> None:
        text = render(values)
        assert parse(text) == EnvFile(values)
        assert parse(text.encode().decode()) == EnvFile(values)
        assert dotenv_values(stream=io.StringIO(text), interpolate=False) == values

    run()


@settings(max_examples=1000)
@given(st.text(st.sampled_from(ODD + "ABC_=\n\n#'\"")))
def test_foreign_files_are_read_as_dotenv_reads_them(text: str) -> None:
    theirs = dotenv_values(stream=io.StringIO(text), interpolate=False)
    assert parse(text).values == {name: value or "" for name, value in theirs.items()}


@given(MAPS)
def test_the_same_variables_are_the_same_bytes_in_whatever_order(values: dict[str, str]) -> None:
    assert render(dict(reversed(values.items()))) == render(values)


def test_plain_values_stay_readable_and_lines_that_are_none_are_told_by_number() -> None:
    assert render({"B": "a b", "A": "https://x.test/y?z", "C": "1\n2", "D": "ok"}) == (
        "A='https://x.test/y?z'\nB='a b'\nC=\"1\\n2\"\nD=ok\n"
    )
    assert parse("A=1\n'broken\nB=2\n") == EnvFile({"A": "1", "B": "2"}, (2,))


@given(MAPS, MAPS)
def test_a_difference_leads_from_one_to_the_other(first: dict[str, str], second: dict[str, str]) -> None:
    found = diff(first, second)
    assert bool(found) is (first != second)
    rebuilt = {name: value for name, value in first.items() if name not in found.removed}
    rebuilt |= {name: second[name] for name in (*found.added, *found.changed)}
    assert rebuilt == second
    assert diff(second, first) == EnvDiff(found.removed, found.changed, found.added)


@given(present=MAPS, master=MAPS, pushed=MAPS)
def test_a_push_changes_what_it_names_and_nothing_else(
    present: dict[str, str], master: dict[str, str], pushed: dict[str, str]
) -> None:
    after = merged(present, master, pushed, overwrite_protected=True)
    assert after.values == {**present, **pushed}
    assert after.kept == ()


def test_protected_names_come_back_from_the_first_version() -> None:
    master = {"DATABASE_URL": "first", "POSTGRES_X": "first"}
    pushed = {"DATABASE_URL": "new", "POSTGRES_X": "first", "REDIS_URL": "new", "POSTGRESX": "new"}
    after = merged({"DATABASE_URL": "present"}, master, pushed, overwrite_protected=False)
    assert after.values == {**pushed, "DATABASE_URL": "present"}
    assert after.kept == ("DATABASE_URL",)
    gone = merged({}, master, pushed, overwrite_protected=False)
    assert gone.values["DATABASE_URL"] == "first"
    assert [name for name in pushed if is_protected(name)] == ["DATABASE_URL", "POSTGRES_X", "REDIS_URL"]


PLACEHOLDERS = [
    "changeme", "change_me", "CHANGE-ME", "ChangeMe", "changeit", "replaceme", "REPLACE_ME", "fixme", "xxx",
    "XXXX", "xxx-xxx", "***", "...", "<token>", "<YOUR_KEY>", "[your-key]", "{{token}}", "${DB}", "$${DB}x",
    "a${HOME}b", "${A:-b}", "your-api-key", "your_secret_here", "your-domain.example", "TODO", "todo:", "tbd",
    "TBD", "placeholder", "undefined", "example", "dummy", "sample-value", "example_key", "password", "secret",
    "my-secret", "mysecret", "to-be-done", "postgres://user:password@host/db", "https://username:pass@host",
    "%(SECRET)s", "insert-your-key-here",
]  # fmt: skip
FINE = [
    "", "x", "xx", "0", "1", "true", "production", "debug", "https://shop.example.com/", "$5.00", "a$b", "$HOME",
    "{}", "{a}", "<b>hi</b>", "todos", "exchange", "xxl", "postgres://app:s3cr3t-9f@db/shop", "change-log-url",
    "none", "examples/path/1", "passwordless", "sk-live", "100%",
]  # fmt: skip


@pytest.mark.parametrize("value", [*PLACEHOLDERS, "insert your key", "TODO: ask Anna", " changeme "])
def test_placeholders_are_found(value: str) -> None:
    assert placeholder(value)


@pytest.mark.parametrize(
    "value", [*FINE, "my cat is fine", "your " + "y" * 100, "todo\nlist", "-----BEGIN X-----\nabc"]
)
def test_real_values_are_no_placeholders(value: str) -> None:
    assert placeholder(value) is None


@pytest.mark.parametrize("name", ["A", "_", "a_B9", "A" * 128])
def test_names_that_can_be(name: str) -> None:
    assert TypeAdapter(EnvName).validate_python(name) == name


@pytest.mark.parametrize(
    "name", ["", "9A", "A-B", "A B", "A\n", "\nA", "Ä", "A" * 129, "PORT", "CODEB_X", "CODEB_", "A=B", "A\0", "a.b"]
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(EnvName).validate_python(name)


def test_texts_are_limited_in_bytes() -> None:
    adapter = TypeAdapter(EnvText)
    assert adapter.validate_python("é" * 32_768)
    for text in ("é" * 32_769, "a\0"):
        with pytest.raises(ValidationError):
            adapter.validate_python(text)


def test_a_contract_finds_what_is_missing_and_what_does_not_match() -> None:
    contract = {
        "A": EnvRule(required=True),
        "B": EnvRule(pattern="x|yz"),
        "C": EnvRule(required=True, environments=(Environment.STAGING,)),
        "D": EnvRule(required=True, pattern="[0-9]+"),
    }
    found = breaches(contract, {"A": "", "B": "xz", "D": "12\n"}, Environment.PRODUCTION)
    assert found == [Breach("A", "missing"), Breach("B", "violates"), Breach("D", "violates")]
    assert breaches(contract, {"A": "1", "B": "yz", "C": "1", "D": "1"}, Environment.STAGING) == []


def test_a_pattern_cannot_stop_the_world() -> None:
    rule = EnvRule(pattern="(a|a)*b|(a+)+c")
    before = time.process_time()
    assert not rule.allows("a" * 60_000)
    assert time.process_time() - before < 10
    for pattern in ("(", "(?=a)", r"(a)\1", "a)|(b", "((a{500}){500}){500}"):
        with pytest.raises(ValidationError):
            EnvRule(pattern=pattern)


def test_secrets_are_told_by_the_contract_or_by_their_name() -> None:
    contract = {"PLAIN_TOKEN": EnvRule(secret=False), "COLOUR": EnvRule(secret=True), "API_KEY": EnvRule()}
    assert [is_secret(contract, name) for name in ("PLAIN_TOKEN", "COLOUR", "API_KEY", "MODE")] == [
        False, True, True, False,
    ]  # fmt: skip
    assert all(
        sounds_secret(name) for name in ("DB_PASSWORD", "DATABASE_URL", "jwtSecret", "SESSION_SALT", "SENTRY_DSN")
    )
    assert not any(sounds_secret(name) for name in ("LOG_LEVEL", "NODE_ENV", string.ascii_uppercase))
