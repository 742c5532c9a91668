"""The command line in this process, on a real registry in a temporary folder and an outside world of fakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.app import opened
from codeb_mcp.drivers.fake_proxy import FakeEdge
from codeb_mcp.drivers.fakes import FakeEngine
from codeb_mcp.faces.cli import run
from codeb_mcp.faces.cli_call import Surroundings
from codeb_mcp.faces.cli_flags import flags_of
from codeb_mcp.operations.catalog import Operation, load_all
from codeb_mcp.operations.context import Services
from codeb_mcp.settings import Settings
from tests.faces.world import fake_drivers, removable


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout as JSON."""
        return json.loads(self.out)


class CliWorld:
    """`world("slot", "list")` runs a command; the fakes stay the same between commands."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.home = root.parent / "home"
        self.environ: dict[str, str] = {"CODEB_ROOT": str(root), "HOME": str(self.home)}
        self.edge = FakeEdge()
        self.engine = FakeEngine(apps=self.edge.apps)
        self._capsys = capsys

    def open(self, settings: Settings) -> AbstractAsyncContextManager[Services]:
        """The installation of this world."""
        return opened(removable(settings), fake_drivers(self.engine, self.edge))

    def __call__(self, *words: str, environ: Mapping[str, str] | None = None) -> Said:
        """Run `codeb WORDS`."""
        around = Surroundings(self.open, {**self.environ, **(environ or {})})
        self._capsys.readouterr()
        code = run(list(words), around)
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)

    def initialised(self) -> CliWorld:
        """The same world after `codeb init`, with the owner's key in the environment."""
        self.environ["CODEB_API_KEY"] = self("init", "--json").json["ownerKey"]
        return self

    def with_project(self, name: str = "shop") -> CliWorld:
        """The same world with a project, two versions of its image in a registry, and one that never gets healthy."""
        impatient = ("--health-check-deadline-seconds", "1", "--health-check-interval-seconds", "0.2")
        assert self("project", "create", name, *impatient).code == 0
        for version in ("v1", "v2"):
            self.engine.publish(f"ghcr.io/acme/{name}:{version}", version)
        self.engine.publish(f"ghcr.io/acme/{name}:sick", "sick", HEALTH="fail")
        return self

    def with_live(self, name: str = "shop") -> CliWorld:
        """The same world with v1 live in staging."""
        self.with_project(name)
        assert self("deploy", name, "--image", f"ghcr.io/acme/{name}:v1", "--auto-promote").code == 0
        return self


def typed(tool: str, params: Mapping[str, Any], folder: Path) -> list[str] | None:
    """The friendly command that says this call, or None when its flags cannot (a field or tool that does not exist). What is
    secret is written into a file in the folder."""
    catalog = load_all()
    name = catalog.aliases.get(tool, tool)
    if name not in catalog:
        return None
    words = [tool] if tool != name else tool.replace("_", " ", 1).replace("_", "-").split(" ")
    flags = {flag.path: flag.typed for flag in flags_of(catalog[name].request)}
    arguments, options = [], []
    for secret in catalog[name].request.secret & params.keys():
        (folder / secret).write_text(json.dumps(params[secret]), encoding="utf-8")
        params = {**params, secret: str(folder / secret)}
    for path, value in leaves(params):
        if path not in flags:
            return None
        text = flags[path]
        if not text.startswith("--"):
            arguments += [str(one) for one in (value if isinstance(value, list) else [value])]
        elif isinstance(value, bool):
            options.append(text if value else f"--no-{text[2:]}")
        else:
            for one in value if isinstance(value, list) else [value]:
                options += [text, str(one)]
    return [*words, *arguments, *options]


def leaves(params: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every value in nested JSON objects with its path."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in params.items():
        found += leaves(value, (*above, name)) if isinstance(value, Mapping) else [((*above, name), value)]
    return found


def wire_paths(operation: Operation) -> set[tuple[str, ...]]:
    """Every field that a request may hold, out of its JSON schema: independent of how flags are made."""
    schema = operation.request.model_json_schema(by_alias=True)
    return set(_paths(schema, schema.get("$defs", {}), ()))


def _paths(schema: Mapping[str, Any], shared: Mapping[str, Any], above: tuple[str, ...]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, field in schema.get("properties", {}).items():
        choices = [field, *field.get("anyOf", []), *field.get("allOf", [])]
        inner = [shared[one["$ref"].rpartition("/")[2]] for one in choices if "$ref" in one]
        objects = [one for one in inner if one.get("type") == "object"]
        found += _paths(objects[0], shared, (*above, name)) if objects else [(*above, name)]
        if objects and any(one.get("type") == "boolean" for one in choices):
            found.append((*above, name))
    return found
