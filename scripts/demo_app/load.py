"""A load generator in a process of its own: keep-alive clients that never repeat a request, and so lose what gets lost.

`python -m demo_app.load PORT HOST CLIENTS` runs until its stdin ends, then prints what it saw as JSON. Times are of the
monotonic clock, which all processes of the machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

ANSWER_SECONDS = 10.0
PAUSE_SECONDS = 0.002
EXAMPLES = 5


@dataclass
class Seen:
    """What all clients saw. `answers`: when each answer came, and the version that gave it."""

    gets: int = 0
    posts: int = 0
    lost: list[str] = field(default_factory=list)
    connections: int = 0
    answers: list[tuple[float, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For stdout."""
        return {
            "gets": self.gets,
            "posts": self.posts,
            "lost": len(self.lost),
            "examples": self.lost[:EXAMPLES],
            "connections": self.connections,
            "answers": self.answers,
        }


class Unexpected(Exception):
    """An answer that is not what the application would say."""


async def client(port: int, host: str, seen: Seen, stop: asyncio.Event) -> None:
    """One client: GET and POST in turn on one connection; a new connection only when the old one is lost."""
    number = 0
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            seen.lost.append(f"connect: {error}")
            await asyncio.sleep(0.05)
            continue
        seen.connections += 1
        try:
            while not stop.is_set():
                number += 1
                await one_request(reader, writer, host, number, seen)
                await asyncio.sleep(PAUSE_SECONDS)
        except (OSError, EOFError, TimeoutError, ValueError, Unexpected) as error:
            seen.lost.append(f"{type(error).__name__}: {error}")
        finally:
            writer.close()


async def one_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, number: int, seen: Seen
) -> None:
    """Send one and check its answer; raises when there is none or it is wrong."""
    post = number % 2 == 0
    body = b"number %d" % number if post else b""
    method = "POST" if post else "GET"
    head = f"{method} / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with asyncio.timeout(ANSWER_SECONDS):
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, headers = parsed(answer)
        said = await reader.readexactly(int(headers["content-length"]))
    if status != 200 or (post and said != body):
        raise Unexpected(f"{method} answered {status} {said[:60]!r}")
    seen.answers.append((time.monotonic(), headers.get("x-app-version", "?")))
    seen.gets += not post
    seen.posts += post


def parsed(head: str) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    first, *lines = head.strip().split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    return int(first.split(" ")[1]), {name.strip().lower(): value.strip() for name, value in pairs}


async def main(port: int, host: str, clients: int) -> Seen:
    """Run the clients until stdin ends."""
    seen, stop = Seen(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), stop.set)
    await asyncio.gather(*(client(port, host, seen, stop) for _ in range(clients)))
    return seen


if __name__ == "__main__":
    found = asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    json.dump(found.as_dict(), sys.stdout)
