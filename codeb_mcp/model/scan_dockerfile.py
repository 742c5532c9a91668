"""What a Dockerfile does wrong. Reads it line by line; builds nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from codeb_mcp.model.finding import Finding, error, warning

_SECRET_NAME = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|api_?key|private_?key|credentials?|npmrc|netrc)(_|$)"
)
_ROOT = re.compile(r"^(root|0)(:|$)")
_PORT = re.compile(r"^(\d{1,5})(/tcp)?$")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with its continuation lines joined. `word` is in capitals."""

    line: int
    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile; comments, empty lines and here-documents are left out."""
    found: list[Instruction] = []
    parts: list[str] = []
    start, until = 0, ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if until:
            until = "" if line == until else until
            continue
        if not line or line.startswith("#"):
            continue
        start = start if parts else number
        parts.append(line.removesuffix("\\").strip())
        if line.endswith("\\"):
            continue
        word, _, rest = " ".join(parts).partition(" ")
        found.append(Instruction(start, word.upper(), rest.strip()))
        here = re.search(r"<<-?[\"']?(\w+)", rest) if word.upper() in ("RUN", "COPY") else None
        until = here[1] if here else ""
        parts = []
    return found


def scan_dockerfile(file: str, text: str, port: int | None = None) -> Iterator[Finding]:
    """Findings of one Dockerfile. `port`: where the project says that the app listens."""
    known = instructions(text)
    if not any(one.word == "FROM" for one in known):
        yield error(
            "dockerfile-empty", file, "it has no FROM, so it builds nothing", "Begin with FROM and a base image."
        )
        return
    last = _last_stage(known)
    yield from _bases(file, known)
    yield from _user(file, last)
    yield from _start(file, last)
    yield from _secrets(file, known)
    yield from _ports(file, last, port)


def _last_stage(known: list[Instruction]) -> list[Instruction]:
    first = max(index for index, one in enumerate(known) if one.word == "FROM")
    return known[first:]


def _words(one: Instruction) -> list[str]:
    return [word for word in one.rest.split() if not word.startswith("--")]


def _bases(file: str, known: list[Instruction]) -> Iterator[Finding]:
    stages: set[str] = set()
    for one in known:
        words = _words(one)
        if one.word != "FROM" or not words:
            continue
        base = words[0]
        tag = base.rpartition("/")[2].partition(":")[2]
        if "$" not in base and "@" not in base and base not in stages and base != "scratch" and tag in ("", "latest"):
            fix = f"Name a version, like {base.partition(':')[0][:80]}:1.2, better a digest."
            yield warning("latest-tag", file, "the base image is whatever is newest on the day", fix, one.line)
        if len(words) == 3 and words[1].upper() == "AS":
            stages.add(words[2])


def _user(file: str, last: list[Instruction]) -> Iterator[Finding]:
    users = [one for one in last if one.word == "USER"]
    fix = "End with a line like USER 1000:1000."
    if users and _ROOT.match(users[-1].rest):
        yield error("runs-as-root", file, "the app runs as root", fix, users[-1].line)
    elif not users and "nonroot" not in last[0].rest:
        yield error("runs-as-root", file, "no USER is set, so the app runs as root", fix, last[0].line)


def _start(file: str, last: list[Instruction]) -> Iterator[Finding]:
    starts = [one for one in last if one.word in ("CMD", "ENTRYPOINT")]
    if not starts:
        fix = 'End with CMD and the program as a list, like CMD ["node", "server.js"].'
        yield warning("no-command", file, "nothing says what to start; the base image's command may be a shell", fix)
    for one in starts:
        if not _is_list(one.rest):
            fix = f'Write it as a list: {one.word} ["program", "argument"].'
            problem = f"{one.word} starts a shell: SIGTERM never reaches the app, so it is killed with its requests"
            yield error("shell-form", file, problem, fix, one.line)


def _is_list(text: str) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _secrets(file: str, known: list[Instruction]) -> Iterator[Finding]:
    mount = "Mount it for the one step: RUN --mount=type=secret,id=…; at run time it comes from the environment file."
    for one in known:
        if one.word in ("ARG", "ENV"):
            for name in _names(one):
                if _SECRET_NAME.search(name):
                    problem = f"{one.word} {name[:60]} stays readable in the image"
                    yield error("secret-in-image", file, problem, mount, one.line)
        elif one.word in ("COPY", "ADD") and any(_is_env_file(word) for word in _words(one)[:-1]):
            yield error("secret-in-image", file, "an environment file is copied into the image", mount, one.line)


def _names(one: Instruction) -> list[str]:
    """The variables that an ARG or ENV sets, in both spellings of ENV."""
    words = one.rest.split()
    if one.word == "ENV" and words and "=" not in words[0]:
        return words[:1]
    return [name for name in (word.partition("=")[0] for word in words) if re.fullmatch(r"\w+", name)]


def _is_env_file(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(".env") and not name.endswith((".example", ".sample", ".template"))


def _ports(file: str, last: list[Instruction], port: int | None) -> Iterator[Finding]:
    exposed = [
        (one, match) for one in last if one.word == "EXPOSE" for match in map(_PORT.match, one.rest.split()) if match
    ]
    for one, match in exposed:
        if port is not None and int(match[1]) != port:
            fix = f"Make them the same: EXPOSE {port}, or project_update with containerPort {match[1]}."
            problem = f"it exposes {match[1]}, and the project says that the app listens on {port}"
            yield warning("port-differs", file, problem, fix, one.line)
