"""The libraries' own log lines, sent the same way as ours: one format, one redactor."""

from __future__ import annotations

import logging
from typing import Any

LIBRARIES = ("uvicorn", "mcp", "asyncio", "aiohttp", "sse_starlette")


class _Forward(logging.Handler):
    def __init__(self, log: Any) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the line on. A trace goes along; the redactor sees it like everything else."""
        try:
            self._log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
        except (ValueError, TypeError, OSError):
            self.handleError(record)


def forward_library_logs(log: Any) -> None:
    """From now on warnings and errors of the libraries go through `log`. Safe to repeat."""
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers = [_Forward(log)]
        logger.propagate = False
