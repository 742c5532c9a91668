"""What the documentation says is what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from codeb_mcp import __version__
from codeb_mcp.faces.cli import ROOT
from codeb_mcp.faces.docs import generated, reference, sample_arguments, with_settings
from codeb_mcp.model.errors import ERRORS
from codeb_mcp.operations.catalog import load_all
from codeb_mcp.operations.invoke import validated

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
PAGES = sorted([CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md", *DOCS.glob("*.md"), *DOCS.glob("decisions/*.md")])
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Every command line of a page's shell blocks, without comments."""
    lines = [
        line
        for block in BLOCK.findall(page.read_text(encoding="utf-8"))
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def codeb_commands() -> list[tuple[str, list[str]]]:
    """Every `codeb …` of every page."""
    return [(page.name, words[1:]) for page in PAGES for words in commands(page) if words[0] == "codeb"]


@pytest.mark.parametrize("path", sorted(generated()), ids=lambda path: path.name)
def test_generated_documentation_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated()[path], "run python -m codeb_mcp.faces.docs"


def test_the_check_command_finds_nothing_stale() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codeb_mcp.faces.docs", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_names_every_operation_every_parameter_and_every_error() -> None:
    text = reference(load_all())
    for operation in load_all().values():
        section = text.partition(f"### {operation.name}\n")[2].partition("\n### ")[0]
        wire = [field.alias or name for name, field in operation.request.model_fields.items()]
        assert [name for name in wire if f"| `{name}` |" not in section] == []
    assert [code for code in ERRORS if f"`{code}` |" not in text] == []


def test_every_example_fits_its_request() -> None:
    for operation in load_all().values():
        validated(operation, sample_arguments(operation))


def test_a_deployment_page_without_the_marks_of_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="lost the marks"):
        with_settings("no marks")


@pytest.mark.parametrize(("page", "words"), codeb_commands())
def test_every_documented_command_parses(page: str, words: list[str]) -> None:
    command: click.Command | None = ROOT
    ctx = click.Context(ROOT, info_name="codeb")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(ctx, words[0])
        words = words[1:]
    assert command is not None
    assert not isinstance(command, click.Group)
    command.make_context("codeb", list(words), parent=ctx)


def test_the_error_table_for_operators_names_every_code() -> None:
    text = (DOCS / "DEPLOYMENT.md").read_text(encoding="utf-8")
    assert [code for code in ERRORS if f"| `{code}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_both_first_screens_have_the_same_commands() -> None:
    shown = [[" ".join(words) for words in commands(page)] for page in (CHECKOUT / "README.md", DOCS / "README.ko.md")]
    assert shown[0] == shown[1]
    scripts = [line.split()[0] for line in shown[0] if line.startswith("./")]
    assert scripts == ["./scripts/demo", "./scripts/test"]
    assert all((CHECKOUT / script).stat().st_mode & 0o111 for script in scripts)


def test_the_first_screen_is_one_screen() -> None:
    for page in (CHECKOUT / "README.md", DOCS / "README.ko.md"):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 45


def test_the_picture_is_of_a_demo_that_lost_nothing_and_fetches_nothing() -> None:
    picture = (DOCS / "demo.svg").read_text(encoding="utf-8").replace("&#160;", " ")
    assert "requests served, 0 lost" in picture
    assert "url(http" not in picture


def test_there_is_one_version() -> None:
    assert version("codeb-mcp") == __version__
    assert __version__ in (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
