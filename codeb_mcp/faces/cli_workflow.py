"""`codeb workflow init` and `codeb workflow scan` with a checkout at hand: files are put into it and collected from it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from codeb_mcp.faces.cli_call import Manner, Surroundings, Wanted, asked, carry_out, exit_code_of, print_answer
from codeb_mcp.faces.cli_flags import Flag, flags_of, wire_arguments
from codeb_mcp.model.dockerfiles import DOCKERFILE, DOCKERIGNORE
from codeb_mcp.model.errors import Conflict, DriverRefused, InvalidRequest
from codeb_mcp.model.scan import (
    MOST_BYTES,
    MOST_FILES,
    is_dockerfile,
    is_env_file,
    is_source,
    is_workflow,
    tells_of_app,
)
from codeb_mcp.model.workflow import DEPLOY_PATH, PREVIEW_PATH
from codeb_mcp.operations.catalog import Operation

OURS = frozenset({DEPLOY_PATH, PREVIEW_PATH, DOCKERFILE, DOCKERIGNORE})
"""The only paths that are written, whatever a server answers."""
SKIPPED = frozenset(
    {".git", "node_modules", ".venv", "venv", ".next", "dist", "build", "target", "__pycache__", "vendor"}
)
MOST_LOOKED_AT = 5000
LARGEST = 100_000
"""Bytes of one file that is read."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of each file: written now, there with the same bytes, or there and different (with the difference)."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    differs: Mapping[str, str]


def command(operation: Operation, options: Callable[..., Any]) -> click.Command:
    """The command of `workflow_init` or `workflow_scan`. `options` adds the flags that every call has."""
    make = _init_command if operation.name == "workflow_init" else _scan_command
    return make(operation, options)


def _init_command(operation: Operation, options: Callable[..., Any]) -> click.Command:
    flags = flags_of(operation.request)

    @click.option("--write", metavar="DIR", help="Put the files there; files that exist are left alone")
    @click.option("--diff", is_flag=True, help="With --write: show how files that exist differ")
    @options
    @click.pass_obj
    def body(
        around: Surroundings, /, *, write: str | None, diff: bool, as_json: bool, connect: str | None, no_color: bool,
        **typed: Any,
    ) -> int:  # fmt: skip
        if diff and write is None:
            raise InvalidRequest("--diff needs --write", hint="Say which folder to compare with: --write DIR --diff.")
        manner = _manner(as_json=as_json, connect=connect, no_color=no_color)
        answer = asked(Wanted(operation.name, wire_arguments(flags, typed), operation), around, manner)
        answer = _understood(operation, answer)
        done = write_files(Path(write), answer.get("files", [])) if write is not None else None
        _print_init(answer, done, manner, diff=diff)
        return exit_code_of(answer, operation)

    return _named("init", operation, body, flags)


def _named(name: str, operation: Operation, body: Callable[..., Any], flags: list[Flag]) -> click.Command:
    made = click.command(name, help=operation.description, short_help=operation.summary)(body)
    made.params = [flag.parameter for flag in flags] + made.params
    made.context_settings = {"max_content_width": 80, "help_option_names": ["-h", "--help"]}
    return made


def _manner(*, as_json: bool, connect: str | None, no_color: bool) -> Manner:
    return Manner(as_json, connect or None, color=not no_color and not os.environ.get("NO_COLOR"))


def _understood(operation: Operation, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in the shape that this version knows; raises DriverRefused for a server's answer that has another one."""
    try:
        return operation.result.model_validate(dict(answer)).wire()
    except ValueError:
        raise DriverRefused("the server answered something else", hint="Is it of another version?") from None


def _visible(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _print_init(answer: Mapping[str, Any], done: Written | None, manner: Manner, *, diff: bool) -> None:
    told: dict[str, Any] = {}
    if done is not None:
        told = {"written": list(done.written), "unchanged": list(done.unchanged), "differs": sorted(done.differs)}
    if manner.json:
        print_answer({**answer, **told}, manner)
    else:
        texts = {"githubActionsWorkflow", "dockerfile", "files", "nextSteps"}
        facts = {name: value for name, value in answer.items() if name not in texts}
        listed = {} if done else {"files": [file["path"] for file in answer.get("files", [])]}
        print_answer({**facts, **listed, **told}, manner)
        click.echo("next steps:")
        for number, step in enumerate(answer.get("nextSteps", []), start=1):
            click.echo(_visible(f"  {number}. {step}"))
        if done is None:
            click.echo("nothing was written; repeat with --write DIR, or read the files with --json")
        elif done.differs and not diff:
            click.echo("files that differ were left as they are; --diff shows how")
    if diff and done is not None and not manner.json:
        for text in done.differs.values():
            click.echo(_visible(text), nl=False)


def write_files(folder: Path, files: list[Mapping[str, str]]) -> Written:
    """Put the files into the folder. What exists stays as it is, also when it is a link; nothing is put through a link.
    Raises InvalidRequest when the folder is none, Conflict for a path that we do not write."""
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder", hint="Name the checkout of the repository.")
    written, unchanged, differs = [], [], {}
    for file in files:
        path, content = file["path"], file["content"]
        if path not in OURS:
            raise Conflict("the server answered a path that is never written", hint="Is it of another version?")
        if _create(folder, path, content):
            written.append(path)
        elif (there := _text_of(folder / path)) == content:
            unchanged.append(path)
        else:
            differs[path] = _difference(path, there, content)
    return Written(tuple(written), tuple(unchanged), differs)


def _create(folder: Path, path: str, content: str) -> bool:
    """Write a new file whole; False when something of that name is there."""
    target = folder / path
    if target.exists() or target.is_symlink():
        return False
    for above in reversed(Path(path).parents[:-1]):
        if (folder / above).is_symlink():
            raise Conflict(f"{folder / above} is a link", hint="Nothing is written through links; make it a folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(content)
    return True


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _difference(path: str, there: str, wanted: str) -> str:
    lines = difflib.unified_diff(
        there.splitlines(keepends=True), wanted.splitlines(keepends=True), f"a/{path}", f"b/{path}"
    )
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


# ── scan ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _scan_command(operation: Operation, options: Callable[..., Any]) -> click.Command:
    flags = [_scan_flag(flag) for flag in flags_of(operation.request)]

    @click.argument("folder", metavar="[DIR]", default=".")
    @options
    @click.pass_obj
    def body(
        around: Surroundings, /, *, folder: str, as_json: bool, connect: str | None, no_color: bool, **typed: Any
    ) -> int:
        arguments = wire_arguments(flags, typed)
        if "files" not in arguments:
            arguments["files"] = collected(Path(folder))
        manner = _manner(as_json=as_json, connect=connect, no_color=no_color)
        return carry_out(Wanted(operation.name, arguments, operation), around, manner)

    return _named("scan", operation, body, flags)


def _scan_flag(flag: Flag) -> Flag:
    """The folder is what is typed without a flag here, and the files come from it."""
    if flag.path == ("projectName",):
        option = click.Option(["project_name", "--project"], help="Compare with this project's port as well")
        return Flag(flag.path, option)
    flag.parameter.required = False
    return flag


def collected(folder: Path) -> dict[str, str]:
    """The files of a checkout that matter: Dockerfiles, workflows and ignore files, then sources, those first that tell of
    the health page and the port. Environment files are named only: their text stays where it is.

    Raises InvalidRequest when the folder is none or there is nothing to look at.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder", hint="Name the checkout of the repository.")
    files: dict[str, str] = {}
    size = 0
    for path, text in sorted(_candidates(folder), key=_rank):
        size += len(text.encode())
        if len(files) == MOST_FILES or size > MOST_BYTES:
            break
        files[path] = text
    if not files:
        raise InvalidRequest(f"there is nothing to look at in {folder}", hint="Name the checkout of the repository.")
    return files


def _rank(candidate: tuple[str, str]) -> tuple[int, int, int, str]:
    path, text = candidate
    if not is_source(path) or is_workflow(path):
        return (0, 0, path.count("/"), path)
    return (1, -tells_of_app(text), path.count("/"), path)


def _candidates(folder: Path) -> Iterator[tuple[str, str]]:
    looked = 0
    for above, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in SKIPPED)
        for name in sorted(files):
            path = Path(above, name).relative_to(folder).as_posix()
            if not (_matters(path) and path.isprintable() and len(path) <= 200):
                continue
            looked += 1
            if looked > MOST_LOOKED_AT:
                return
            text = "" if is_env_file(path) else _readable(Path(above, name))
            if text is not None:
                yield path, text


def _matters(path: str) -> bool:
    named = path in (DOCKERIGNORE, ".gitignore") or is_dockerfile(path) or is_workflow(path) or is_env_file(path)
    return named or (is_source(path) and not path.endswith((".lock", "package-lock.json", ".min.js", "tsconfig.json")))


def _readable(path: Path) -> str | None:
    """The text of a file; None for links, large files and what is no text."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
