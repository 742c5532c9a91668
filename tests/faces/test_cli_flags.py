"""Commands and flags follow from the catalog: nothing is missing, nothing is invented."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from codeb_mcp.faces.cli import ROOT, command_words, operation_command
from codeb_mcp.faces.cli_flags import flags_of, kebab, wire_arguments
from codeb_mcp.operations.catalog import Effect, load_all
from tests.faces.cli_world import wire_paths

OPERATIONS = sorted(load_all())
COMMON = {"--json", "--connect", "--no-color"}
HEAVY = ("mcp", "aiohttp", "aiodocker", "starlette", "uvicorn", "httpx2", "asyncssh", "rich", "structlog")


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_flags_of_a_command_cover_every_field_of_its_request_and_no_other(name: str) -> None:
    operation = load_all()[name]
    flags = flags_of(operation.request)
    assert {flag.path for flag in flags} == wire_paths(operation)
    assert len({flag.typed for flag in flags}) == len(flags)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_a_command_with_the_common_flags(name: str) -> None:
    ctx = click.Context(ROOT, info_name="codeb")
    command: click.Command | None = ROOT
    for word in command_words(name):
        assert isinstance(command, click.Group)
        command = command.get_command(ctx, word)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert options >= COMMON
    assert ("--yes" in options) == (load_all()[name].effect is Effect.DESTROY)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_help_text_says_what_the_command_does_and_fits_80_columns(name: str) -> None:
    operation = load_all()[name]
    command = operation_command(operation)
    text = command.get_help(
        click.Context(command, info_name="codeb " + " ".join(command_words(name)), max_content_width=80)
    )
    assert operation.summary.split()[0] in text
    too_long = [line for line in text.splitlines() if len(line) > 80 and "|" not in line]
    assert too_long == []


def test_the_overview_names_every_operation_by_its_noun_and_verb() -> None:
    ctx = click.Context(ROOT, info_name="codeb")
    names = ROOT.list_commands(ctx)
    for name in OPERATIONS:
        noun, *verb = command_words(name)
        assert noun in names
        group = ROOT.get_command(ctx, noun)
        assert not verb or (isinstance(group, click.Group) and verb[0] in group.list_commands(ctx))


def test_names_on_the_command_line_are_those_of_the_wire_in_kebab_case() -> None:
    assert kebab("healthCheck") == "health-check"
    assert kebab("memoryMb") == "memory-mb"
    flags = {flag.path: flag.typed for flag in flags_of(load_all()["project_update"].request)}
    assert flags["projectName",] == "PROJECT"
    assert flags["healthCheck", "expectedStatuses"] == "--health-check-expected-statuses"
    assert flags["limits", "readOnlyRoot"] == "--limits-read-only-root"
    repair = flags_of(load_all()["registry_repair"].request)
    assert [flag.typed for flag in repair] == ["DRIFT_ID..."]


def test_only_what_was_typed_goes_to_the_wire() -> None:
    flags = flags_of(load_all()["project_create"].request)
    typed = {"project_name": "shop", "limits__memory_mb": 64, "environments": ("production",), "image": None}
    assert wire_arguments(flags, typed) == {
        "projectName": "shop",
        "limits": {"memoryMb": 64},
        "environments": ["production"],
    }


def test_what_may_be_just_on_or_have_fields_of_its_own_is_a_flag_and_theirs() -> None:
    flags = flags_of(load_all()["project_create"].request)
    typed = {"project_name": "da-rak", "database": True, "redis": True, "redis__placement": "own", "redis__port": 6400}
    assert wire_arguments(flags, typed) == {
        "projectName": "da-rak",
        "database": True,
        "redis": {"placement": "own", "port": 6400},
    }
    assert wire_arguments(flags, {"redis__placement": "own"}) == {"redis": {"placement": "own"}}
    shown = {flag.typed for flag in flags}
    assert shown >= {"--database", "--database-placement", "--redis-port", "--streaming", "--domain", "--env"}


def test_a_flag_that_is_on_by_default_can_be_turned_off_and_one_that_is_off_cannot() -> None:
    options = {flag.path: flag.parameter for flag in flags_of(load_all()["deploy"].request)}
    assert options["wait",].secondary_opts == ["--no-wait"]
    assert options["force",].secondary_opts == []


@pytest.mark.parametrize("words", [["--help"], ["deploy", "--help"], ["slot", "--help"], ["version"], ["nonsense"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\nfrom codeb_mcp.faces.cli import run\n"
        f"run({words!r})\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    heavy = done.stdout.splitlines()[-1]
    assert heavy == ("[]" if words != ["nonsense"] else "['rich']")
