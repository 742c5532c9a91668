"""One redactor for everything that leaves: logs, answers, journals, audit.

Patterns are those of common secret scanners (gitleaks' rule set), kept to shapes that are unmistakable, plus values under
keys that name a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_KEY = re.compile(
    r"(?i)(pass(word|wd|phrase)?|secrets?|tokens?|(api|owner|private|access)[_-]?keys?|credentials?|authorization|"
    r"cookies?|dsn|connection[_-]?string)$"
)
_SHAPES = re.compile(
    r"codeb_[a-z0-9-]+_(?:owner|admin|member|viewer)_[A-Za-z0-9]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}"
    r"|xox[abposr]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"
    r"|(?<![A-Za-z0-9-])sk-(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{20,}"
    r"|(?<![A-Za-z0-9])(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{20,}"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{40,}|dop_v1_[a-f0-9]{40,}|hvs\.[A-Za-z0-9_-]{20,}"
    r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|AGE-SECRET-KEY-1[A-Z0-9]{50,}"
    r"|dckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|lin_api_[A-Za-z0-9]{32,}|hf_[A-Za-z0-9]{30,}"
    r"|\b[0-9]{8,10}:AA[A-Za-z0-9_-]{32,}|(?<=hooks\.slack\.com/services/)[A-Za-z0-9/_-]{20,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_ASSIGNED = re.compile(
    r"(?i)(\b[\w.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|apikey|access[_-]?key|private[_-]?key|"
    r"credentials?)[\w-]*[\"']?\s*[=:]\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'}]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}")
_HEADER = re.compile(r"(?i)\b((?:set-)?cookie:[ \t]*)[^\r\n]+")
_OPTION = re.compile(r"(?i)(--(?:password|passwd|passphrase|token|secret|api-?key)[ \t]+)(?!-)[^\s]+")
# Up to the last @ of the word, since passwords may hold / and @; digits and a slash after the colon are a port.
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,30}://[^\s:/@]*):(?!\d{1,5}[/?#])[^\s\"'<>]{1,300}@")

_SHORTEST = 14
"""No shape, and no `basic` with its credentials, is shorter; an assignment, an option or a URL has one of the signs of `_MAYBE`."""
_MAYBE = re.compile(r"[=:]|--")


def redact_text(text: str) -> str:
    """The text with everything that looks like a secret masked."""
    if len(text) < _SHORTEST and not _MAYBE.search(text):
        return text
    text = _SHAPES.sub(MASK, text)
    text = _URL.sub(rf"\1:{MASK}@", text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1\2{MASK}", text)
    text = _OPTION.sub(rf"\1{MASK}", text)
    return _ASSIGNED.sub(rf"\1{MASK}", text)


def redact(value: Any, key: str = "") -> Any:
    """The JSON value with secrets masked, by shape and by the key they stand under."""
    if isinstance(value, str):
        return MASK if value and _KEY.search(key) else redact_text(value)
    if isinstance(value, Mapping):
        return {redact_text(str(name)): redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    return value


def secret_fields(arguments: Mapping[str, Any], meant: frozenset[str] = frozenset()) -> list[str]:
    """The names of arguments that hold an unmistakable secret anywhere inside, also as a name. Those in `meant` may hold
    secrets, but not as the names of what they hold: names are shown."""
    return [
        name
        for name, value in arguments.items()
        if _holds_secret(value if name not in meant else [*value] if isinstance(value, Mapping) else None)
    ]


def _holds_secret(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) >= _SHORTEST and (_SHAPES.search(value) is not None or _URL.search(value) is not None)
    if isinstance(value, Mapping):
        return any(_holds_secret(item) for pair in value.items() for item in pair)
    return isinstance(value, list | tuple) and any(_holds_secret(item) for item in value)


_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f]"
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def clean_text(text: str, *, limit: int = 2000) -> str:
    """Text from outside as harmless data: no terminal codes, control, bidirectional or zero-width characters, secrets
    masked, cut at `limit` characters."""
    plain = _CONTROL.sub("", _ANSI.sub("", text.replace("\r\n", "\n")))
    plain = redact_text(plain)
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
