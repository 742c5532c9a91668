"""Runs the shell steps of a generated workflow as a runner of GitHub does: same shell, same variables, nothing else.

Expressions are looked up in a table that the test gives; one that is not there is a mistake. `ghcr.io` is an image registry of
the lab: a wrapper around the real docker translates the name in both directions. Wrappers also note what `curl` was called
with, and let waiting take no time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.daemons import LabError

EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
DOCKER = """#!/bin/bash
set -o pipefail
export DOCKER_HOST={host}
"{docker}" "${{@//ghcr.io/{registry}}}" | sed "s#{registry}#ghcr.io#g"
"""
CURL = """#!/bin/bash
printf '%s\\n' "$@" >>"{folder}/curl-arguments"
if [ -e "{folder}/lose-next" ]; then
  rm "{folder}/lose-next"
  "{curl}" "$@" >/dev/null
  exit 52
fi
if [ -e "{folder}/no-network" ]; then exit 0; fi
exec "{curl}" "$@"
"""


@dataclass(frozen=True)
class Ran:
    """How a step ended. `outputs` is what it wrote to GITHUB_OUTPUT."""

    code: int
    out: str
    err: str
    outputs: Mapping[str, str]


@dataclass
class Workbench:
    """A runner's machine: `run(step, …)` runs one step in `checkout`."""

    folder: Path
    checkout: Path
    registry: str = "127.0.0.1:9"
    engine_host: str = "unix:///nowhere"
    github: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "home", "temp"):
            (self.folder / name).mkdir(parents=True)
        docker = next(
            (path for path in ("/usr/bin/docker", shutil.which("docker")) if path and Path(path).exists()), ""
        )
        self._tool("docker", DOCKER.format(host=self.engine_host, registry=self.registry, docker=docker))
        self._tool("curl", CURL.format(folder=self.folder, curl=shutil.which("curl")))
        self._tool("sleep", f"#!/bin/bash\necho \"$1\" >>'{self.folder}/slept'\n")

    def _tool(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def lose_next_answer(self) -> None:
        """The next call arrives, and its answer is lost on the way back."""
        (self.folder / "lose-next").touch()

    def without_network(self) -> None:
        """Calls are noted and go nowhere."""
        (self.folder / "no-network").touch()

    @property
    def curl_arguments(self) -> str:
        """Everything that stood in the process list."""
        path = self.folder / "curl-arguments"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def run(self, step: Mapping[str, Any], expressions: Mapping[str, str], **environ: str) -> Ran:
        """Run the step. `expressions`: what stands between `${{` and `}}`, and its value; `environ` comes last."""
        script, output = self.folder / "step.sh", self.folder / "output"
        script.write_text(step["run"], encoding="utf-8")
        output.write_text("", encoding="utf-8")
        given = {name: self._value(str(text), expressions) for name, text in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.checkout,
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "HOME": str(self.folder / "home"),
                "RUNNER_TEMP": str(self.folder / "temp"),
                "GITHUB_OUTPUT": str(output),
                **self.github,
                **given,
                **environ,
            },
            capture_output=True,
            timeout=300,
            check=False,
        )
        lines = [line.partition("=") for line in output.read_text(encoding="utf-8").splitlines()]
        return Ran(
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
            {name: value for name, _, value in lines},
        )

    def _value(self, text: str, expressions: Mapping[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] not in expressions:
                raise LabError(f"nobody says what {match[1]} is")
            return expressions[match[1]]

        return EXPRESSION.sub(value, text)


def step_of(workflow: Mapping[str, Any], job: str, name: str) -> Mapping[str, Any]:
    """A step by its name."""
    return next(step for step in workflow["jobs"][job]["steps"] if step.get("name") == name)


def jobs_for(workflow: Mapping[str, Any], event: Mapping[str, str]) -> list[str]:
    """The jobs that GitHub would run for an event of that type with these values, in order: `if` as it stands there, and no job
    without those that it needs. Knows `==`, `!=` and `&&` of texts and of what `event` holds; LabError for anything else."""
    run: list[str] = []
    for name, job in workflow["jobs"].items():
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        if all(one in run for one in needs) and _holds(job.get("if", "'' == ''"), event):
            run.append(name)
    return run


_COMPARED = re.compile(r"(\S+) (==|!=) (\S+)")


def _holds(condition: str, event: Mapping[str, str]) -> bool:
    def value(text: str) -> str:
        if text.startswith("'") and text.endswith("'"):
            return text[1:-1]
        if text not in event:
            raise LabError(f"nobody says what {text} is")
        return event[text]

    for part in condition.split(" && "):
        match = _COMPARED.fullmatch(part)
        if match is None:
            raise LabError(f"this condition is not understood here: {part}")
        if (value(match[1]) == value(match[3])) is not (match[2] == "=="):
            return False
    return True
