"""A steady load on one public address: every request is counted, none is repeated in silence."""

from __future__ import annotations

import http.client
import select
import threading
from collections import Counter
from types import TracebackType
from typing import Self


class Hammer:
    """Threads that each keep one connection and send GET and POST in turn until the block ends.

    `answers` counts statuses; `lost` lists requests that were written and got no answer. `careful`: look whether a kept
    connection was closed before writing to it, as common clients do; `reopened` counts those.
    """

    def __init__(
        self,
        port: int,
        host: str,
        *,
        threads: int = 4,
        path: str = "/version",
        careful: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        self.port, self.host, self.path, self.address = port, host, path, address
        self.answers: Counter[int] = Counter()
        self.bodies: Counter[str] = Counter()
        self.lost: list[str] = []
        self.careful = careful
        self.reopened = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _client(self) -> None:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=10)
        method = "GET"
        while not self._stop.is_set():
            method = "POST" if method == "GET" else "GET"
            if self.careful and connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                connection.close()
                self.reopened += 1
            try:
                connection.request(
                    method, self.path, body=b"x" if method == "POST" else None, headers={"Host": self.host}
                )
                answer = connection.getresponse()
                body = answer.read().decode().strip()
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.lost.append(f"{method}: {type(error).__name__}: {error}")
                connection.close()
                continue
            with self._lock:
                self.answers[answer.status] += 1
                self.bodies[body[:40]] += 1
            self._stop.wait(0.005)
        connection.close()

    @property
    def failed(self) -> int:
        """Requests that were lost or not answered with 200."""
        return len(self.lost) + sum(count for status, count in self.answers.items() if status != 200)

    @property
    def answered(self) -> int:
        """Requests that got an answer so far."""
        with self._lock:
            return sum(self.answers.values())
