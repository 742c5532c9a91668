"""The tool list as MCP clients see it: made from the catalog, kept in `tools.json` so that a start need not make it.

`python -m codeb_mcp.faces.tools` writes the file anew; a test compares it with the catalog.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codeb_mcp.model.access import Principal, Reach, Role, in_scope
from codeb_mcp.operations.catalog import Catalog, Effect, Operation

FILE = Path(__file__).with_name("tools.json")
ERROR: dict[str, Any] = {
    "type": "object",
    "description": "Only when the call failed",
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "hint": {"type": "string"},
        "nextStep": {"type": "string"},
        "retryable": {"type": "boolean"},
        "correlationId": {"type": "string"},
    },
    "required": ["code", "message", "hint"],
}
_GROUP = re.compile(r"\(\?P<\w+>")
ROLE, REACH, ALIASES = "codeb/role", "codeb/reach", "codeb/aliases"


def described(operation: Operation) -> dict[str, Any]:
    """The tool in its wire form."""
    meta: dict[str, Any] = {ROLE: operation.role.value, REACH: operation.reach.value}
    if operation.aliases:
        meta[ALIASES] = list(operation.aliases)
    title = operation.name.replace("_", " ").capitalize()
    return {
        "name": operation.name,
        "title": title,
        "description": operation.description,
        "inputSchema": slim(operation.request.model_json_schema(by_alias=True)),
        # The schema of what we accept is also right for what we send: values that are None are left out of answers.
        "outputSchema": or_error(slim(operation.result.model_json_schema(by_alias=True, mode="validation"))),
        "annotations": {
            "title": title,
            "readOnlyHint": operation.effect is Effect.READ,
            "destructiveHint": operation.effect is Effect.DESTROY,
            "idempotentHint": operation.idempotent,
            "openWorldHint": False,
        },
        "_meta": meta,
    }


def or_error(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a result, or of a failure's details: there are clients that check the structured content of both."""
    required = {"required": schema.get("required", [])}
    others = {key: value for key, value in schema.items() if key != "required"}
    properties = {**schema.get("properties", {}), "error": ERROR}
    return {**others, "properties": properties, "anyOf": [required, {"required": ["error"]}]}


def slim(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the titles that only repeat a field's name; models read them in every conversation."""
    return {key: _slimmed(key, value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}


def _slimmed(key: str, value: Any) -> Any:
    if key == "pattern" and isinstance(value, str):
        return _GROUP.sub("(?:", value)  # Python's named groups are an error in JavaScript
    if key in ("default", "const", "enum", "examples"):
        return value
    if key in ("properties", "$defs") and isinstance(value, dict):
        return {name: slim(inner) if isinstance(inner, dict) else inner for name, inner in value.items()}
    if isinstance(value, dict):
        return slim(value)
    if isinstance(value, list):
        return [slim(item) if isinstance(item, dict) else item for item in value]
    return value


def generate(catalog: Catalog) -> str:
    """The content of `tools.json`: sorted by name, one tool per line."""
    lines = (json.dumps(described(catalog[name]), ensure_ascii=False, sort_keys=True) for name in catalog)
    return "[\n" + ",\n".join(lines) + "\n]\n"


class ToolList:
    """All tools by name, and the ones a caller may use."""

    def __init__(self, tools: list[dict[str, Any]]) -> None:
        self._tools = {tool["name"]: tool for tool in tools}
        self._named = dict(self._tools)
        for tool in tools:
            self._named.update(dict.fromkeys(tool["_meta"].get(ALIASES, ()), tool))

    @classmethod
    def load(cls) -> ToolList:
        """From the file that ships with the package."""
        return cls(json.loads(FILE.read_text(encoding="utf-8")))

    def input_schema(self, name: str) -> Mapping[str, Any] | None:
        """The input schema of a tool, also by its old name."""
        tool = self._named.get(name)
        return tool["inputSchema"] if tool else None

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self._tools)

    def visible(self, caller: Principal) -> list[dict[str, Any]]:
        """The tools that the caller may use, in a fixed order. The same rule as `invoke.may`, on the declarations as they
        stand in the file, so that a list needs no operation to be loaded."""
        return [tool for tool in self._tools.values() if _may(tool, caller)]


def _may(tool: Mapping[str, Any], caller: Principal) -> bool:
    meta = tool["_meta"]
    if meta[REACH] == Reach.PLATFORM.value and not caller.platform:
        return False
    if not caller.role.covers(Role(meta[ROLE])) or not in_scope(caller.scopes, "tool", tool["name"]):
        return False
    return in_scope(caller.scopes, "source", caller.source)


if __name__ == "__main__":
    from codeb_mcp.operations.catalog import load_all

    FILE.write_text(generate(load_all()), encoding="utf-8")
