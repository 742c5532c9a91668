"""The demo: a real container behind a real proxy, deployed, promoted and rolled back through MCP, with nothing lost.

Started by ./scripts/demo. Everything it starts is private to it and gone at its end, also after Ctrl-C or a failure;
`--stay` leaves it running, `--stop` ends what was left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "scripts")]

from demo_app.parts import DemoError, Parts, left_over  # noqa: E402 - the checkout comes first
from demo_app.story import Story  # noqa: E402
from demo_app.view import View  # noqa: E402

from tests.lab.daemons import LabError  # noqa: E402

PICTURE = CHECKOUT / "docs" / "demo.svg"


def main() -> int:
    """Parse, run, tidy up; answers the exit code."""
    wanted = arguments()
    view = View(record=wanted.picture)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return stop(view) if wanted.stop else run(view, stay=wanted.stay)
    except (DemoError, LabError) as problem:
        view.problem(str(problem))
        return 1
    except BaseExceptionGroup as several:  # what happens inside an MCP client comes in groups
        view.problem(innermost(several))
        return 1
    except KeyboardInterrupt:
        view.problem("stopped; everything that was started is gone")
        return 130
    finally:
        if wanted.picture:
            view.save(PICTURE)


def innermost(problem: BaseException) -> str:
    """The first real problem in a group, in words."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return str(problem) if isinstance(problem, DemoError | LabError) else f"{type(problem).__name__}: {problem}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./scripts/demo", description="Deploy, promote and roll back, with nothing lost."
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--stay", action="store_true", help="leave everything running and say how to use it")
    group.add_argument("--stop", action="store_true", help="end what an earlier --stay left running")
    group.add_argument("--picture", action="store_true", help="save the account as docs/demo.svg")
    return parser.parse_args()


def run(view: View, *, stay: bool) -> int:
    """The whole story; 0 only when no request was lost."""
    tidy(view)
    view.title()
    parts = Parts(view)
    kept = False
    try:
        parts.start()
        story = Story(parts, view)
        asyncio.run(story.tell())
        kept = stay
    finally:
        if not kept:
            quietly(parts.remove)
    if kept:
        parts.keep()
        view.staying(parts)
    return 1 if story.lost else 0


def tidy(view: View) -> None:
    """What a demo left that was killed is taken away first; one that was told to stay is not."""
    found = left_over()
    if found is None:
        return
    if found.staying or found.alive:
        raise DemoError("a demo is still running here: end it with ./scripts/demo --stop")
    view.note("taking away what an earlier demo left")
    found.remove()


def stop(view: View) -> int:
    """End a demo that stays."""
    found = left_over()
    if found is None:
        view.note("no demo is running")
        return 0
    quietly(found.remove)
    view.note("stopped; everything it started is gone")
    return 0


def quietly(remove: object) -> None:
    """Take things away without being interrupted by an impatient second Ctrl-C."""
    former = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        remove()  # type: ignore[operator]
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    sys.exit(main())
