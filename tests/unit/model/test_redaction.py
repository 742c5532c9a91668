"""What must not leave, and what must not be spoilt."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.redaction import MASK, clean_text, redact, redact_text

_rng = random.Random(20260107)


def _any(alphabet: str, count: int) -> str:
    return "".join(_rng.choices(alphabet, k=count))


ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
B64 = ALNUM + "+/"

# kind -> (the text around it, with {} for the secret, and the secret)
SECRETS: dict[str, tuple[str, str]] = {
    "own key": ("key {}", "codeb_default_owner_" + _any(ALNUM, 36)),
    "own short key": ("{}", "codeb_my-team_member_" + _any(ALNUM, 16)),
    "github classic": ("remote: {}", "ghp_" + _any(ALNUM, 36)),
    "github oauth": ("{}", "gho_" + _any(ALNUM, 36)),
    "github user": ("{}", "ghu_" + _any(ALNUM, 36)),
    "github server": ("{}", "ghs_" + _any(ALNUM, 36)),
    "github refresh": ("{}", "ghr_" + _any(ALNUM, 36)),
    "github fine grained": ("{}", "github_pat_" + _any(ALNUM, 22) + "_" + _any(ALNUM, 59)),
    "gitlab": ("clone with {}", "glpat-" + _any(ALNUM, 20)),
    "aws key id": ("{}", "AKIA" + _any(UPPER, 16)),
    "aws session id": ("{}", "ASIA" + _any(UPPER, 16)),
    "aws role": ("{}", "AROA" + _any(UPPER, 16)),
    "slack bot": ("{}", "xoxb-" + _any(string.digits, 12) + "-" + _any(ALNUM, 24)),
    "slack user": ("{}", "xoxp-" + _any(string.digits, 12) + "-" + _any(ALNUM, 24)),
    "slack app": ("{}", "xapp-1-" + _any(ALNUM, 40)),
    "slack webhook": ("POST {} failed", "https://hooks.slack.com/services/T" + _any(UPPER, 8) + "/B" + _any(UPPER, 8) + "/" + _any(ALNUM, 24)),
    "openai": ("{}", "sk-" + _any(ALNUM, 48)),
    "openai project": ("{}", "sk-proj-" + _any(ALNUM, 48)),
    "anthropic": ("{}", "sk-ant-api03-" + _any(ALNUM, 40)),
    "stripe secret": ("{}", "sk_live_" + _any(ALNUM, 24)),
    "stripe restricted": ("{}", "rk_live_" + _any(ALNUM, 24)),
    "stripe test": ("{}", "sk_test_" + _any(ALNUM, 24)),
    "stripe webhook": ("{}", "whsec_" + _any(ALNUM, 32)),
    "google api": ("{}", "AIza" + _any(ALNUM, 35)),
    "google oauth": ("{}", "ya29." + _any(ALNUM, 60)),
    "npm": ("{}", "npm_" + _any(ALNUM, 36)),
    "pypi": ("{}", "pypi-" + _any(ALNUM, 60)),
    "digitalocean": ("{}", "dop_v1_" + _any(HEX, 64)),
    "vault": ("{}", "hvs." + _any(ALNUM, 24)),
    "sendgrid": ("{}", "SG." + _any(ALNUM, 22) + "." + _any(ALNUM, 43)),
    "age": ("{}", "AGE-SECRET-KEY-1" + _any(UPPER, 58)),
    "jwt": ("{}", "eyJ" + _any(ALNUM, 20) + ".eyJ" + _any(ALNUM, 40) + "." + _any(ALNUM, 43)),
    "telegram bot": ("{}", _any("123456789", 9) + ":AA" + _any(ALNUM, 33)),
    "docker hub": ("{}", "dckr_pat_" + _any(ALNUM, 27)),
    "shopify": ("{}", "shpat_" + _any(HEX, 32)),
    "linear": ("{}", "lin_api_" + _any(ALNUM, 40)),
    "hugging face": ("{}", "hf_" + _any(ALNUM, 34)),
    "private key": ("key:\n{}\nend", "-----BEGIN RSA PRIVATE KEY-----\n" + _any(B64, 64) + "\n-----END RSA PRIVATE KEY-----"),
    "openssh key": ("{}", "-----BEGIN OPENSSH PRIVATE KEY-----\n" + _any(B64, 64) + "\n-----END OPENSSH PRIVATE KEY-----"),
    "cut off private key": ("{}", "-----BEGIN PRIVATE KEY-----\n" + _any(B64, 64)),
    "postgres url": ("postgres://app:{}@db.codeb.kr:5432/worb", _any(ALNUM, 16)),
    "redis url without user": ("redis://:{}@db.codeb.kr:6379/0", _any(ALNUM, 16)),
    "amqp url": ("amqp://guest:{}@mq", _any(ALNUM, 12)),
    "basic auth url": ("https://bob:{}@example.com/x", _any(ALNUM, 12)),
    "url password with a slash": ("postgres://app:{}@db/worb", "pa/ss" + _any(ALNUM, 8)),
    "url password with an at sign": ("postgres://app:{}@db/worb", "p@ss" + _any(ALNUM, 8)),
    "bearer": ("Authorization: Bearer {}", _any(ALNUM, 40)),
    "bearer in lower case": ("authorization: bearer {}", _any(ALNUM, 40)),
    "basic": ("Authorization: Basic {}", _any(B64, 24) + "=="),
    "api key header": ("X-API-Key: {}", _any(ALNUM, 24)),
    "cookie header": ("Cookie: session={}; theme=dark", _any(ALNUM, 24)),
    "set-cookie header": ("Set-Cookie: sid={}; HttpOnly", _any(ALNUM, 24)),
    "password assignment": ("DB_PASSWORD={}", _any(ALNUM, 12)),
    "quoted assignment": ('password = "{}"', "two words " + _any(ALNUM, 6)),
    "json field": ('{{"clientSecret": "{}", "name": "x"}}', _any(ALNUM, 20)),
    "yaml field": ("secret: {}", _any(ALNUM, 20)),
    "query": ("GET /x?token={}&page=2", _any(ALNUM, 20)),
    "access key": ("AWS_SECRET_ACCESS_KEY={}", _any(B64, 40)),
    "api key": ("apikey={}", _any(ALNUM, 20)),
    "passphrase": ("passphrase: {}", _any(ALNUM, 20)),
    "credentials": ("SERVICE_CREDENTIALS={}", _any(ALNUM, 20)),
    "command line": ("mysql -u root --password={} worb", _any(ALNUM, 14)),
    "command line with a space": ("psql --password {} worb", _any(ALNUM, 14)),
    "pgpassword": ("PGPASSWORD={} psql", _any(ALNUM, 14)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_does_not_leave(kind: str) -> None:
    frame, secret = SECRETS[kind]
    text = frame.format(secret)
    assert secret in text
    for cleaned in (redact_text(text), clean_text(text), redact({"line": text})["line"], redact([[text]])[0][0]):
        assert secret not in cleaned
        assert MASK in cleaned
    for part in (secret[len(secret) // 2 :], secret[-10:]):
        assert part not in redact_text(text)


def test_there_are_at_least_fifty_kinds_of_secrets() -> None:
    assert len(SECRETS) >= 50


@pytest.mark.parametrize(
    "key",
    ["password", "DB_PASSWORD", "apiKey", "api_key", "api-key", "clientSecret", "token", "accessToken", "privateKey", "dsn",
     "connectionString", "Authorization", "cookie", "passwd", "passphrase", "credential", "credentials", "secrets", "tokens",
     "PGPASSWORD", "ownerKey", "DATABASE_URL_SECRET"],
)  # fmt: skip
def test_a_value_under_a_telling_key_does_not_leave_at_any_depth(key: str) -> None:
    assert redact({key: "plain words"}) == {key: MASK}
    assert redact({"a": [{key: ["plain words", {"b": "x"}]}]})["a"][0][key][0] == MASK


HARMLESS = [
    "v1.2.3", "sha256:" + "ab" * 32, "ghcr.io/acme/shop:v1@sha256:" + "cd" * 32, "0f3c9d2e" * 5, "op_019b91d0c2f1" + "ab12cd34ef56",
    "key_abc123def456", "mem_0123456789ab", "drift_0123456789ab", "2026-01-07T00:05:00Z", "worb-production-blue", "127.0.0.1:5000",
    "http://shop.codeb.localhost", "https://shop.example.com/a/b?page=2&sort=name", "https://example.com:8443/x", "http://[::1]:80/",
    "GET /health answered 503 for 1.0 s", "the app exits with code 137 right after its start", "port 4001 is already allocated",
    "connection refused: nothing listens there", "listening on 0.0.0.0:8080", "postgres://db.codeb.kr:5432/worb", "redis://cache:6379/0",
    "user@example.com", "git@github.com:acme/shop.git", "ssh://git@github.com/acme/shop", "npm install finished", "npm_config_cache",
    "sk-learn is a library", "risk-free", "task_id=42", "desk_live", "the tokenizer ran", "3 tokens left", "tokenised text",
    "secretary general", "no password is needed", "password authentication failed for user app", "passwordless login", "Basic usage",
    "basic auth is off", "bearer of news", "AKIA", "AIza", "eyJ", "xoxb", "ghp_", "SG.", "glpat-", "pypi-", "hvs.", "whsec_",
    "AGE-SECRET-KEY", "-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----", "monkey=banana", "keyboard: us", "key: value",
    "primary_key=id", "foreign key (a)", "cookies are enabled", "slot green has the traffic", "401 Unauthorized", "403 Forbidden",
    "exit status 1", "OOMKilled", "EROFS: read-only file system, open '/app/x'", "at Object.<anonymous> (/app/index.js:3:7)",
    "Traceback (most recent call last):", 'File "/app/main.py", line 12, in <module>', "ValueError: invalid literal", "{}", "[]",
    '{"status":"ok","uptime":12}', '{"slot":"blue","port":4000}', "a=b", "x: y", "PORT=8080", "NODE_ENV=production", "LANG=C.UTF-8",
    "TZ=Asia/Seoul", "배포가 끝났습니다", "배포: 초록 슬롯", "Müller & Söhne", "1,234.56 €", "50 % done", "a/b/c", "C:\\Users\\x",
    "$ ls -la", "select * from users where id = 1", "BEGIN; COMMIT;", "<html><body>hi</body></html>", "#fff", "rgba(0,0,0,.5)",
    "MIIB", "base64", "aGVsbG8gd29ybGQ=", "0xdeadbeef", "deadbeef" * 4, "550e8400-e29b-41d4-a716-446655440000", "1.5e10", "NaN",
    "codeb deploy worb --environment staging", "codeb_mcp", "codeb_default", "mcp__codeb-deploy__deploy", "X-Correlation-ID: abc",
    "Content-Type: application/json", "Content-Length: 20", "ETag: \"abc\"", "Host: shop.example.com", "If-Match: \"x\"", "a\tb\nc",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_left_as_it_is(text: str) -> None:
    assert redact_text(text) == text
    assert clean_text(text) == text
    assert redact({"message": text}) == {"message": text}


def test_there_are_at_least_a_hundred_harmless_texts() -> None:
    assert len(set(HARMLESS)) >= 100


@pytest.mark.parametrize("value", [None, 1, 2.5, True, False])
def test_what_is_no_text_stays(value: object) -> None:
    assert redact({"n": value}) == {"n": value}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_redacting_twice_changes_nothing_more_and_keeps_the_shape(value: Any) -> None:
    once = redact(value)
    assert redact(once) == once
    assert type(once) is type(value)


# ── text from outside ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("a\x00b\x07c\x08d\x7fe", "abcde"),
        ("a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("over\rwritten", "overwritten"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x9b31mred", "31mred"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("\u2066x\u2069", "x"),
        ("ad\u200bmin\u200c\u200d\u2060", "admin"),
        ("\ufefftext", "text"),
        ("so\u00adft", "soft"),
        ("\u061calm\u180e", "alm"),
        ("line\u2028sep\u2029par", "lineseppar"),
        ("tag\U000e0041\U000e007f", "tag"),
        ("\ufff9x\ufffb", "x"),
        ("배포 😀", "배포 😀"),
        ("gh\u200bp_" + "a" * 36, MASK),
        ("gh\x1b[0mp_" + "a" * 36, MASK),
    ],
)
def test_terminal_codes_control_bidi_and_invisible_characters_are_taken_out(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


@given(st.text(max_size=300), st.integers(1, 50))
def test_cleaned_text_is_short_and_free_of_what_steers_terminals_and_eyes(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit=limit)
    assert len(cleaned) <= limit
    assert all(char in "\t\n" or char.isprintable() or not char.isascii() for char in cleaned)
    assert not set(cleaned) & set(
        "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\x1b\x9b"
    )


def test_a_cut_is_shown() -> None:
    assert clean_text("a" * 30, limit=10) == "a" * 9 + "…"
