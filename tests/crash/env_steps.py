"""One change to an environment's variables in a process of its own, to be killed or lied to at any system call.

`python -m tests.crash.env_steps KIND ROOT` prints `acked`, or `refused CODE` and then `usable` once a further change goes
through.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from codeb_mcp.model.errors import CodebError
from codeb_mcp.registry.env_history import Draft, EnvHistories, EnvHistory, EnvSnapshot
from codeb_mcp.registry.env_log import EnvAuthor
from tests.crash.registry_steps import say

AT = datetime(2026, 1, 7, 12, tzinfo=UTC)
ANNA = EnvAuthor("Anna", "key_1", "acme")
BEFORE, AFTER, FOUND, LATER = b"STATE=before\n", b"STATE=after\n", b"# by hand\nSTATE=before\n", b"STATE=later\n"
DRAFTS: dict[str, Sequence[Draft]] = {
    "first": [Draft("set", AFTER)],
    "adopt": [Draft("adopted", FOUND), Draft("set", AFTER)],
    "next": [Draft("set", AFTER)],
    "found": [Draft("found", FOUND), Draft("sync", BEFORE)],
}
"""What is written; `next` and `found` come after two versions."""


def history(root: Path) -> EnvHistory:
    """The environment that is changed."""
    return EnvHistories(root, immutable_master=False).of("shop", "production")


def writes(*drafts: Draft) -> Callable[[EnvSnapshot], Sequence[Draft]]:
    """A change that writes these, whatever is there."""
    return lambda state: drafts


def prepare(kind: str, root: Path) -> None:
    """What is there before."""
    if kind in ("next", "found"):
        for data in (b"STATE=first\n", BEFORE):
            history(root).change(ANNA, AT, writes(Draft("set", data)))


def main() -> None:
    """Do it."""
    kind, root = sys.argv[1], Path(sys.argv[2])
    try:
        history(root).change(ANNA, AT, writes(*DRAFTS[kind]))
    except CodebError as error:
        say(f"refused {error.code}")
        for _ in range(4):
            try:
                history(root).change(ANNA, AT, writes(Draft("set", LATER)))
            except CodebError:
                continue
            say("usable")
            return
    else:
        say("acked")


if __name__ == "__main__":
    main()
