"""One wish towards a server: whether it may have been carried out, and how its failure is said.

This machine and SSH say the same failures in the same words, because both say them here.
"""

from __future__ import annotations

import secrets
import shlex
import threading
from collections.abc import Sequence

from codeb_mcp.model.errors import DeadlineExceeded, DriverRefused, DriverUnavailable, InsufficientStorage

MAX_COMMAND = 100_000
"""Bytes of a whole command. The kernel takes 131 072 in one word, and SSH hands over a command as one word."""
MAX_SAID = 300


class Abandoned(Exception):
    """Nobody waits for the wish any more, and it was not yet sent: it never will be."""


class Attempt:
    """`doing` completes "while …" or "to …" in messages: `read /etc/hosts`.

    Whoever carries out the wish calls `send` right before the step that changes something; whoever stops waiting calls
    `abandon`. Of the two only the first counts, so that `sent` is the truth afterwards.
    """

    def __init__(self, key: str, doing: str) -> None:
        self.key = key
        self.doing = _line(doing)
        self.sent = False
        self._abandoned = False
        self._turn = threading.Lock()

    def send(self) -> None:
        """From now on the wish may have been carried out; raises Abandoned when it must not be any more."""
        with self._turn:
            if self._abandoned:
                raise Abandoned
            self.sent = True

    def denied(self) -> None:
        """The server certainly did not do what was sent."""
        self.sent = False

    def abandon(self) -> None:
        """Stop it if it was not yet sent."""
        with self._turn:
            self._abandoned = True

    def unreachable(self, why: str, hint: str = "") -> DriverUnavailable:
        """The server cannot be reached, or went away."""
        return DriverUnavailable(
            f"server {self.key} cannot be reached to {self.doing}: {_line(why)}",
            hint=hint or self._hint("See that the server is up and reachable, then try again."),
            server=self.key,
            inDoubt=self.sent,
        )

    def refused(self, why: str, hint: str = "", *, reason: str = "refused") -> DriverRefused:
        """The server said no; `reason` is a stable word."""
        return DriverRefused(
            f"server {self.key} refused to {self.doing}: {_line(why)}",
            hint=hint or self._hint("The server's own words say what is wrong."),
            server=self.key,
            inDoubt=self.sent,
            reason=reason,
        )

    def forbidden(self, why: str = "permission denied") -> DriverRefused:
        """The account has no right to do that."""
        hint = "Give the account that CodeB uses there the right to do it, or use another path."
        return self.refused(why, hint, reason="permission")

    def too_late(self, seconds: float) -> DeadlineExceeded:
        """No answer within the deadline."""
        return DeadlineExceeded(
            f"server {self.key} took more than {seconds:g} s to {self.doing}",
            hint=self._hint("See whether the server is overloaded or its network is slow, then try again."),
            server=self.key,
            inDoubt=self.sent,
        )

    def full(self, why: str = "no space left") -> InsufficientStorage:
        """Its disk or quota is full."""
        return InsufficientStorage(
            f"the disk of server {self.key} is too full to {self.doing}: {_line(why)}",
            hint="Free some space on the server, then try again.",
            server=self.key,
            inDoubt=self.sent,
        )

    def _hint(self, otherwise: str) -> str:
        return "It may have been done all the same: look before you repeat it." if self.sent else otherwise


def _line(text: str) -> str:
    said = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split()).rstrip(".")
    return said if len(said) <= MAX_SAID else said[: MAX_SAID - 1] + "…"


def path_bytes(attempt: Attempt, path: str) -> bytes:
    """The path as the file system has it; DriverRefused when it is none."""
    encoded = _encoded(attempt, path)
    if not path.startswith("/"):
        raise attempt.refused("the path is not absolute", "Use a path that begins with /.", reason="bad_path")
    if len(encoded) > 4095 or any(len(part) > 255 for part in encoded.split(b"/")):
        raise attempt.refused("the path is too long", "Use a shorter path.", reason="bad_path")
    return encoded


def file_bytes(attempt: Attempt, path: str) -> bytes:
    """Like `path_bytes`, for something that has a name in a folder."""
    encoded = path_bytes(attempt, path)
    if encoded.rsplit(b"/", 1)[1] in (b"", b".", b".."):
        raise attempt.refused("the path names no file", "Use a path that ends with a name.", reason="bad_path")
    return encoded


def command_words(attempt: Attempt, argv: Sequence[str]) -> list[bytes]:
    """The words as the kernel gets them; DriverRefused when they are no command."""
    if isinstance(argv, str) or not argv or not argv[0]:
        raise attempt.refused("there is no command", "Give the command as a list of words.", reason="bad_command")
    words = [_encoded(attempt, word) for word in argv]
    if len(quoted(words)) > MAX_COMMAND:
        raise attempt.refused(
            f"the command is longer than {MAX_COMMAND} bytes", "Hand the data over on stdin.", reason="bad_command"
        )
    return words


def quoted(words: Sequence[bytes]) -> bytes:
    """One string that a POSIX shell takes apart into exactly these words."""
    return " ".join(shlex.quote(word.decode("utf-8", "surrogateescape")) for word in words).encode(
        "utf-8", "surrogateescape"
    )


def _encoded(attempt: Attempt, text: str) -> bytes:
    if "\0" in text:
        raise attempt.refused("a word has a NUL character in it", "Leave the NUL character out.", reason="bad_word")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise attempt.refused("a word is no proper text", "Use valid Unicode.", reason="bad_word") from None


def temporary_name(name: bytes) -> bytes:
    """Where a file is prepared: in the same folder, under a name that nobody else has."""
    folder, last = name.rsplit(b"/", 1)
    return folder + b"/." + last[:200] + b"." + secrets.token_hex(8).encode("ascii") + b".part"
