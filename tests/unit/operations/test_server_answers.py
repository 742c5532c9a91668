"""One command asks a server everything; a question that hangs or floods does not take the others with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from codeb_mcp.drivers.hosts import Finished
from codeb_mcp.drivers.local_host import LocalHost
from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable
from codeb_mcp.model.server import ServerRole
from codeb_mcp.operations.server_answers import ALWAYS, Answers

PREFIX = 5
"""Words before the questions: sh -c SCRIPT sh MARK."""


class Counted(LocalHost):
    """This machine, which fails as told when it is asked more than one question; `asked` is what it was asked."""

    def __init__(self, failure: CodebError | None = None) -> None:
        super().__init__("here")
        self.failure = failure
        self.asked: list[tuple[str, ...]] = []

    async def run(self, argv: Sequence[str], **how: Any) -> Finished:
        self.asked.append(tuple(argv[PREFIX:]))
        if self.failure is not None and len(argv) > PREFIX + 1:
            raise self.failure
        return await super().run(argv, **how)


async def test_one_command_answers_all_questions() -> None:
    host = Counted()
    answers = Answers(host, ServerRole.BACKUP)
    await answers.gather()
    said = {question: await answers.to(question) for question in (*ALWAYS, "rsync")}
    assert host.asked == [(*ALWAYS, "rsync")]
    assert said["user"].text.strip().isprintable()
    assert said["clock"].asked - 1 <= float(said["clock"].text) <= said["clock"].answered + 1
    assert said["listeners"].status in (0, 1)
    assert "/" in said["disk"].text
    assert said["kernel"].text.strip()[0].isdigit()


@pytest.mark.parametrize(
    "failure", [DeadlineExceeded("slow", inDoubt=True), DriverRefused("too much", reason="too_large")]
)
async def test_when_one_question_is_to_blame_each_is_asked_alone(failure: CodebError) -> None:
    host = Counted(failure)
    answers = Answers(host, ServerRole.STREAMING)
    await answers.gather()
    assert (await answers.to("user")).ok
    assert (await answers.to("kernel")).ok
    assert host.asked == [ALWAYS, ("user",), ("kernel",)]


@pytest.mark.parametrize(
    "failure",
    [DeadlineExceeded("no login", inDoubt=False), DriverRefused("not you", reason="login"), DriverUnavailable("gone")],
)
async def test_a_server_that_cannot_be_asked_is_asked_once(failure: CodebError) -> None:
    host = Counted(failure)
    with pytest.raises(type(failure)):
        await Answers(host, ServerRole.STREAMING).gather()
    assert host.asked == [ALWAYS]


async def test_a_question_that_nobody_knows_has_no_answer() -> None:
    answers = Answers(Counted(), ServerRole.STREAMING)
    assert not (await answers.to("nonsense")).ok
