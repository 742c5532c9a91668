"""Names at the border: what is let in, what is turned away."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from codeb_mcp.model import names
from codeb_mcp.model.names import (
    Environment,
    Slot,
    container_name,
    environment_key,
    image_parts,
    image_registry,
    split_environment_key,
)
from codeb_mcp.registry.leases import check_lease_name

KINDS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(getattr(names, name))
    for name in (
        "ProjectName", "TeamId", "Version", "ImageRef", "Domain", "HttpPath", "DisplayName", "Identifier", "IdempotencyKey",
    )
}  # fmt: skip
HOSTILE = [
    "", " ", "\t", "\n", "\x00", ".", "..", "../..", "/", "//", "/etc/passwd", "a/../b", "..%2f", "%2e%2e/", "a\\b", "C:\\x",
    "-", "--", "-rf", "--privileged", "-v /:/host", "a b", " a", "a ", "a\n", "a\nb", "\na", "a\rb", "a\tb", "a\x00b", "a\x1b[31m",
    "$(id)", "`id`", "${HOME}", "$HOME", "a;id", "a|id", "a&id", "a&&id", "a||id", "a>x", "a<x", "!x", "a'b", 'a"b', "'", '"',
    "' OR 1=1 --", "{{7*7}}", "${{ secrets.X }}", "<script>", "<!--", "&lt;", "%s", "%n%n", "a*", "?", "[a]", "{a,b}", "~", "~root",
    "a#b", "a=b", "a,b", "a(b)", "(", ")", "^", "é", "ñandú", "ａ", "А", "аdmin", "admin\u200b", "\u202egnp", "\ufeffa",
    "a\u0301", "\U0001f600", "İ", "ß", "\ud800", "a\x7f", "\x85", "\u2028", "\u00a0", "file:///etc/passwd", "http://x/",
    "//evil.example", "a@b@c", "a:b:c:d", "@sha256:" + "0" * 64, "a@sha256:" + "0" * 63, "a@sha256:" + "G" * 64, "a@md5:" + "0" * 32,
    "a:" + "t" * 129, "A/B", "a//b", "a/", "/a", "a..b/c?", "a:-tag", "a:.tag", "localhost:99999999/a", ":80/a", "a:80/", "host:/a",
    "a" * 5000, "a." * 2000, "xn--\x00", "*.example.com", ".example.com", "example.com.", "example..com", "-a.example.com",
    "a-.example.com", "a_b.example.com", "EXAMPLE.com", "1.2.3.4:80", "[::1]", "user:pass@example.com", "a" * 64 + ".example.com",
]  # fmt: skip
HARMLESS = {  # what a text of each kind consists of, whatever the pattern that checks it
    "ProjectName": r"[a-z0-9]([a-z0-9-]*[a-z0-9])?",
    "TeamId": r"[a-z0-9]([a-z0-9-]*[a-z0-9])?",
    "Version": r"[A-Za-z0-9_][A-Za-z0-9._-]*",
    "ImageRef": r"[A-Za-z0-9][A-Za-z0-9._:/@-]*",
    "Domain": r"[a-z0-9][a-z0-9-]*(\.[a-z0-9-]+)+",
    "HttpPath": r"/[A-Za-z0-9._~%?&=-]*(/[A-Za-z0-9._~%?&=-]+)*/?",
    "DisplayName": r"\w([\w\u0301 .@+-]*[\w\u0301.@+-])?",
    "Identifier": r"[A-Za-z0-9_-]+",
    "IdempotencyKey": r"[A-Za-z0-9_.:-]+",
}
LENGTH = {
    "Version": 128,
    "ImageRef": 400,
    "Domain": 253,
    "HttpPath": 201,
    "DisplayName": 80,
    "Identifier": 64,
    "IdempotencyKey": 128,
}


def _accepts(kind: str, text: str) -> bool:
    try:
        return bool(KINDS[kind].validate_python(text) == text)
    except ValidationError:
        return False


def test_the_corpus_is_large() -> None:
    assert len(set(HOSTILE)) >= 100


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_are_turned_away(kind: str) -> None:
    for text in HOSTILE:
        if _accepts(kind, text):
            assert re.fullmatch(HARMLESS[kind], text), text
            assert len(text) <= LENGTH.get(kind, 40)
            assert not any(unicodedata.category(char).startswith("C") for char in text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["\n", "\r", " ", "\x00", "\u200b", "\u2028"])
def test_a_good_name_with_an_invisible_ending_is_turned_away(kind: str, ending: str) -> None:
    good = {"Domain": "shop.example.com", "HttpPath": "/health"}.get(kind, "shop")
    assert _accepts(kind, good)
    assert not _accepts(kind, good + ending)


@pytest.mark.parametrize("value", [None, 1, 1.5, True, ["shop"], {"a": 1}])
@pytest.mark.parametrize("kind", KINDS)
def test_only_texts_are_names(kind: str, value: object) -> None:
    with pytest.raises(ValidationError):
        KINDS[kind].validate_python(value)


@pytest.mark.parametrize("name", ["a", "0", "worb", "w-homepage", "da-rak", "a" * 40, "1-2-3", "a--b"])
def test_a_project_is_named_by_lower_case_letters_digits_and_hyphens(name: str) -> None:
    assert _accepts("ProjectName", name)
    assert _accepts("TeamId", name)


@pytest.mark.parametrize("name", ["-a", "a-", "A", "a_b", "a.b", "a" * 41, "worb "])
def test_other_project_names_are_refused(name: str) -> None:
    assert not _accepts("ProjectName", name)
    assert not _accepts("TeamId", name)


@pytest.mark.parametrize("version", ["v1.2.3", "1", "_x", "sha-0f3c", "0f3c" * 10, "A.b-c_d", "a" * 128])
def test_a_version_is_whatever_may_be_a_tag(version: str) -> None:
    assert _accepts("Version", version)


@pytest.mark.parametrize("version", [".1", "-1", "a" * 129, "1.0+build", "a/b", "a:b"])
def test_other_versions_are_refused(version: str) -> None:
    assert not _accepts("Version", version)


@pytest.mark.parametrize(
    "domain", ["shop.example.com", "a.b", "xn--bcher-kva.example", "1.example.com", "a-b.c-d.e", "a" * 63 + ".example"]
)
def test_a_full_lower_case_domain_is_accepted(domain: str) -> None:
    assert _accepts("Domain", domain)


@pytest.mark.parametrize(
    "domain", ["shop", "localhost", "a" * 64 + ".example", ".".join(["abcdefghij"] * 24), "-a.b", "a.b-"]
)
def test_other_domains_are_refused(domain: str) -> None:
    assert not _accepts("Domain", domain)


@pytest.mark.parametrize("path", ["/", "/health", "/api/health", "/a.b_c~d/e?x=1&y=%20", "/" + "a" * 200])
def test_a_plain_path_is_accepted(path: str) -> None:
    assert _accepts("HttpPath", path)


@pytest.mark.parametrize(
    "path", ["health", "//evil.example/x", "/a//b", "/../x", "/a/..", "/a/../b", "/" + "a" * 201, "/a#b", "/a b"]
)
def test_other_paths_are_refused(path: str) -> None:
    assert not _accepts("HttpPath", path)


# ── image references ────────────────────────────────────────────────────────────────────────────────────────────

_HOST_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"{_HOST_PART}(?:\.{_HOST_PART})*(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
# The reference grammar of the image distribution project, for names with a tag, a digest or both.
GRAMMAR = re.compile(
    rf"\A(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?\Z"
)
DIGEST = "sha256:" + "0123456789abcdef" * 4
REFERENCES = [
    "busybox", "busybox:latest", "library/busybox", "ghcr.io/acme/shop:v1", "ghcr.io/acme/shop:v1@" + DIGEST,
    "ghcr.io/acme/shop@" + DIGEST, "127.0.0.1:5000/shop:v1", "localhost/shop", "localhost:5000/a/b/c/d:1", "a__b/c--d/e.f_g",
    "registry.example.com:443/x:A_b.C-d", "Registry.Example.com/x", "a.b/c", "0/1:2", "a-b-c.d/e",
]  # fmt: skip


@pytest.mark.parametrize("reference", REFERENCES)
def test_references_of_the_grammar_are_accepted(reference: str) -> None:
    assert GRAMMAR.match(reference)
    assert _accepts("ImageRef", reference)


ALPHABET = st.sampled_from(
    [
        *"aA0z9",
        "ghcr.io",
        "localhost",
        "5000",
        ":",
        "/",
        "@",
        ".",
        "_",
        "__",
        "-",
        "--",
        DIGEST,
        "v1",
        "sha256:",
        "\n",
        " ",
        "é",
    ]
)


@given(st.lists(ALPHABET, min_size=1, max_size=10).map("".join))
def test_what_is_accepted_is_in_the_grammar(reference: str) -> None:
    if _accepts("ImageRef", reference):
        assert GRAMMAR.match(reference)


@st.composite
def references(draw: st.DrawFn) -> str:
    """Texts of the grammar, with host names that have no empty or hyphened ends of labels."""
    host = draw(st.sampled_from(["", "ghcr.io/", "localhost/", "127.0.0.1:5000/", "Registry.Example.com:443/"]))
    path = draw(
        st.lists(st.from_regex(rf"\A{_PART}\Z").map(lambda text: text[:20].rstrip("._-")), min_size=1, max_size=3)
    )
    tag = draw(st.sampled_from(["", ":v1", ":_", ":A.b-c_d", ":latest"]))
    return host + "/".join(path) + tag + draw(st.sampled_from(["", "@" + DIGEST]))


@given(references())
def test_what_is_in_the_grammar_is_accepted(reference: str) -> None:
    assert GRAMMAR.match(reference)
    assert _accepts("ImageRef", reference)


@pytest.mark.parametrize(
    ("reference", "parts", "registry"),
    [
        ("busybox", ("busybox", None, None), "docker.io"),
        ("acme/shop:v1", ("acme/shop", "v1", None), "docker.io"),
        ("ghcr.io/acme/shop:v1@" + DIGEST, ("ghcr.io/acme/shop", "v1", DIGEST), "ghcr.io"),
        ("127.0.0.1:5000/shop", ("127.0.0.1:5000/shop", None, None), "127.0.0.1:5000"),
        ("127.0.0.1:5000/shop:1", ("127.0.0.1:5000/shop", "1", None), "127.0.0.1:5000"),
        ("localhost/shop@" + DIGEST, ("localhost/shop", None, DIGEST), "localhost"),
        ("localhost:80/a/b:c", ("localhost:80/a/b", "c", None), "localhost:80"),
    ],
)
def test_a_reference_falls_into_its_parts(
    reference: str, parts: tuple[str, str | None, str | None], registry: str
) -> None:
    assert image_parts(reference) == parts
    assert image_registry(reference) == registry


@given(references())
def test_the_parts_of_a_reference_make_it_up_again(reference: str) -> None:
    repository, tag, digest = image_parts(reference)
    assert repository + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "") == reference


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

PROJECTS = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\Z")


@given(PROJECTS, st.sampled_from(Environment), st.sampled_from(Slot))
def test_an_environment_key_leads_back_to_its_parts_and_no_two_are_alike(
    project: str, environment: Environment, slot: Slot
) -> None:
    key = environment_key(project, environment)
    assert split_environment_key(key) == (project, environment)
    assert container_name(project, environment, slot) == f"{key}-{slot}"
    assert check_lease_name(f"environment/{key}")


@pytest.mark.parametrize("key", ["", "production", "-production", "shop", "shop-", "shop-prod", "shop-Production"])
def test_a_text_that_is_no_environment_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError):
        split_environment_key(key)


def test_each_slot_has_another() -> None:
    assert [slot.other for slot in Slot] == [Slot.GREEN, Slot.BLUE]
