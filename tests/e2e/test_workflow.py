"""The generated workflows really run: build, push, deploy, preview, against a served installation on real parts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from codeb_mcp.model.workflow import PRODUCTION
from tests.faces.payloads import texts
from tests.lab.engine import Engine
from tests.lab.installation import Installation
from tests.lab.pipeline import Ran, Workbench, jobs_for, step_of
from tests.lab.registry import Registry
from tests.lab.samples import SampleImages

SHA = "9f8e7d6c5b4a39281706f5e4d3c2b1a098765432"
WHERE = f"({PRODUCTION}) && 'production' || 'staging'"


class Shop:
    """A project with generated workflows, the keys that its steps tell to make, and a machine that runs steps."""

    def __init__(self, installation: Installation, bench: Workbench, name: str, **params: Any) -> None:
        self.installation, self.bench, self.name = installation, bench, name
        health = {"deadlineSeconds": 5, "intervalSeconds": 0.2}
        assert installation.call("project_create", projectName=name, healthCheck=health).ok
        reply = installation.call("workflow_init", projectName=name, type="nodejs", **params)
        assert reply.ok, reply.body
        files = {file["path"]: file["content"] for file in reply.body["files"]}
        self.deploy_flow = yaml.safe_load(files[".github/workflows/deploy.yml"])
        self.preview_flow = yaml.safe_load(files[".github/workflows/preview.yml"])
        bench.github.update(
            GITHUB_REPOSITORY=f"Acme/{name}", GITHUB_SHA=SHA, GITHUB_ACTOR="mia", GITHUB_REF_TYPE="branch",
            GITHUB_REF_NAME="main",
        )  # fmt: skip
        self.keys = {target: self._key(target) for target in ("staging", "production", "preview")}

    def _key(self, target: str) -> str:
        scopes = [f"project:{self.name}", f"environment:{target}"]
        scopes += [f"project:{self.name}-pr-*"] if target == "preview" else []
        made = self.installation.call("token_create", name=f"ci-{target}", role="member", scopes=scopes)
        return str(made.body["token"]["key"])

    def codeb(self, target: str) -> dict[str, str]:
        """The values of the expressions that every step of ours has."""
        return {"vars.CODEB_URL": self.installation.url(""), "secrets.CODEB_API_KEY": self.keys[target]}

    def build(self, base: str, *lines: str) -> str:
        """Run build and push; answers the image as the engine of the installation finds it. Its label makes it an image of
        this test alone: equal ones would have one id, and go when the first test ends."""
        text = "\n".join([f"FROM {base}", f"LABEL codeb.lab.test={self.name}", *lines, ""])
        (self.bench.checkout / "Dockerfile").write_text(text, encoding="utf-8")
        build = self.bench.run(
            step_of(self.deploy_flow, "build", "Build"), {"secrets.NPMRC": "//x/:_authToken=private"}
        )
        assert build.code == 0, build
        values = {"runner.temp": str(self.bench.folder / "temp"), "secrets.GITHUB_TOKEN": "token-of-the-job"}
        push = self.bench.run(step_of(self.deploy_flow, "build", "Push"), values)
        assert push.code == 0, push
        assert push.outputs["image"].startswith(f"ghcr.io/acme/{self.name}@sha256:")
        assert "token-of-the-job" not in push.out + push.err
        return push.outputs["image"].replace("ghcr.io", self.bench.registry)

    def deploy(self, image: str, target: str = "staging", *, promote: str = "false", **environ: str) -> Ran:
        """Run the step that deploys."""
        step = step_of(self.deploy_flow, "deploy", "Deploy")
        expression = next(part for part in [step["env"]["PROMOTE"].removeprefix("${{ ").removesuffix(" }}")])
        values = {"needs.build.outputs.image": image, WHERE: target, expression: promote}
        return self.bench.run(step, {**self.codeb(target), **values}, **environ)

    def preview(self, job: str, name: str, image: str = "", number: str = "12") -> Ran:
        """Run a step of the preview workflow."""
        values = {"github.event.pull_request.number": number, "needs.build.outputs.image": image}
        return self.bench.run(step_of(self.preview_flow, job, name), {**self.codeb("preview"), **values})

    def jobs(self, action: str, *, fork: bool = False, who: str = "mia") -> list[str]:
        """The jobs that GitHub runs when something happens to a pull request."""
        where = self.preview_flow["on"]["pull_request"]["types"]
        event = {
            "github.event.action": action,
            "github.event.pull_request.head.repo.full_name": "stranger/fork" if fork else f"Acme/{self.name}",
            "github.repository": f"Acme/{self.name}",
            "github.event.pull_request.user.login": who,
        }
        return jobs_for(self.preview_flow, event) if action in where else []

    def runs(self) -> list[Any]:
        """The runs of the project, newest first."""
        return list(self.installation.call("operation_list", projectName=self.name).body["data"])


@pytest.fixture
def bench(tmp_path: Path, engine: Engine, registry: Registry) -> Workbench:
    """A runner's machine whose ghcr.io is the lab's image registry."""
    (tmp_path / "checkout").mkdir()
    return Workbench(tmp_path / "runner", tmp_path / "checkout", registry.address, engine.host)


@pytest.fixture
def shop(installation: Installation, bench: Workbench, unique: str) -> Iterator[Shop]:
    """A served installation with one project."""
    installation.serve()
    yield Shop(installation, bench, unique)
    made = f"{bench.registry}/acme/{unique}"
    for entry in installation.engine.call("GET", "/images/json"):
        if any(made in name for name in [*(entry["RepoTags"] or []), *(entry["RepoDigests"] or [])]):
            for container in installation.engine.call("GET", "/containers/json?all=1"):
                if container["ImageID"] == entry["Id"]:
                    installation.engine.call("DELETE", f"/containers/{container['Id']}?force=1&v=1")
            installation.engine.call("DELETE", f"/images/{entry['Id']}?force=1")


async def test_what_is_pushed_is_built_stored_and_deployed_by_its_digest(
    shop: Shop, sample_images: SampleImages
) -> None:
    image = shop.build(await sample_images.pushed("v1"), "ENV APP_VERSION=built")
    kept = [path.read_text(encoding="utf-8") for path in (shop.bench.folder / "home").rglob("*") if path.is_file()]
    assert not any("auths" in text for text in kept), "no login stays on the runner"
    said = shop.deploy(image)
    assert (said.code, '"success":true' in said.out) == (0, True), said
    slot = shop.installation.slots(shop.name, "staging")["blue"]
    assert (slot["state"], slot["version"], slot["digest"]) == ("deployed", SHA, image.rpartition("@")[2])
    live = shop.deploy(image, "production", promote="true", GITHUB_REF_TYPE="tag", GITHUB_REF_NAME="v1.2.3")
    assert live.code == 0, live
    assert shop.installation.ask_public(shop.name) == (200, "built", "blue")
    assert shop.installation.slots(shop.name)["blue"]["version"] == "v1.2.3"
    for ran in (said, live):
        assert not any(key in ran.out + ran.err + shop.bench.curl_arguments for key in shop.keys.values())


async def test_a_failed_deploy_fails_the_step_and_says_why(shop: Shop, sample_images: SampleImages) -> None:
    said = shop.deploy(shop.build(await sample_images.pushed("bad", HEALTH="fail")))
    assert said.code == 22, said
    assert '"code":"release_unhealthy"' in said.out
    assert len(shop.runs()) == 1, "an answer that says no is not asked for again"
    assert shop.installation.slots(shop.name, "staging")["blue"]["state"] == "empty"


async def test_a_lost_answer_is_asked_for_again_and_joins_the_run(shop: Shop, sample_images: SampleImages) -> None:
    image = shop.build(await sample_images.pushed("v1"))
    shop.bench.lose_next_answer()
    said = shop.deploy(image)
    assert said.code == 0, said
    assert '"joined":true' in said.out
    assert len(shop.runs()) == 1


def test_every_other_way_to_fail_fails_the_step(shop: Shop) -> None:
    image = f"{shop.bench.registry}/acme/nothing@sha256:{'0' * 64}"
    assert shop.deploy(image).code == 22, "there is no such image"
    assert shop.deploy(image, CODEB_API_KEY="codeb_default_member_" + "A" * 36).code == 22
    assert shop.deploy(image, CODEB_API_KEY=shop.keys["production"]).code == 22, "a key for somewhere else"
    assert shop.deploy(image, CODEB_API_KEY="").code != 0
    assert shop.deploy(image, CODEB_URL="").code != 0
    assert shop.deploy("").code == 1
    assert shop.deploy(image.partition("@")[0] + ":latest").code == 1, "what is not pinned is not deployed"
    before = shop.bench.curl_arguments
    for url in ("http://api.example.com", "ftp://localhost:1", "http://localhost.example.com:80", "file:///etc/passwd"):
        assert shop.deploy(image, CODEB_URL=url).code == 1
    assert shop.bench.curl_arguments == before, "the key goes over no wire without encryption"
    shop.installation.stop()
    said = shop.deploy(image)
    assert said.code == 7, said
    assert (shop.bench.folder / "slept").read_text(encoding="utf-8").split() == ["2", "5", "10", "0"]


async def test_a_pull_request_gets_a_preview_and_takes_it_along(shop: Shop, sample_images: SampleImages) -> None:
    image = shop.build(await sample_images.pushed("v1"))
    assert shop.jobs("opened") == ["build", "deploy"]
    made = shop.preview("deploy", "Create the preview and deploy to it", image)
    assert made.code == 0, made
    assert shop.installation.ask_public(f"{shop.name}-pr-12", environment="preview")[:2] == (200, "v1")
    assert shop.jobs("synchronize") == shop.jobs("reopened") == ["build", "deploy"]
    again = shop.preview("deploy", "Create the preview and deploy to it", image)
    assert again.code == 0, again
    assert shop.jobs("closed") == ["delete"]
    for _ in range(2):
        assert shop.preview("delete", "Delete the preview").code == 0, "also when there is none any more"
    assert f"{shop.name}-pr-12" not in str(shop.installation.call("project_list").body["data"])


async def test_a_preview_that_fails_fails_the_step_and_strangers_get_none(
    shop: Shop, sample_images: SampleImages
) -> None:
    image = shop.build(await sample_images.pushed("bad", HEALTH="fail"))
    said = shop.preview("deploy", "Create the preview and deploy to it", image)
    assert said.code == 22, said
    assert '"code":"release_unhealthy"' in said.out
    assert shop.preview("deploy", "Create the preview and deploy to it", image, number="0").code == 1
    for action in ("opened", "synchronize", "reopened", "closed"):
        assert shop.jobs(action, fork=True) == []
        assert shop.jobs(action, who="dependabot[bot]") == []


def test_hostile_values_of_the_runner_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """A tag, an image or a number made to break out of the shell or the JSON: no call, no file."""
    from codeb_mcp.model.dockerfiles import AppType
    from codeb_mcp.model.workflow import Pipeline, deploy_workflow, preview_workflow, to_yaml

    (tmp_path / "checkout").mkdir()
    bench = Workbench(tmp_path / "runner", tmp_path / "checkout")
    bench.without_network()
    outside = tmp_path / "outside"
    outside.mkdir()
    deploy = step_of(yaml.safe_load(to_yaml(deploy_workflow(Pipeline("shop", AppType.GO)))), "deploy", "Deploy")
    preview = step_of(
        yaml.safe_load(to_yaml(preview_workflow(Pipeline("shop", AppType.GO)))), "delete", "Delete the preview"
    )
    fine = {
        "CODEB_URL": "http://127.0.0.1:9", "CODEB_API_KEY": secrets.token_hex(8), "PROJECT": "shop", "PROMOTE": "false",
        "ENVIRONMENT": "staging", "IMAGE": "ghcr.io/a/b@sha256:" + "0" * 64, "NUMBER": "12", "GITHUB_SHA": SHA,
        "GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v1",
    }  # fmt: skip
    tried = 0
    for step, name in ((deploy, "GITHUB_REF_NAME"), (deploy, "IMAGE"), (preview, "NUMBER")):
        for text in texts():
            value = text.replace("{canary}", str(outside / "canary")).replace("{victim}", str(outside / "victim"))
            if "\0" in value or len(value) > 2000:
                continue
            ran = bench.run({"run": step["run"]}, {}, **{**fine, name: value})
            plain = name == "GITHUB_REF_NAME" and value.isascii() and all(c.isalnum() or c in "._-" for c in value)
            assert ran.code != 0
            assert plain or value not in bench.curl_arguments.split("\n") or not value, (name, value)
            tried += 1
    sent = [line for line in bench.curl_arguments.splitlines() if line.startswith('{"tool"')]
    assert all(
        line.startswith('{"tool":"deploy","params":{"projectName":"shop","environment":"staging"') for line in sent
    )
    assert len(sent) < tried / 10
    assert list(outside.iterdir()) == []
    print(f"{tried} hostile values tried, {len(sent)} harmless ones sent")
