"""`codeb workflow`: files are put into a checkout without touching what is there, and collected from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from codeb_mcp.faces.cli import ROOT
from codeb_mcp.faces.cli_workflow import collected, write_files
from codeb_mcp.model.errors import Conflict, DriverRefused, InvalidRequest
from codeb_mcp.model.scan import MOST_BYTES, MOST_FILES
from tests.faces.cli_world import CliWorld
from tests.faces.payloads import texts
from tests.faces.test_cli_remote import Stranger, codeb

FILES = [".dockerignore", ".github/workflows/deploy.yml", ".github/workflows/preview.yml", "Dockerfile"]
INIT = ("workflow", "init", "shop", "--type", "python")


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CliWorld:
    """An installation with its owner's key."""
    return CliWorld(tmp_path / "codeb", capsys).initialised()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time of its last change."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_files_are_written_once_and_writing_them_again_changes_nothing(world: CliWorld, checkout: Path) -> None:
    first = world(*INIT, "--write", str(checkout))
    assert first.code == 0, first.err
    assert sorted(tree(checkout)) == FILES
    before = tree(checkout)
    again = world(*INIT, "--write", str(checkout), "--json").json
    assert (again["written"], sorted(again["unchanged"]), again["differs"]) == ([], FILES, [])
    assert tree(checkout) == before
    assert "Create the project: project_create" in first.out


def test_a_file_that_differs_is_left_alone_and_the_difference_is_shown(world: CliWorld, checkout: Path) -> None:
    (checkout / "Dockerfile").write_text("FROM mine:1\n", encoding="utf-8")
    said = world(*INIT, "--write", str(checkout))
    assert "files that differ were left as they are" in said.out
    assert (checkout / "Dockerfile").read_text(encoding="utf-8") == "FROM mine:1\n"
    assert sorted(tree(checkout)) == FILES
    shown = world(*INIT, "--write", str(checkout), "--diff").out
    assert "-FROM mine:1\n" in shown
    assert '+CMD ["python", "main.py"]\n' in shown
    assert world(*INIT, "--write", str(checkout), "--json").json["differs"] == ["Dockerfile"]


def test_without_a_folder_nothing_is_written(world: CliWorld, checkout: Path) -> None:
    said = world(*INIT)
    assert "nothing was written" in said.out
    assert "Dockerfile" in said.out
    files = {file["path"]: file["content"] for file in world(*INIT, "--json").json["files"]}
    assert sorted(files) == FILES
    refused = world(*INIT, "--diff")
    assert (refused.code, "--diff needs --write" in refused.err) == (10, True)
    assert world(*INIT, "--write", str(checkout / "nowhere")).code == 10


def test_nothing_is_written_through_links(world: CliWorld, checkout: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (checkout / ".github").symlink_to(outside)
    refused = world(*INIT, "--write", str(checkout))
    assert refused.code == Conflict.exit_code
    (checkout / ".github").unlink()
    (checkout / "Dockerfile").symlink_to(outside / "made")
    said = world(*INIT, "--write", str(checkout), "--json").json
    assert said["differs"] == ["Dockerfile"]
    assert list(outside.iterdir()) == []


def test_a_server_cannot_choose_where_files_are_written(checkout: Path) -> None:
    places = ("../evil", "/etc/cron.d/evil", ".git/hooks/pre-commit", ".github/workflows/other.yml", "Makefile", "")
    for path in (*places, *texts()):
        with pytest.raises(Conflict):
            write_files(checkout, [{"path": path, "content": "x"}])
    assert list(checkout.iterdir()) == []
    assert not (checkout.parent / "evil").exists()


def test_what_was_generated_passes_the_scan_and_a_bad_repository_does_not(world: CliWorld, checkout: Path) -> None:
    world(*INIT, "--write", str(checkout))
    (checkout / "main.py").write_text("serve('/health', os.environ['PORT'])", encoding="utf-8")
    good = world("workflow", "scan", str(checkout))
    assert (good.code, good.out.splitlines()[0]) == (0, "nothing to correct")
    (checkout / "Dockerfile").write_text("FROM python\nCMD python main.py\n", encoding="utf-8")
    bad = world("workflow", "scan", str(checkout), "--json")
    assert bad.code == 17
    assert [row["rule"] for row in bad.json["issues"]] == ["runs-as-root", "shell-form", "latest-tag"]


def test_a_scan_collects_what_matters_and_leaves_secrets_where_they_are(checkout: Path) -> None:
    for path in ("node_modules/a/Dockerfile", ".git/config", "src/deep/health.ts", "package-lock.json", "picture.js"):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text("app.get('/health')", encoding="utf-8")
    (checkout / "picture.js").write_bytes(b"\xff\xfe\x00")
    (checkout / ".env").write_text("DB_PASSWORD=right-horse", encoding="utf-8")
    (checkout / "linked.js").symlink_to("/etc/passwd")
    for number in range(60):
        (checkout / f"a{number:02}.js").write_text("x = 1", encoding="utf-8")
    (checkout / "zzz.js").write_text("listen(process.env.PORT)", encoding="utf-8")
    files = collected(checkout)
    assert files[".env"] == ""
    assert "right-horse" not in json.dumps(files)
    assert len(files) == MOST_FILES
    assert list(files)[:3] == [".env", "src/deep/health.ts", "zzz.js"], (
        "what tells of health and port is not crowded out"
    )
    assert not [path for path in files if path.startswith((".git/", "node_modules/")) or "linked" in path]


def test_a_scan_sends_no_more_than_is_read(checkout: Path) -> None:
    for number in range(9):
        (checkout / f"{number}.py").write_text("é" * 20_000, encoding="utf-8")
    (checkout / "huge.py").write_text("x" * 150_000, encoding="utf-8")
    assert 0 < sum(len(text.encode()) for text in collected(checkout).values()) <= MOST_BYTES


def test_a_folder_with_nothing_to_look_at_is_refused(world: CliWorld, checkout: Path) -> None:
    with pytest.raises(InvalidRequest, match="nothing to look at"):
        collected(checkout)
    assert world("workflow", "scan", str(checkout / "nowhere")).code == 10


def test_names_of_files_that_terminals_would_obey_are_left_out(checkout: Path) -> None:
    os.mkfifo(checkout / "pipe.js")
    for name in ("a\x1b[31m.js", "b\n.js", "c\u202e.js"):
        (checkout / name).write_text("x", encoding="utf-8")
    (checkout / "d.js").write_text("x", encoding="utf-8")
    assert list(collected(checkout)) == ["d.js"]


def test_a_projects_port_is_compared_when_it_is_named(world: CliWorld, checkout: Path) -> None:
    world("project", "create", "shop", "--container-port", "3000")
    world(*INIT, "--write", str(checkout), "--container-port", "9999")
    said = world("workflow", "scan", str(checkout), "--project", "shop", "--json").json
    assert "port-differs" in [row["rule"] for row in said["issues"]]


def answered(**changed: Any) -> bytes:
    """What a server might answer to `workflow init`."""
    whole = {
        "success": True, "projectName": "shop", "type": "python", "environment": "staging", "projectExists": True,
        "files": [], "githubActionsWorkflow": "", "dockerfile": "", "ports": {}, "containerPort": 1, "secrets": [],
        "nextSteps": [], **changed,
    }  # fmt: skip
    return json.dumps({**whole, "result": whole}).encode()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (answered(), 0),
        (answered(files=[{"path": "../evil", "content": "x"}]), Conflict.exit_code),
        (answered(files=[{"path": "Dockerfile", "content": "FROM \x1b[31mred"}], nextSteps=["\x1b]0;title\x07go"]), 0),
        (answered(files="Dockerfile"), DriverRefused.exit_code),
        (answered(files=[{"path": ["Dockerfile"]}]), DriverRefused.exit_code),
        (answered(nextSteps=7), DriverRefused.exit_code),
        (b'{"success":true}', DriverRefused.exit_code),
    ],
    ids=[str(number) for number in range(7)],
)
def test_what_a_server_answers_is_checked_before_anything_is_done_with_it(
    body: bytes, code: int, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "Dockerfile").write_text("FROM mine:1\n", encoding="utf-8")
    with Stranger(200, body, {"Content-Type": "application/json"}).running() as stranger:
        assert codeb(*INIT, "--write", str(checkout), "--diff", url=stranger.url) == code
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert list(checkout.iterdir()) == [checkout / "Dockerfile"]
    assert (checkout / "Dockerfile").read_text(encoding="utf-8") == "FROM mine:1\n"


@pytest.mark.parametrize("verb", ["init", "scan"])
def test_the_commands_have_the_common_flags_and_help_that_fits(verb: str) -> None:
    ctx = click.Context(ROOT, info_name="codeb")
    noun = ROOT.get_command(ctx, "workflow")
    assert isinstance(noun, click.Group)
    command = noun.get_command(ctx, verb)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert options >= {"--json", "--connect", "--no-color"}
    text = command.get_help(click.Context(command, info_name=f"codeb workflow {verb}", max_content_width=80))
    assert max(map(len, text.splitlines())) <= 80


# ── with the project ────────────────────────────────────────────────────────────────────────────────────────────


def test_one_command_makes_the_project_and_a_wish_that_cannot_be_says_why(world: CliWorld, checkout: Path) -> None:
    refused = world(*INIT, "--create", "--database", "--write", str(checkout))
    assert (refused.code, "no server with the role database" in refused.err) == (14, True)
    assert tree(checkout) == {}
    said = world(*INIT, "--create", "--domain", "www.example.com", "--write", str(checkout))
    assert said.code == 0, said.err
    assert "provisioned" in said.out
    assert sorted(tree(checkout)) == FILES


def test_project_create_takes_wishes_as_flags_and_variables_from_a_file(world: CliWorld, tmp_path: Path) -> None:
    values = tmp_path / "first.env"
    values.write_text("LOG_LEVEL=debug\nGREETING='two words'\n", encoding="utf-8")
    wish = ("project", "create", "worb", "--domain", "www.example.com", "--env", str(values))
    made = world(*wish, "--json")
    assert made.code == 0, made.err
    assert [(row["wish"], row["environment"], row["outcome"]) for row in made.json["provisioned"]] == [
        ("env", "production", "made"), ("env", "staging", "made"), ("domain", "production", "made"),
    ]  # fmt: skip
    assert {row["outcome"] for row in world(*wish, "--json").json["provisioned"]} == {"present"}
    assert world("project", "create", "worb", "--redis", "--redis-placement", "own").code == 14
