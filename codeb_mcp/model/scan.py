"""What a repository lacks or does wrong before it can be deployed well: from its files alone, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from codeb_mcp.model.finding import Finding, Severity, error, note, warning
from codeb_mcp.model.redaction import clean_text, secret_fields
from codeb_mcp.model.scan_dockerfile import scan_dockerfile
from codeb_mcp.model.scan_workflow import calls_us, scan_workflow

MOST_FILES = 40
MOST_BYTES = 200_000
INIT = "Make one with workflow_init."
_WORKFLOW = re.compile(r"^\.github/workflows/[^/]+\.ya?ml$")
_DOCKERFILE = re.compile(r"(^|/)(Dockerfile(\.[\w-]+)?|[\w-]+\.[Dd]ockerfile)$")
_SOURCE = re.compile(r"\.(m?[jt]sx?|cjs|py|go|toml|json)$")
_HEALTH = re.compile(r"/health\b|[\"'/]health[\"'/]|(^|/)(api/)?health(/|\.|$)")
_PORT = re.compile(r"\bPORT\b")
_PORT_BY_ITSELF = re.compile(r"\bgunicorn\b|\bnext\b|remix-serve|react-router-serve")
_ENV_FILE = re.compile(r"(^|/)\.env(\.[\w-]+)*$")
_EXAMPLE = (".example", ".sample", ".template", ".dist")
_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


def is_workflow(path: str) -> bool:
    """Whether GitHub takes the file for a workflow."""
    return _WORKFLOW.search(path) is not None


def is_dockerfile(path: str) -> bool:
    """Whether the file is a Dockerfile by its name."""
    return _DOCKERFILE.search(path) is not None


def is_env_file(path: str) -> bool:
    """Whether the file is one of variables that may be secret."""
    return _ENV_FILE.search(path) is not None and not path.endswith(_EXAMPLE)


def is_source(path: str) -> bool:
    """Whether the app itself may be in the file."""
    return _SOURCE.search(path) is not None


def tells_of_app(text: str) -> int:
    """How much a source file tells about the contract with the app: 2 its health page, 1 its port, 0 nothing."""
    return 2 if _HEALTH.search(text) else 1 if _PORT.search(text) else 0


def scan(files: Mapping[str, str], port: int | None = None) -> list[Finding]:
    """Everything found in the files, worst first. `port`: where the project says that the app listens."""
    found = [
        *_dockerfiles(files, port),
        *_workflows(files),
        *_ignore(files),
        *_app(files),
        *_env_files(files),
        *_secrets(files),
    ]
    unique = dict.fromkeys(found)
    return sorted(unique, key=lambda one: (_ORDER[one.severity], one.file, one.line or 0, one.rule))


def _dockerfiles(files: Mapping[str, str], port: int | None) -> Iterator[Finding]:
    paths = [path for path in files if is_dockerfile(path)]
    if not paths:
        yield error("no-dockerfile", "Dockerfile", "there is no Dockerfile, so no image can be built", INIT)
    for path in paths:
        yield from scan_dockerfile(path, files[path], port)


def _workflows(files: Mapping[str, str]) -> Iterator[Finding]:
    paths = [path for path in files if is_workflow(path)]
    for path in paths:
        yield from scan_workflow(path, files[path])
    if not any(calls_us(files[path]) for path in paths):
        folder = ".github/workflows/deploy.yml"
        yield warning("no-deploy-workflow", folder, "no workflow deploys what is merged", INIT)


def _ignore(files: Mapping[str, str]) -> Iterator[Finding]:
    text = files.get(".dockerignore")
    if text is None:
        problem = "everything in the folder goes into the build: .git, .env, node_modules"
        yield warning("no-dockerignore", ".dockerignore", problem, INIT)
    elif not _ignores(text, ".env"):
        fix = "Add the lines .env and .env.*."
        yield warning("dockerignore-env", ".dockerignore", "environment files go into the build", fix)


def _ignores(text: str, name: str) -> bool:
    """Whether an ignore file names the file, in the spellings that people use."""
    lines = {line.strip().removeprefix("**/").lstrip("/") for line in text.splitlines()}
    wanted = {name, name + "*", "*" + name, "*", ".env*", ".*"}
    if name != ".env":
        wanted |= {".env.*", ".env*"}
    return bool(lines & wanted)


def _app(files: Mapping[str, str]) -> Iterator[Finding]:
    sources = {path: text for path, text in files.items() if is_source(path) and not is_workflow(path)}
    if not sources:
        fix = "Send the app's own files as well, or run codeb workflow scan in the checkout."
        yield note("no-source", "", "there was no source among the files: /health and PORT were not looked for", fix)
        return
    if not any(_HEALTH.search(path) or _HEALTH.search(text) for path, text in sources.items()):
        fix = "Answer GET /health with 200 once requests can be served."
        yield warning("no-health", "", "no file mentions /health, by which a release proves itself", fix)
    starts = "\n".join(text for path, text in files.items() if is_dockerfile(path) or path.endswith("package.json"))
    if not any(_PORT.search(text) for text in sources.values()) and not _PORT_BY_ITSELF.search(starts):
        fix = "Listen on 0.0.0.0 and the port in the variable PORT."
        yield warning("port-ignored", "", "no source reads PORT", fix)


def _env_files(files: Mapping[str, str]) -> Iterator[Finding]:
    ignored = files.get(".gitignore", "")
    for path in files:
        if is_env_file(path) and not _ignores(ignored, path.rpartition("/")[2]):
            fix = "Take it out of the repository, add it to .gitignore, and change what was in it."
            yield error("env-file", path, "an environment file is part of the repository", fix)


def _secrets(files: Mapping[str, str]) -> Iterator[Finding]:
    for path, text in files.items():
        if not secret_fields({"text": text}):
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if secret_fields({"line": line}):
                fix = "Take it out, change it where it came from, and give it as a secret of GitHub or a variable."
                yield error("secret-in-file", path, "the line holds what looks like a secret", fix, number)


def shown(text: str, limit: int) -> str:
    """Text that came with the files as harmless data on one line."""
    return " ".join(clean_text(text, limit=limit).split())
