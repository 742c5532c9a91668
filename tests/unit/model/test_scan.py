"""What the scanner finds: one bad file per rule, good ones in which it finds nothing, and files made to harm it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from codeb_mcp.model.dockerfiles import AppType, dockerfile, dockerignore
from codeb_mcp.model.finding import Severity
from codeb_mcp.model.scan import scan
from codeb_mcp.model.scan_dockerfile import instructions
from codeb_mcp.model.workflow import DEPLOY_PATH, Pipeline, deploy_workflow, preview_workflow, to_yaml
from tests.faces.payloads import texts

PINNED = "actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8"
GOOD = {
    "Dockerfile": dockerfile(AppType.NODEJS, 8080),
    ".dockerignore": dockerignore(AppType.NODEJS),
    DEPLOY_PATH: to_yaml(deploy_workflow(Pipeline("shop", AppType.NODEJS))),
    ".github/workflows/preview.yml": to_yaml(preview_workflow(Pipeline("shop", AppType.NODEJS))),
    "index.js": "app.get('/health', (_, reply) => reply.send('ok')); app.listen(process.env.PORT)",
}
CALL = 'curl -sf --max-time 180 -X POST "$CODEB_URL/api/tool" -d "$BODY"'


def flow(step: str = "run: make", *, on: str = "push", job: str = "", top: str = "permissions: {}") -> dict[str, str]:
    """A workflow of one job with one step, which is fine unless the arguments are not."""
    job = job or "runs-on: ubuntu-24.04\n    timeout-minutes: 5"
    step = step.replace("\n", "\n        ")
    return {
        ".github/workflows/ci.yml": f"on: {on}\n{top}\njobs:\n  one:\n    {job}\n    steps:\n      - {step}\n",
    }


def docker(
    *lines: str, base: str = "FROM node:24", user: str = "USER 1000", cmd: str = 'CMD ["node", "."]'
) -> dict[str, str]:
    """A Dockerfile that is fine unless the arguments are not."""
    return {"Dockerfile": "\n".join(filter(None, [base, *lines, user, cmd])) + "\n"}


HOSTED = "runs-on: [self-hosted, Linux]\n    timeout-minutes: 5"
BAD: list[tuple[str, str, dict[str, str], int | None]] = [
    ("no-dockerfile", "error", {}, None),
    ("dockerfile-empty", "error", {"Dockerfile": "# nothing\n"}, None),
    ("runs-as-root", "error", docker(user=""), 1),
    ("runs-as-root", "error", docker(user="USER root"), 2),
    ("runs-as-root", "error", docker(user="USER 0:0"), 2),
    ("runs-as-root", "error", {"Dockerfile": 'FROM a:1\nUSER 1\nFROM a:2\nCMD ["x"]\n'}, 3),
    ("shell-form", "error", docker(cmd="CMD node server.js"), 3),
    ("shell-form", "error", docker(cmd="ENTRYPOINT ./start.sh"), 3),
    ("no-command", "warning", docker(cmd=""), None),
    ("latest-tag", "warning", docker(base="FROM node"), 1),
    ("latest-tag", "warning", docker(base="FROM --platform=linux/amd64 ghcr.io/acme/base:latest AS x"), 1),
    ("secret-in-image", "error", docker("ARG NPM_TOKEN"), 2),
    ("secret-in-image", "error", docker("ENV A=1 \\", "    DB_PASSWORD=x"), 2),
    ("secret-in-image", "error", docker("ENV API_KEY abc"), 2),
    ("secret-in-image", "error", docker("COPY .env ./"), 2),
    ("port-differs", "warning", docker("EXPOSE 3000/tcp"), 2),
    ("no-deploy-workflow", "warning", flow(), None),
    ("workflow-unreadable", "error", {".github/workflows/ci.yml": "a: [1\nb"}, None),
    ("workflow-unreadable", "error", {".github/workflows/ci.yml": "- a\n- b\n"}, None),
    ("pull-request-self-hosted", "error", flow(on="pull_request", job=HOSTED), 5),
    ("pull-request-self-hosted", "error", flow(on="[push, pull_request]", job=HOSTED), 5),
    ("pull-request-self-hosted", "error", flow(on="{pull_request: {types: [opened]}}", job="runs-on: self-hosted"), 5),
    ("pull-request-self-hosted", "error", flow(on="pull_request", job="runs-on: {group: x, labels: self-hosted}"), 5),
    (
        "pull-request-self-hosted",
        "warning",
        flow(on="pull_request", job="if: github.event_name == 'push'\n    " + HOSTED),
        6,
    ),
    ("pull-request-target", "warning", flow(on="pull_request_target"), None),
    (
        "pull-request-target",
        "error",
        flow(f"uses: {PINNED}\nwith:\n  ref: ${{{{ github.event.pull_request.head.sha }}}}", on="pull_request_target"),
        8,
    ),
    (
        "pull-request-target",
        "error",
        flow(f"uses: {PINNED}\nwith: {{ref: '${{{{ github.event.workflow_run.head_sha }}}}'}}", on="workflow_run"),
        8,
    ),
    ("untrusted-context", "error", flow("run: echo ${{ github.event.pull_request.title }}"), 8),
    ("untrusted-context", "error", flow("run: |\n  true\n  echo ${{ github.head_ref }}"), 10),
    ("untrusted-context", "error", flow("run: echo \"${{ format('{0}', github.event.issue.body) }}\""), 8),
    ("untrusted-context", "error", flow("run: echo ${{github.event.commits[0].message}}"), 8),
    ("untrusted-context", "error", flow(f"uses: {PINNED}\nwith:\n  script: go('${{{{ github.head_ref }}}}')"), 10),
    ("untrusted-context", "warning", flow("run: echo ${{ inputs.name }}"), 8),
    ("secret-in-script", "warning", flow('run: login "${{ secrets.TOKEN }}"'), 8),
    ("secret-build-arg", "error", flow('run: docker build --build-arg NPM_TOKEN="$X" .'), 8),
    ("secret-build-arg", "error", flow("run: docker build --build-arg A=${{ secrets.B }} ."), 8),
    ("secret-build-arg", "error", flow(f"uses: {PINNED}\nwith:\n  build-args: GH_TOKEN=x"), 10),
    ("unpinned-action", "warning", flow("uses: actions/checkout@v4"), 8),
    ("unpinned-action", "error", flow("uses: acme/thing@main"), 8),
    ("unpinned-action", "error", flow("uses: acme/thing"), 8),
    ("unpinned-action", "warning", flow("uses: docker://alpine:3"), 8),
    ("no-timeout", "warning", flow(job="runs-on: ubuntu-24.04"), 5),
    ("no-permissions", "warning", flow(top="env: {}"), 5),
    ("write-all", "error", flow(top="permissions: write-all"), 2),
    ("curl-without-fail", "error", flow('run: curl -s --max-time 9 "$U/api/tool"'), 8),
    ("curl-without-limit", "warning", flow('run: curl -sf "$U/api/tool"'), 8),
    ("failure-ignored", "error", flow(f"run: {CALL} || true"), 8),
    ("failure-ignored", "error", flow(f"run: |\n  set +e\n  {CALL}"), 8),
    ("failure-ignored", "error", flow(f"run: {CALL}\ncontinue-on-error: true"), 8),
    ("no-concurrency", "note", flow(f"run: {CALL}"), None),
    ("latest-tag", "warning", flow("run: docker push ghcr.io/acme/shop:latest"), 8),
    ("latest-tag", "warning", flow(f"uses: {PINNED}\nwith: {{tags: 'ghcr.io/a/b:latest'}}"), 9),
    ("no-dockerignore", "warning", {}, None),
    ("dockerignore-env", "warning", {".dockerignore": "node_modules\n"}, None),
    ("env-file", "error", {".env": ""}, None),
    ("env-file", "error", {"app/.env.production": ""}, None),
    ("secret-in-file", "error", {"config.js": "a\nconst k = 'ghp_" + "a1B2" * 9 + "'\n"}, 2),
    ("no-health", "warning", {"index.js": "listen(process.env.PORT)"}, None),
    ("port-ignored", "warning", {"index.js": "get('/health'); listen(3000)"}, None),
    ("no-source", "note", {}, None),
]


@pytest.mark.parametrize(("rule", "severity", "files", "line"), BAD, ids=[f"{n}-{row[0]}" for n, row in enumerate(BAD)])
def test_each_rule_finds_its_mistake_and_says_where(
    rule: str, severity: str, files: dict[str, str], line: int | None
) -> None:
    found = [one for one in scan(files, 8080) if one.rule == rule]
    assert found, scan(files, 8080)
    assert found[0].severity == severity
    assert found[0].line == line
    assert all(one.problem and one.fix.endswith((".", ")")) and not one.problem.endswith(".") for one in found)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert scan(GOOD, 8080) == []


FINE: list[tuple[str, dict[str, str]]] = [
    ("latest-tag", {"Dockerfile": "FROM a:1 AS build\nFROM build\nFROM scratch\nFROM $BASE\nFROM a@sha256:0\n"}),
    ("runs-as-root", {"Dockerfile": "FROM gcr.io/distroless/static:nonroot\n"}),
    ("secret-in-image", docker("ENV TOKENIZERS_PARALLELISM=1", "COPY .env.example ./", "ARG KEYBOARD=x")),
    ("untrusted-context", flow("run: echo ${{ github.event.pull_request.number }} ${{ github.sha }} ${{ matrix.x }}")),
    ("pull-request-target", flow(f"uses: {PINNED}\nwith: {{ref: main}}", on="pull_request")),
    ("unpinned-action", flow("uses: ./local")),
    ("no-timeout", flow(job="uses: ./.github/workflows/x.yml")),
    ("curl-without-fail", flow('run: curl --fail-with-body --max-time 9 -s "$U/api/tool"')),
    ("curl-without-fail", flow('run: curl -sSf "$U/api/tool" || exit 7')),
    ("failure-ignored", flow(f"run: {CALL} || exit 1")),
    ("env-file", {".env.example": "", ".env": "", ".gitignore": "node_modules\n.env\n"}),
    ("env-file", {".env.local": "", ".gitignore": "/.env*\n"}),
    ("port-ignored", {"main.py": "'/health'", "Dockerfile": 'FROM a:1\nUSER 1\nCMD ["gunicorn", "main:app"]\n'}),
    ("no-health", {"app/health/route.ts": "export const GET = ok; // PORT"}),
    ("secret-build-arg", flow("run: docker build --build-arg VERSION=1 --secret id=npm,env=NPM_TOKEN .")),
]


@pytest.mark.parametrize(("rule", "files"), FINE, ids=[f"{number}-{row[0]}" for number, row in enumerate(FINE)])
def test_what_only_looks_like_a_mistake_is_left_alone(rule: str, files: dict[str, str]) -> None:
    assert [one for one in scan(files) if one.rule == rule] == []


def test_the_well_known_first_workflow_is_told_what_to_improve() -> None:
    """A build on the server, tags instead of commits, secrets pasted into the shell: all of it is found."""
    steps = (
        (
            "uses: actions/checkout@v4\n"
            '- run: echo "${{ secrets.GITHUB_TOKEN }}" | docker login ghcr.io -u ${{ github.actor }} --password-stdin\n'
            '- run: |\n    curl -sf -X POST "https://api.example.com/api/tool" \\\n      -H "X-API-Key: ${{ secrets.CODEB_API_KEY }}"'
        )
        .replace("\n", "\n      ")
        .replace("\n              ", "\n          ")
    )
    files = {
        ".github/workflows/deploy.yml": f"on:\n  push:\n    branches: [main]\njobs:\n  a:\n    runs-on: self-hosted\n    steps:\n      - {steps}\n"
    }
    rules = {one.rule for one in scan(files) if one.file.endswith("deploy.yml")}
    assert rules >= {
        "unpinned-action",
        "secret-in-script",
        "no-timeout",
        "no-permissions",
        "curl-without-limit",
        "no-concurrency",
    }
    assert "curl-without-fail" not in rules


def test_the_worst_comes_first_and_nothing_is_said_twice() -> None:
    found = scan({**flow("uses: acme/thing@main"), **docker(user=""), ".env": ""})
    order = [list(Severity).index(one.severity) for one in found]
    assert order == sorted(order)
    assert len(set(found)) == len(found)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
)
HARMFUL: dict[str, Any] = {
    "alias bomb": BOMB,
    "alias bomb where it is read": "on: pull_request\n" + BOMB + "jobs: {a: {runs-on: *i}}\n",
    "endless alias where it is read": "on: pull_request\njobs: {a: {runs-on: &a [*a]}}\n",
    "deep where it is read": "on: pull_request\njobs: {a: {runs-on: " + "[" * 990 + "x" + "]" * 990 + "}}\n",
    "endless alias": "on: &a [*a]\njobs: {}\n",
    "deep flow": "a: " + "[" * 50_000,
    "deep block": "\n".join(" " * n + f"k{n}:" for n in range(500)),
    "object": "on: !!python/object/apply:os.system ['touch /tmp/never']\njobs: {}\n",
    "odd tags": "!!set {a, b}\n",
    "merge": "on: push\njobs: {<<: {a: b}}\n",
    "keys": "? [a, b]\n: c\non: {? {a: b} : c}\njobs: {? [x] : y, 1: 2}\n",
    "scalars": "on: 1\njobs: 2\npermissions: 3\n",
    "nulls": "on:\njobs:\n  a:\n  b: []\n  c: {steps: x}\n  d: {steps: [1, [2], null], runs-on: null, uses: [1]}\n",
    "expression": "on: push\njobs: {a: {steps: [{run: '" + "${{ " * 20_000 + "'}]}}\n",
    "curl": "on: push\njobs: {a: {steps: [{run: '/api/tool " + "curl " * 30_000 + "'}]}}\n",
    "builds": "on: push\njobs: {a: {steps: [{run: '" + "--build-arg " * 15_000 + "'}]}}\n",
    "two": "on: push\n---\non: push\n",
    "controls": "on: \x07\x1b[31m\n",
    "empty": "",
    "spaces": " " * 190_000,
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_file_that_is_made_to_harm_does_not(name: str) -> None:
    text = HARMFUL[name]
    began = time.process_time()
    scan(
        {
            ".github/workflows/x.yml": text,
            "Dockerfile": text,
            ".env": text,
            "a.js": text,
            ".dockerignore": text,
            "p": text,
        }
    )
    assert time.process_time() - began < 20, "processor time, not the clock's"


def test_hostile_texts_in_every_place_are_only_read() -> None:
    for text in texts():
        files = {
            **GOOD,
            text: text,
            "Dockerfile": f"FROM {text}\nARG {text}\nENV {text}\nUSER {text}\nEXPOSE {text}\nCMD {text}\n",
            ".github/workflows/a.yml": f"on: {text}\njobs:\n  a:\n    runs-on: {text}\n    steps:\n      - run: {text}\n",
            ".github/workflows/b.yml": text,
            ".dockerignore": text,
        }
        for one in scan(files):
            assert one.rule
            assert one.line is None or one.line >= 1


def test_instructions_are_read_with_their_continuations_comments_and_here_documents() -> None:
    text = "# c\nFROM a:1 \\\n# in between\n  AS b\n\nRUN <<EOF\nUSER root\nEOF\nuser 1\n"
    assert [(one.line, one.word, one.rest) for one in instructions(text)] == [
        (2, "FROM", "a:1 AS b"),
        (6, "RUN", "<<EOF"),
        (9, "USER", "1"),
    ]
