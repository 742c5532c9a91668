"""Generated workflows: parsed, linted, and held against the rules that they must keep whatever was asked for."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from codeb_mcp.model.dockerfiles import SECRETS, AppType
from codeb_mcp.model.names import Environment
from codeb_mcp.model.scan import scan
from codeb_mcp.model.workflow import (
    DEPLOY_PATH,
    GITHUB_HOSTED,
    PREVIEW_PATH,
    SELF_HOSTED,
    Pipeline,
    Runner,
    deploy_workflow,
    preview_workflow,
    to_yaml,
)
from tests.lab.linters import linter

TARGETS = (Environment.STAGING, Environment.PRODUCTION)
NAMES = ("shop", "1e3", "no", "null", "on", "0o7", "0x1f", "012", "1-2", "true", "y", "12e03", "a" * 40)
"""Names that pass the check, many of which YAML takes for something else when they stand without quotes."""
PIPELINES = [
    Pipeline("shop", kind, environment, runner, auto_promote=promote)
    for kind, environment, runner, promote in itertools.product(AppType, TARGETS, Runner, (False, True))
]


def loaded(text: str) -> Any:
    """The workflow as YAML 1.1 reads it; `on` is quoted, so both versions of YAML read the same."""
    return yaml.safe_load(text)


def steps(workflow: Any) -> list[tuple[str, Any]]:
    """Every step with the name of its job."""
    return [(name, step) for name, job in workflow["jobs"].items() for step in job["steps"]]


def both(pipeline: Pipeline) -> tuple[Any, Any]:
    """Both workflows of a pipeline, parsed."""
    return loaded(to_yaml(deploy_workflow(pipeline))), loaded(to_yaml(preview_workflow(pipeline)))


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
def test_every_workflow_keeps_the_rules(pipeline: Pipeline) -> None:
    for workflow in both(pipeline):
        assert workflow["permissions"] == {}
        assert workflow["concurrency"]["cancel-in-progress"] is False
        assert workflow["defaults"]["run"]["shell"] == "bash"
        assert "pull_request_target" not in workflow["on"]
        for job in workflow["jobs"].values():
            assert 1 <= job["timeout-minutes"] <= 30
            assert job["permissions"] in ({}, {"contents": "read", "packages": "write"})
            assert ("environment" in job) == ("CODEB_API_KEY" in str(job)), "our key is in a protected environment"
        for name, step in steps(workflow):
            assert "continue-on-error" not in step
            assert "${{" not in step.get("run", ""), "nothing is pasted into a script"
            assert "--build-arg" not in step.get("run", "")
            if "uses" in step:
                assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"])
                assert step["with"]["persist-credentials"] is False
            if name == "build":
                assert "CODEB_API_KEY" not in str(step)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
def test_code_of_a_pull_request_is_built_on_githubs_machines_without_any_secret(pipeline: Pipeline) -> None:
    deploy, preview = both(pipeline)
    assert set(deploy["on"]) == {"push", "workflow_dispatch"}
    assert set(preview["on"]) == {"pull_request"}
    assert preview["on"]["pull_request"]["types"] == ["opened", "synchronize", "reopened", "closed"]
    for job in preview["jobs"].values():
        assert job["runs-on"] == GITHUB_HOSTED
        if job.get("needs") != "build":
            assert "head.repo.full_name == github.repository" in job["if"], "forks get nothing"
    building = [step for step in preview["jobs"]["build"]["steps"] if step.get("id") != "push"]
    assert "secrets." not in str(building), "the login comes after the build"
    assert preview["jobs"]["deploy"]["needs"] == "build"
    wanted = list(SELF_HOSTED) if pipeline.runner is Runner.SELF_HOSTED else GITHUB_HOSTED
    assert {str(job["runs-on"]) for job in deploy["jobs"].values()} == {str(wanted)}


def test_production_has_an_environment_of_its_own_and_is_reached_by_tag_or_by_hand() -> None:
    deploy, _ = both(Pipeline("shop", AppType.GO))
    environment = deploy["jobs"]["deploy"]["environment"]
    assert environment == deploy["jobs"]["deploy"]["steps"][0]["env"]["ENVIRONMENT"]
    assert "refs/tags/" in environment
    assert "inputs.environment == 'production'" in environment
    assert deploy["concurrency"]["group"].endswith(environment), (
        "a waiting production deploy is not displaced by staging"
    )
    assert deploy["on"]["push"] == {"branches": ["main"], "tags": ["v*"]}
    assert deploy["on"]["workflow_dispatch"]["inputs"]["environment"]["options"] == ["staging", "production"]
    only, _ = both(Pipeline("shop", AppType.GO, Environment.PRODUCTION))
    assert only["jobs"]["deploy"]["environment"] == "production"


def test_staging_is_promoted_by_itself_only_when_asked_and_production_never_is() -> None:
    said = {
        promote: both(Pipeline("shop", AppType.GO, auto_promote=promote))[0]["jobs"]["deploy"]["steps"][0]["env"][
            "PROMOTE"
        ]
        for promote in (False, True)
    }
    assert said[False] == "${{ inputs.promote || false }}"
    assert said[True].startswith("${{ inputs.promote || !(startsWith(github.ref, 'refs/tags/')")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_the_text_that_it_is(name: str) -> None:
    for workflow, text in zip(
        both(Pipeline(name, AppType.GO, branch=name)),
        (to_yaml(build(Pipeline(name, AppType.GO, branch=name))) for build in (deploy_workflow, preview_workflow)),
        strict=True,
    ):
        used = [step["env"]["PROJECT"] for _, step in steps(workflow) if "PROJECT" in step.get("env", {})]
        assert used
        assert set(used) == {name}
        assert text.count(f'PROJECT: "{name}"') == len(used), "in quotes, so that no version of YAML reads another type"


def test_the_same_request_gives_the_same_bytes() -> None:
    pipeline = Pipeline("shop", AppType.NEXTJS)
    assert to_yaml(deploy_workflow(pipeline)) == to_yaml(deploy_workflow(pipeline))
    assert to_yaml(deploy_workflow(pipeline)).isascii()


@pytest.mark.parametrize("kind", AppType)
def test_a_secret_of_the_build_is_mounted_for_a_step(kind: AppType) -> None:
    deploy, _ = both(Pipeline("shop", kind))
    build = next(step for name, step in steps(deploy) if step.get("name") == "Build" and name == "build")
    secret = SECRETS[kind]
    assert f'--secret "id={secret.id},env={secret.name}"' in build["run"]
    assert build["env"][secret.name] == f"${{{{ secrets.{secret.name} }}}}"


def test_our_own_scanner_finds_nothing_in_them() -> None:
    for pipeline in PIPELINES:
        files = {DEPLOY_PATH: to_yaml(deploy_workflow(pipeline)), PREVIEW_PATH: to_yaml(preview_workflow(pipeline))}
        assert [one for one in scan(files) if one.file in files] == []


@pytest.mark.real("actionlint")
def test_actionlint_and_shellcheck_find_nothing(tmp_path: Path) -> None:
    """All kinds of workflows at once; the shell steps are given to shellcheck by actionlint."""
    actionlint, shellcheck = linter("actionlint"), linter("shellcheck")
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (tmp_path / ".github" / "actionlint.yaml").write_text("self-hosted-runner:\n  labels: [codeb, app-server]\n")
    for number, pipeline in enumerate(PIPELINES):
        (folder / f"deploy{number}.yml").write_text(to_yaml(deploy_workflow(pipeline)), encoding="utf-8")
        (folder / f"preview{number}.yml").write_text(to_yaml(preview_workflow(pipeline)), encoding="utf-8")
    words = [actionlint, "-config-file", str(tmp_path / ".github" / "actionlint.yaml"), "-no-color"]
    words += ["-shellcheck", shellcheck, "-pyflakes", ""]
    words += sorted(map(str, folder.iterdir()))
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done


def test_shellcheck_finds_nothing_in_the_steps(tmp_path: Path) -> None:
    shellcheck = linter("shellcheck")
    scripts = {
        step["run"] for pipeline in PIPELINES for flow in both(pipeline) for _, step in steps(flow) if "run" in step
    }
    assert len(scripts) >= 7
    for number, script in enumerate(sorted(scripts)):
        path = tmp_path / f"{number}.sh"
        path.write_text("#!/usr/bin/env bash\nset -eo pipefail\n" + script, encoding="utf-8")
        subprocess.run(["bash", "-n", str(path)], timeout=20, check=True)
        done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout


@pytest.mark.real("actionlint")
def test_the_linters_do_find_something_in_a_bad_one(tmp_path: Path) -> None:
    """So that an empty answer means that they looked."""
    actionlint = linter("actionlint")
    bad = to_yaml(deploy_workflow(PIPELINES[0])).replace("needs: build", "needs: nobody")
    path = tmp_path / "bad.yml"
    path.write_text(bad, encoding="utf-8")
    done = subprocess.run([actionlint, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "nobody" in done.stdout
