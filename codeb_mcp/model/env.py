"""Environment variables of an app: names, the file format, and what a change to them means. No value ever gets into a message.

A file holds one `NAME=value` per line and is read as python-dotenv reads it, without interpolation. We write plain values as
they are, others in single quotes, those with line ends in double quotes; every text without NUL survives byte for byte.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from codeb_mcp.model.names import PATTERNS

ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
PATTERNS[ENV_NAME_PATTERN] = "must be 1 to 128 letters, digits and underscores, not beginning with a digit"
LARGEST_VALUE = 64 * 1024
LARGEST_ENVIRONMENT = 256 * 1024
MOST_NAMES = 200
"""Limits in bytes of UTF-8, and in names of one request."""

_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,-]+")
_DOUBLE = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})


def _not_ours(name: str) -> str:
    if name == "PORT" or name.startswith("CODEB_"):
        raise ValueError("is set by the platform: PORT and names that begin with CODEB_ cannot be chosen")
    return name


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    if len(text.encode()) > LARGEST_VALUE:
        raise ValueError(f"must not be longer than {LARGEST_VALUE} bytes")
    return text


EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME_PATTERN, max_length=128), AfterValidator(_not_ours)]
EnvText = Annotated[str, StringConstraints(max_length=LARGEST_VALUE), AfterValidator(_storable)]


@dataclass(frozen=True, slots=True)
class EnvFile:
    """What a file says. `unread` are the numbers of lines that are no assignment; their text is dropped."""

    values: Mapping[str, str]
    unread: tuple[int, ...] = ()


def parse(text: str) -> EnvFile:
    """The variables of a file; the last assignment of a name counts, a name without `=` is empty."""
    from dotenv.parser import parse_stream

    values: dict[str, str] = {}
    unread = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            unread.append(binding.original.line)
        elif binding.key is not None:
            values[binding.key] = binding.value or ""
    return EnvFile(values, tuple(unread))


def render(values: Mapping[str, str]) -> str:
    """The file that `parse` reads back as exactly these values, sorted by name: the same values are the same bytes."""
    return "".join(f"{name}={quoted(values[name])}\n" for name in sorted(values))


def quoted(value: str) -> str:
    """One value as it stands in a file."""
    if _PLAIN.fullmatch(value):
        return value
    if "\n" in value or "\r" in value:
        return f'"{value.translate(_DOUBLE)}"'
    inner = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{inner}'"


def size_of(values: Mapping[str, str]) -> int:
    """Bytes of all names and values."""
    return sum(len(name) + len(value.encode()) for name, value in values.items())


@dataclass(frozen=True, slots=True)
class EnvDiff:
    """Names that differ between two sets of variables, each list sorted."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted((*self.added, *self.changed, *self.removed)))


def diff(before: Mapping[str, str], after: Mapping[str, str]) -> EnvDiff:
    """What leads from one to the other."""
    return EnvDiff(
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(name for name in before.keys() & after.keys() if before[name] != after[name])),
        tuple(sorted(before.keys() - after.keys())),
    )


def is_protected(name: str) -> bool:
    """Whether the variable was handed out with the database or cache, and is not for a push to replace."""
    return name in ("DATABASE_URL", "REDIS_URL") or name.startswith("POSTGRES_")


@dataclass(frozen=True, slots=True)
class Merged:
    """The variables after a push. `kept` are protected ones that the push named and that stay as they are."""

    values: Mapping[str, str]
    kept: tuple[str, ...] = ()


def merged(
    present: Mapping[str, str], master: Mapping[str, str], pushed: Mapping[str, str], *, overwrite_protected: bool
) -> Merged:
    """The present variables with the pushed ones. A protected one that the master has stays; when it is gone by now, it
    comes back from the master."""
    values, kept = dict(present), []
    for name, value in pushed.items():
        if is_protected(name) and name in master and not overwrite_protected:
            stays = present.get(name, master[name])
            if stays != value:
                kept.append(name)
            values[name] = stays
        else:
            values[name] = value
    return Merged(values, tuple(sorted(kept)))


_SECRET_WORDS = re.compile(
    r"(?i)(pass(word|wd|phrase)?|secret|token|key|credential|dsn|auth|salt|cookie|cert|private|signature|_url$|_uri$)"
)


def sounds_secret(name: str) -> bool:
    """Whether a name without a contract is better taken for a secret."""
    return _SECRET_WORDS.search(name) is not None


_PLACEHOLDERS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a value to be changed", re.compile(r"(?i)(please[-_ ]?)?(change|replace|fill|edit|set|insert|update)[-_ ]?(me|this|it|in)\b.*")),
    ("a row of x", re.compile(r"(?i)x{3,}|x+([-_.]x+)+|\*{3,}|\.{3,}|_{3,}")),
    ("a word in angle brackets", re.compile(r"<[^<>]*>|\[(your|insert|enter)[^\]]*\]|\{\{[^{}]*\}\}", re.I)),
    ("the words of a template", re.compile(r"(?i)((insert|enter|put|add|paste)[-_ ])?(the[-_ ])?your[-_][a-z0-9_. -]{1,60}|(insert|enter|put|add|paste)[-_ ](your|the|a)[-_ ].{1,60}|my[-_]?(secret|password|token|api[-_]?key|key)")),
    ("a note to do it later", re.compile(r"(?i)(todo|tbd|fixme|tba)\b.*|to[-_ ]be[-_ ].*|placeholder|n/?a|none yet|undefined")),
    ("an example", re.compile(r"(?i)(some[-_ ]?|an?[-_ ]|the[-_ ])?(example|sample|dummy|fake|secret|password|pass|passwd)([-_ ]?(value|key|secret|token|password|here))?")),
    ("an example address", re.compile(r"(?i)[a-z0-9+.-]+://(user|username|your[^:@/]*):(pass|password|secret|your[^@]*)@.*")),
)  # fmt: skip
_UNRESOLVED = re.compile(
    r"\$\{[A-Za-z_][A-Za-z0-9_]*(:?[-?+=][^{}]*)?\}|\{\{ *[A-Za-z_$.][\w.$ ]*\}\}|%\([A-Za-z_]\w*\)s"
)


def placeholder(value: str) -> str | None:
    """Why the value is taken for one that was never filled in, in words that do not repeat it; None when it is fine.

    Words count only up to 80 characters in one line; `${NAME}` counts wherever it stands.
    """
    text = value.strip()
    if _UNRESOLVED.search(text):
        return "a variable that was never replaced"
    if len(text) <= 80 and "\n" not in text:
        for reason, pattern in _PLACEHOLDERS:
            if pattern.fullmatch(text):
                return reason
    return None
