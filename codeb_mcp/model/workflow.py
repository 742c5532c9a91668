"""GitHub Actions workflows as data, and their YAML.

What a caller says gets into them as values of a data structure that a YAML library writes, always quoted; the shell steps
are constants of this file and read everything from their environment. Code of a pull request is built on machines of
GitHub only, and what builds it holds neither a key of ours nor a login of the image registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from codeb_mcp.model.dockerfiles import SECRETS, AppType
from codeb_mcp.model.names import Environment

DEPLOY_PATH = ".github/workflows/deploy.yml"
PREVIEW_PATH = ".github/workflows/preview.yml"
SELF_HOSTED = ("self-hosted", "Linux", "X64", "codeb", "app-server")
GITHUB_HOSTED = "ubuntu-24.04"
CHECKOUT = "actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8"
CHECKOUT_VERSION = "v5.0.0"
HEAD = "# Made by `codeb workflow init`. Yours to change: it is never overwritten.\n"


class Runner(StrEnum):
    """Who builds and deploys what was merged."""

    SELF_HOSTED = "self-hosted"
    GITHUB_HOSTED = "github-hosted"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What to write workflows for. `environment`: where a push to the branch goes."""

    project: str
    kind: AppType
    environment: Environment = Environment.STAGING
    runner: Runner = Runner.SELF_HOSTED
    branch: str = "main"
    auto_promote: bool = False


BUILD = """\
docker build --pull --secret "id=SECRET_ID,env=SECRET_NAME" --tag "ghcr.io/${GITHUB_REPOSITORY,,}:$GITHUB_SHA" .
"""
BUILD_UNTRUSTED = """\
docker build --pull --tag "ghcr.io/${GITHUB_REPOSITORY,,}:$GITHUB_SHA" .
"""
PUSH = """\
repository="ghcr.io/${GITHUB_REPOSITORY,,}"
printf '%s' "$GHCR_TOKEN" | docker login ghcr.io --username "$GITHUB_ACTOR" --password-stdin
docker push --quiet "$repository:$GITHUB_SHA"
image="$(docker image inspect --format '{{join .RepoDigests "\\n"}}' "$repository:$GITHUB_SHA" | grep -m 1 "^$repository@")"
docker image rm "$repository:$GITHUB_SHA" >/dev/null
printf 'image=%s\\n' "$image" >>"$GITHUB_OUTPUT"
"""
CALL = """\
: "${CODEB_URL:?is not set}" "${CODEB_API_KEY:?is not set}"
[[ $CODEB_URL =~ ^https://|^http://(127\\.0\\.0\\.1|localhost): ]] || { echo "CODEB_URL must be https://" >&2; exit 1; }
# A lost answer is asked for again: the same request joins the run that it began. The key is in no argument.
call() {
  local answer pause status
  for pause in 2 5 10 0; do
    status=0
    answer="$(curl -sS --fail-with-body --max-time 180 -X POST "${CODEB_URL%/}/api/tool" -H @- \\
      -H "Content-Type: application/json" -d "$1" <<<"X-API-Key: $CODEB_API_KEY")" || status=$?
    printf '%s\\n' "${answer//$'\\n'/ }"
    case $status in 7 | 28 | 52 | 56) sleep "$pause" ;; *) break ;; esac
  done
  [[ $status != 0 || $answer == *'"success":true'* ]] || status=1
  return "$status"
}
"""
IMAGE_CHECK = """\
[[ $IMAGE =~ ^[a-z0-9./:_-]+@sha256:[0-9a-f]{64}$ ]] || { echo "there is no image to deploy" >&2; exit 1; }
"""
NUMBER_CHECK = """\
[[ $NUMBER =~ ^[1-9][0-9]{0,6}$ ]] || { echo "there is no pull request" >&2; exit 1; }
"""
DEPLOY = (
    CALL
    + IMAGE_CHECK
    + """\
version="$GITHUB_SHA"
if [[ $GITHUB_REF_TYPE == tag ]]; then version="$GITHUB_REF_NAME"; fi
[[ $version =~ ^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$ ]] || { echo "the tag is no version name" >&2; exit 1; }
call "$(printf '{"tool":"deploy","params":{"projectName":"%s","environment":"%s","version":"%s","image":"%s","autoPromote":%s}}' \\
  "$PROJECT" "$ENVIRONMENT" "$version" "$IMAGE" "$PROMOTE")"
"""
)
PREVIEW_DEPLOY = (
    CALL
    + IMAGE_CHECK
    + NUMBER_CHECK
    + """\
call "$(printf '{"tool":"preview_create","params":{"projectName":"%s","pullRequest":%s}}' "$PROJECT" "$NUMBER")"
call "$(printf '{"tool":"deploy","params":{"projectName":"%s-pr-%s","environment":"preview","version":"%s","image":"%s","autoPromote":true}}' \\
  "$PROJECT" "$NUMBER" "$GITHUB_SHA" "$IMAGE")"
"""
)
PREVIEW_DELETE = (
    CALL
    + NUMBER_CHECK
    + """\
call "$(printf '{"tool":"preview_delete","params":{"projectName":"%s","pullRequest":%s}}' "$PROJECT" "$NUMBER")"
"""
)

PRODUCTION = "startsWith(github.ref, 'refs/tags/') || inputs.environment == 'production'"
OWN_PULL_REQUEST = (
    "github.event.pull_request.head.repo.full_name == github.repository"
    " && github.event.pull_request.user.login != 'dependabot[bot]'"
)


class Quoted(str):
    """A text that stands in quotation marks whatever it looks like: `1e3` and `no` are names, too."""

    __slots__ = ()


def deploy_workflow(pipeline: Pipeline) -> dict[str, Any]:
    """Build and deploy what was merged or tagged. Production waits for the protection rules of its GitHub environment."""
    environment, promote = _target(pipeline), "true" if pipeline.auto_promote else "false"
    if pipeline.environment is Environment.STAGING and pipeline.auto_promote:
        promote = f"!({PRODUCTION})"
    job: dict[str, Any] = {
        "needs": "build",
        "runs-on": _runs_on(pipeline.runner),
        "timeout-minutes": 20,
        "permissions": {},
        "environment": environment,
        "steps": [
            _step(
                "Deploy",
                DEPLOY,
                **_codeb(pipeline.project),
                ENVIRONMENT=environment,
                IMAGE="${{ needs.build.outputs.image }}",
                PROMOTE=f"${{{{ inputs.promote || {promote} }}}}",
            )
        ],
    }
    secret = SECRETS[pipeline.kind]
    build = BUILD.replace("SECRET_ID", secret.id).replace("SECRET_NAME", secret.name)
    return {
        "name": "Deploy",
        "on": {
            "push": {"branches": [Quoted(pipeline.branch)], "tags": [Quoted("v*")]},
            "workflow_dispatch": {"inputs": _inputs(pipeline.environment)},
        },
        "permissions": {},
        "concurrency": {"group": _group("deploy", pipeline.project, environment), "cancel-in-progress": False},
        "defaults": {"run": {"shell": "bash"}},
        "jobs": {
            "build": _build_job(_runs_on(pipeline.runner), build, {secret.name: f"${{{{ secrets.{secret.name} }}}}"}),
            "deploy": job,
        },
    }


def _target(pipeline: Pipeline) -> str:
    if pipeline.environment is Environment.STAGING:
        return f"${{{{ ({PRODUCTION}) && 'production' || 'staging' }}}}"
    return pipeline.environment.value


def _inputs(environment: Environment) -> dict[str, Any]:
    promote = {
        "description": "Send it the live traffic as soon as it is healthy",
        "type": "boolean",
        "default": False,
    }
    if environment is not Environment.STAGING:
        return {"promote": promote}
    where = {
        "description": "Where to",
        "type": "choice",
        "options": ["staging", "production"],
        "default": "staging",
    }
    return {"environment": where, "promote": promote}


def preview_workflow(pipeline: Pipeline) -> dict[str, Any]:
    """A preview for each pull request of the repository's own branches. Pull requests of forks get nothing."""
    number = "${{ github.event.pull_request.number }}"
    build = _build_job(GITHUB_HOSTED, BUILD_UNTRUSTED, {})
    open_ones = {"if": f"github.event.action != 'closed' && {OWN_PULL_REQUEST}"}
    own = {"runs-on": GITHUB_HOSTED, "timeout-minutes": 20, "permissions": {}, "environment": "preview"}
    codeb = {**_codeb(pipeline.project), "NUMBER": number}
    image = "${{ needs.build.outputs.image }}"
    return {
        "name": "Preview",
        "on": {"pull_request": {"types": ["opened", "synchronize", "reopened", "closed"]}},
        "permissions": {},
        "concurrency": {"group": _group("preview", pipeline.project, number), "cancel-in-progress": False},
        "defaults": {"run": {"shell": "bash"}},
        "jobs": {
            "build": {**open_ones, **build},
            "deploy": {
                "needs": "build",
                **own,
                "steps": [_step("Create the preview and deploy to it", PREVIEW_DEPLOY, **codeb, IMAGE=image)],
            },
            "delete": {
                "if": f"github.event.action == 'closed' && {OWN_PULL_REQUEST}",
                **own,
                "steps": [_step("Delete the preview", PREVIEW_DELETE, **codeb)],
            },
        },
    }


def _build_job(runs_on: str | list[str], script: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    """Build, then log in and push: while foreign code is built there is no login to take."""
    login = {"DOCKER_CONFIG": "${{ runner.temp }}/docker", "GHCR_TOKEN": "${{ secrets.GITHUB_TOKEN }}"}
    return {
        "runs-on": runs_on,
        "timeout-minutes": 30,
        "permissions": {"contents": "read", "packages": "write"},
        "outputs": {"image": "${{ steps.push.outputs.image }}"},
        "steps": [
            {"uses": CHECKOUT, "with": {"persist-credentials": False}},
            _step("Build", script, DOCKER_BUILDKIT="1", **secrets),
            {"id": "push", **_step("Push", PUSH, **login)},
        ],
    }


def _step(name: str, script: str, /, **env: str) -> dict[str, Any]:
    return {"name": name, "env": {key: Quoted(value) for key, value in env.items()}, "run": script}


def _codeb(project: str) -> dict[str, str]:
    return {"CODEB_URL": "${{ vars.CODEB_URL }}", "CODEB_API_KEY": "${{ secrets.CODEB_API_KEY }}", "PROJECT": project}


def _group(kind: str, project: str, what: str) -> Quoted:
    return Quoted(f"codeb-{kind}-{project}-{what}")


def _runs_on(runner: Runner) -> str | list[str]:
    return list(SELF_HOSTED) if runner is Runner.SELF_HOSTED else GITHUB_HOSTED


def to_yaml(workflow: Mapping[str, Any]) -> str:
    """The workflow as the same YAML every time: keys in their order, scripts as blocks, callers' values in quotes."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Ours alone; the library's stays as it is."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        style = "|" if "\n" in value else '"' if isinstance(value, Quoted) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style=style)

    def row(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
        plain = all(isinstance(value, str) for value in values)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)

    Dumper.add_representer(list, row)
    Dumper.add_representer(str, text)
    Dumper.add_representer(Quoted, text)
    written = yaml.dump(dict(workflow), Dumper=Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return HEAD + written.replace(CHECKOUT, f"{CHECKOUT} # {CHECKOUT_VERSION}")
