"""Where the journals of runs are, and how an ended one moves."""

from __future__ import annotations

import contextlib
from pathlib import Path

from codeb_mcp.registry.disk import Disk


class RunFiles:
    """Where the journals are."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.disk = disk
        self.open_folder = f"{root.absolute()}/operations/open"
        self.done_folder = f"{root.absolute()}/operations/done"

    def open_path(self, run_id: str) -> str:
        """The journal of a run that has not ended."""
        return f"{self.open_folder}/{run_id}.jsonl"

    def done_path(self, run_id: str) -> str:
        """The journal of a run that has."""
        return f"{self.done_folder}/{run_id}.jsonl"

    def cancel_path(self, run_id: str) -> str:
        """The wish that the run be cancelled."""
        return f"{self.open_folder}/{run_id}.cancel"

    def retire(self, run_id: str) -> None:
        """Move an ended run to the others; raises OSError. Harmless when it was moved already."""
        # The new name is durable before the old one goes. That the old one is gone is not synced: after a power cut the
        # run may lie among the open ones again, where its last entry says that it has ended, and the next look moves it.
        self.disk.make_folder(self.done_folder, durable=True)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            self.disk.link(self.open_path(run_id), self.done_path(run_id))
            self.disk.sync_folder(self.done_folder)
        self.disk.unlink(self.open_path(run_id))
        self.disk.unlink(self.cancel_path(run_id))
