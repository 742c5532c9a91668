"""The two commands of the README, in a fresh copy of the checkout with nothing installed in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info", "build", "dist")
SECONDS = 900

pytestmark = pytest.mark.real("docker", "registry", "caddy")


def commands() -> list[str]:
    """What the README tells a new user to type first."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [line.partition("#")[0].strip() for line in block[1].splitlines()]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A copy as a clone would be: no environment, no caches."""
    return Path(shutil.copytree(ROOT, tmp_path / "codeb", ignore=LEFT_BEHIND, symlinks=True))


def typed(folder: Path, *words: str) -> str:
    """What a command says that has to end well."""
    outside = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    path = ":".join(part for part in os.environ["PATH"].split(":") if "/.venv/" not in part and "/venv/" not in part)
    environ = {name: value for name, value in outside.items() if not name.startswith("PYTEST")} | {"PATH": path}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=SECONDS, env=environ, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_the_readme_begins_with_these_commands() -> None:
    assert commands() == ["./scripts/demo", "./scripts/test"]


def test_the_demo_runs_from_a_fresh_checkout_and_loses_nothing(fresh: Path) -> None:
    said = typed(fresh, "./scripts/demo")
    served = re.search(r"([0-9,]+) requests served, 0 lost", said)
    assert served is not None, said[-2000:]
    assert int(served[1].replace(",", "")) > 1000


@pytest.mark.nightly
def test_the_tests_run_from_a_fresh_checkout(fresh: Path) -> None:
    said = typed(fresh, "./scripts/test", "tests/unit/model/test_names.py")
    assert " passed" in said
