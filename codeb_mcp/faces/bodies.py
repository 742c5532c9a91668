"""JSON from outside: refused when it could mean two things to two parsers, or cost more than it is worth."""

from __future__ import annotations

import json
import math
from typing import Any

from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.model.redaction import clean_text

MAX_DEPTH = 64
HINT = "Send one JSON document in UTF-8."
BODY_KEYS = frozenset({"tool", "params"})


def parse(raw: bytes) -> Any:
    """The JSON value; raises InvalidRequest for anything that is not UTF-8, not JSON, nested deeper than 64, or holds a key
    twice, half a surrogate pair, NaN or a number too large."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}", hint=HINT) from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}", hint=HINT) from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not acceptable: {_said(error)}", hint=HINT) from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH or b"\\u" in raw:
        check(value)
    return value


def check(value: Any) -> None:
    """Raise InvalidRequest for a value that another parser let through: nested deeper than 64, not finite, or with half a
    surrogate pair."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for item in level for inner in _children(item)]
        if not level:
            return
    raise _too_deep()


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        _whole(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest("the body is not acceptable: a number is not finite", hint=HINT)
    return []


def _whole(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest("the body is not acceptable: half a surrogate pair", hint=HINT) from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested deeper than {MAX_DEPTH}", hint="Send a flatter document.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _said(error: ValueError) -> str:
    """Our own words; Python's (a number of too many digits) are not for callers."""
    text = str(error)
    return "a number has too many digits" if "digits" in text else text


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)


def misshapen(body: Any) -> InvalidRequest | None:
    """What is wrong with a body of `/api/tool` around the parameters, which the operation itself checks; `fields` are in the
    detail when it names a tool."""
    if not isinstance(body, dict) or not isinstance(body.get("tool"), str) or not body["tool"]:
        return InvalidRequest("Tool name required", hint='Send {"tool": "slot_list", "params": {}}.')
    for key in body:
        if key not in BODY_KEYS:
            wrong = {"field": clean_text(key, limit=100), "problem": "unknown key"}
            hint = "The body takes tool and params; parameters of the tool belong into params."
            return InvalidRequest(f"{wrong['field']}: unknown key", hint=hint, fields=[wrong])
    if body.get("params") is not None and not isinstance(body["params"], dict):
        wrong = {"field": "params", "problem": "must be an object"}
        return InvalidRequest("params: must be an object", hint="Send params as an object.", fields=[wrong])
    return None
