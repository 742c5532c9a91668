"""What a look at a repository finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is: `error` is unsafe or will not work, `warning` will hurt some day, `note` is worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a file lacks or does wrong. `line` counts from 1; `rule` is a stable name."""

    severity: Severity
    rule: str
    file: str
    problem: str
    fix: str
    line: int | None = None


def error(rule: str, file: str, problem: str, fix: str, line: int | None = None) -> Finding:
    """Something unsafe, or something that will not work."""
    return Finding(Severity.ERROR, rule, file, problem, fix, line)


def warning(rule: str, file: str, problem: str, fix: str, line: int | None = None) -> Finding:
    """Something that will hurt some day."""
    return Finding(Severity.WARNING, rule, file, problem, fix, line)


def note(rule: str, file: str, problem: str, fix: str, line: int | None = None) -> Finding:
    """Something worth knowing."""
    return Finding(Severity.NOTE, rule, file, problem, fix, line)
