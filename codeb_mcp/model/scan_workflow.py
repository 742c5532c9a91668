"""What a GitHub Actions workflow does wrong. Reads it as YAML, with line numbers; runs nothing.

Works on the nodes of the YAML library, not on objects made of them: nodes know their line, and nothing in the file can make
an object. Aliases and deep nesting are refused before anything is built of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from codeb_mcp.model.finding import Finding, error, note, warning

DEEPEST = 40
_SHA = re.compile(r"^[0-9a-f]{40}$")
_EXPRESSION = re.compile(r"\$\{\{(.{0,500}?)\}\}", re.DOTALL)
_SAFE_EVENT = re.compile(
    r"github\.event\.(number|action|before|after|pull_request\.(number|id|head\.sha|base\.sha|merged|draft)"
    r"|issue\.number|repository\.(name|full_name|id)|inputs\.)"
)
_UNTRUSTED = re.compile(r"github\.(event\.[\w.*\[\]'-]+|head_ref|ref_name|ref\b|base_ref)")
_HEAD_OF = re.compile(r"pull_request\.head\.|github\.head_ref|workflow_run\.head_|refs/pull/")
_API = re.compile(r"/api/tool\b")
_CURL = re.compile(r"\bcurl\b(?:[^\n\\]|\\\n|\\.)*")
_FAILS = re.compile(r"(?:^|\s)(?:--fail(?:-with-body)?\b|-[a-zA-Z]*f[a-zA-Z]*)")
_IGNORED = re.compile(r"\|\|\s*(?:true|:|echo|exit 0)|;\s*true\s*$|^\s*set \+e", re.MULTILINE)
_BUILD_ARG = re.compile(
    r"--build-arg[ =]+[\"']?(?:\w*(?:TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL|NPMRC|NETRC)\w*|[^\s]*\$\{\{\s*secrets\.)",
    re.IGNORECASE,
)
_LATEST = re.compile(r"[\w/}]:latest\b")


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow that could be read: its nodes, and the events that start it."""

    file: str
    root: Any
    events: frozenset[str]


def scan_workflow(file: str, text: str) -> Iterator[Finding]:
    """Findings of one workflow."""
    root = read(text)
    if isinstance(root, str):
        yield error("workflow-unreadable", file, root, "Correct the YAML; actionlint says where.")
        return
    flow = Workflow(file, root, frozenset(_events(_child(root, "on"))))
    jobs = _child(root, "jobs")
    yield from _triggers(flow)
    yield from _permissions(flow, jobs)
    deploys = False
    for _, job in _pairs(jobs):
        yield from _job(flow, job)
        deploys = deploys or any(_API.search(_text(_child(step, "run"))) for step in _items(_child(job, "steps")))
    if deploys and _child(root, "concurrency") is None:
        fix = "Add concurrency with a group per environment and cancel-in-progress false."
        yield note("no-concurrency", file, "two pushes deploy at the same time", fix)


def calls_us(text: str) -> bool:
    """Whether the file talks to CodeB at all."""
    return _API.search(text) is not None


def read(text: str) -> Any:
    """The root node of a YAML text, or in words why it cannot be used."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if (problem := _unusable(yaml, text, loader)) is not None:
            return problem
        root = yaml.compose(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        return "it is not YAML" + (f": line {mark.line + 1}" if mark else "")
    return root if isinstance(root, yaml.MappingNode) else "it is no YAML mapping"


def _unusable(yaml: Any, text: str, loader: Any) -> str | None:
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            return "it uses YAML aliases, which are not followed here"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            return f"it is nested deeper than {DEEPEST}"
    return None


def _pairs(node: Any) -> list[tuple[str, Any]]:
    """The keys and values of a mapping; nothing for anything else."""
    if node is None or node.id != "mapping":
        return []
    return [(str(key.value), value) for key, value in node.value if key.id == "scalar"]


def _items(node: Any) -> list[Any]:
    return list(node.value) if node is not None and node.id == "sequence" else []


def _child(node: Any, name: str) -> Any:
    return next((value for key, value in _pairs(node) if key == name), None)


def _text(node: Any) -> str:
    return str(node.value) if node is not None and node.id == "scalar" else ""


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _all_text(node: Any) -> str:
    """Every scalar below the node, one per line."""
    if node is None:
        return ""
    if node.id == "scalar":
        return str(node.value)
    below = [value for _, value in _pairs(node)] if node.id == "mapping" else _items(node)
    return "\n".join(_all_text(one) for one in below)


def _events(node: Any) -> list[str]:
    if node is None:
        return []
    if node.id == "scalar":
        return [str(node.value)]
    return [name for name, _ in _pairs(node)] or [_text(one) for one in _items(node)]


def _triggers(flow: Workflow) -> Iterator[Finding]:
    if "pull_request_target" in flow.events:
        fix = "Use pull_request, which has no secrets for forks."
        problem = "pull_request_target runs with the secrets of the repository for anybody's pull request"
        yield warning("pull-request-target", flow.file, problem, fix)


def _permissions(flow: Workflow, jobs: Any) -> Iterator[Finding]:
    top = _child(flow.root, "permissions")
    for _, job in _pairs(jobs):
        own = _child(job, "permissions")
        said = own if own is not None else top
        if said is None:
            fix = "Say permissions: {} at the top and per job only what it needs."
            yield warning(
                "no-permissions",
                flow.file,
                "the job's token may do what the repository's default says",
                fix,
                _line(job),
            )
        elif _text(said) == "write-all":
            fix = "Name single rights, like packages: write."
            yield error("write-all", flow.file, "the job's token may change everything", fix, _line(said))


def _job(flow: Workflow, job: Any) -> Iterator[Finding]:
    if (uses := _child(job, "uses")) is not None:
        yield from _pinned(flow, uses)
        return
    yield from _runner(flow, job)
    if _child(job, "timeout-minutes") is None:
        fix = "Set timeout-minutes; without it a stuck job holds the runner for six hours."
        yield warning("no-timeout", flow.file, "the job has no time limit", fix, _line(job))
    for step in _items(_child(job, "steps")):
        for check in _STEP_CHECKS:
            yield from check(flow, job, step)


def _runner(flow: Workflow, job: Any) -> Iterator[Finding]:
    node = _child(job, "runs-on")
    if "self-hosted" not in _all_text(node).split("\n"):
        return
    foreign = flow.events & {"pull_request", "pull_request_target"}
    if not foreign:
        return
    guard = _text(_child(job, "if"))
    fix = "Build pull requests on a GitHub-hosted runner; keep the self-hosted one for what was merged."
    if "github.event_name" in guard and ("'push'" in guard or "!= 'pull_request" in guard):
        problem = "only a condition keeps pull requests off the self-hosted runner, and a pull request can change it"
        yield warning("pull-request-self-hosted", flow.file, problem, fix, _line(node))
        return
    yield error(
        "pull-request-self-hosted", flow.file, "code of a pull request runs on the self-hosted runner", fix, _line(node)
    )


def _pinned(flow: Workflow, uses: Any) -> Iterator[Finding]:
    name = _text(uses)
    if name.startswith("./") or not name:
        return
    action, _, version = name.rpartition("@")
    pinned = version.startswith("sha256:") if name.startswith("docker://") else bool(_SHA.match(version))
    if pinned:
        return
    fix = "Name the full commit, with the version as a comment: owner/action@<40 digits> # v1.2.3."
    moving = (not action and not name.startswith("docker://")) or version in ("main", "master", "latest", "HEAD")
    problem = f"{name[:100]} can become other code at any time"
    make = error if moving else warning
    yield make("unpinned-action", flow.file, problem, fix, _line(uses))


def _action(flow: Workflow, _job: Any, step: Any) -> Iterator[Finding]:
    uses, given = _child(step, "uses"), _child(step, "with")
    if uses is None:
        return
    yield from _pinned(flow, uses)
    ref = _text(_child(given, "ref")) + _text(_child(given, "repository"))
    dangerous = flow.events & {"pull_request_target", "workflow_run"}
    if dangerous and _text(uses).startswith("actions/checkout@") and _HEAD_OF.search(ref):
        problem = "it checks out foreign code in a run that has the repository's secrets"
        yield error(
            "pull-request-target", flow.file, problem, "Use pull_request for what builds foreign code.", _line(uses)
        )
    if (script := _child(given, "script")) is not None:
        yield from _contexts(flow, script)
    arguments = _text(_child(given, "build-args"))
    if "secrets." in arguments or _BUILD_ARG.search("--build-arg " + " --build-arg ".join(arguments.split())):
        yield _build_argument(flow, _child(given, "build-args"))
    if _LATEST.search(_text(_child(given, "tags"))):
        yield _latest(flow, _child(given, "tags"))


def _script(flow: Workflow, job: Any, step: Any) -> Iterator[Finding]:
    run = _child(step, "run")
    script = _text(run)
    if not script:
        return
    yield from _contexts(flow, run)
    if _BUILD_ARG.search(script):
        yield _build_argument(flow, run)
    if _LATEST.search(script):
        yield _latest(flow, run)
    if _API.search(script):
        yield from _api_call(flow, job, step, script)


def _contexts(flow: Workflow, run: Any) -> Iterator[Finding]:
    """Text from outside that is pasted into a script before the shell reads it."""
    fix = "Put it into env of the step and use the variable in quotes."
    for match in _EXPRESSION.finditer(_text(run)):
        inside = match[1].strip()
        line = _line(run) + _text(run).count("\n", 0, match.start()) + (1 if run.style in ("|", ">") else 0)
        shown = inside[:60]
        if _UNTRUSTED.search(_SAFE_EVENT.sub("", inside)):
            problem = f"{shown} is pasted into the script: whoever names a branch or a title runs commands"
            yield error("untrusted-context", flow.file, problem, fix, line)
        elif re.search(r"\binputs\.", inside):
            yield warning("untrusted-context", flow.file, f"{shown} is pasted into the script", fix, line)
        elif re.search(r"\bsecrets\.", inside):
            yield warning("secret-in-script", flow.file, f"{shown} is pasted into the script", fix, line)


def _build_argument(flow: Workflow, node: Any) -> Finding:
    fix = "Use a BuildKit secret: docker build --secret id=…,env=… and RUN --mount=type=secret."
    return error("secret-build-arg", flow.file, "a secret is a build argument and stays in the image", fix, _line(node))


def _latest(flow: Workflow, node: Any) -> Finding:
    fix = "Tag with the commit and deploy the digest that the push printed."
    return warning("latest-tag", flow.file, "latest means another image every day; no way back", fix, _line(node))


def _api_call(flow: Workflow, job: Any, step: Any, script: str) -> Iterator[Finding]:
    line = _line(_child(step, "run"))
    curls = [one[0] for one in _CURL.finditer(script)]
    asked = [one for one in curls if _API.search(one)] or curls
    if any(not _FAILS.search(one) for one in asked):
        fix = "Add --fail-with-body (or -f)."
        yield error("curl-without-fail", flow.file, "curl answers success for a failed deploy", fix, line)
    if any("--max-time" not in one and " -m" not in one for one in asked):
        fix = "Add --max-time 180; the same request again joins the run."
        yield warning("curl-without-limit", flow.file, "the call may wait for ever", fix, line)
    ignoring = [_text(_child(one, "continue-on-error")) not in ("", "false") for one in (job, step)]
    if any(ignoring) or _IGNORED.search(script):
        fix = "Let the step fail: no continue-on-error, no || true, no set +e."
        yield error("failure-ignored", flow.file, "a failed deploy turns out green", fix, line)


_STEP_CHECKS: tuple[Callable[[Workflow, Any, Any], Iterator[Finding]], ...] = (_action, _script)
