"""Generated Dockerfiles: two stages, nobody's root, the app itself gets the signal, and no secret stays."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from codeb_mcp.model.dockerfiles import SECRETS, AppType, dockerfile, dockerignore
from codeb_mcp.model.scan import scan
from codeb_mcp.model.scan_dockerfile import instructions
from tests.lab.linters import linter


@pytest.mark.parametrize("kind", AppType)
@pytest.mark.parametrize("port", [1, 3000, 8080, 65535])
def test_every_dockerfile_keeps_the_rules(kind: AppType, port: int) -> None:
    known = instructions(dockerfile(kind, port))
    stages = [one for one in known if one.word == "FROM"]
    assert len(stages) == 2
    assert all(":latest" not in one.rest and ":" in one.rest for one in stages)
    last = known[known.index(stages[1]) :]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", next(one.rest for one in last if one.word == "USER"))
    assert json.loads(next(one.rest for one in last if one.word == "CMD"))
    assert any(one.word == "ENV" and f"PORT={port}" in one.rest.split() for one in last)
    assert next(one.rest for one in last if one.word == "EXPOSE") == str(port)
    assert not [one for one in known if one.word in ("ARG", "ADD", "HEALTHCHECK", "VOLUME")]
    assert [one for one in known if "--mount=type=secret," in one.rest and f"id={SECRETS[kind].id}," in one.rest]
    assert "/health" in dockerfile(kind, port)
    assert "{" not in re.sub(r"[\[{][^\]}]*[\]}]", "", dockerfile(kind, port)), "no place was left unfilled"


@pytest.mark.parametrize("kind", AppType)
def test_hadolint_and_our_own_scanner_find_nothing(kind: AppType, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(dockerfile(kind, 8080), encoding="utf-8")
    files = {"Dockerfile": path.read_text(encoding="utf-8"), ".dockerignore": dockerignore(kind)}
    assert [one for one in scan(files, 8080) if one.file in files] == []
    hadolint = linter("hadolint")
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("kind", AppType)
def test_what_is_secret_stays_out_of_the_build(kind: AppType) -> None:
    lines = dockerignore(kind).splitlines()
    assert {".git", ".env", ".env.*", "*.pem", "*.key"} <= set(lines)
    assert any(secret in " ".join(lines) for secret in (".npmrc", "pip.conf", ".netrc"))
