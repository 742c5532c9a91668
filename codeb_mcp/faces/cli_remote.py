"""One call on a server that survives a lost answer: started once, watched, and asked for its end.

A run lives on the server, not in the call. So a long call is started without waiting, looked at until it has ended, and
repeated when its answer is lost: by itself it joins the run (`joins`), or it carries a key that never starts a second one.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codeb_mcp.model.errors import DriverUnavailable, Forbidden, RateLimited

if TYPE_CHECKING:
    from codeb_mcp.faces.client import Client
    from codeb_mcp.operations.catalog import Operation
    from codeb_mcp.operations.context import Event

LOOK_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Pauses between two looks at a run; the last one repeats."""
REPEAT_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses before a call whose answer was lost is repeated: long enough for a server to start again."""
KEY = "idempotencyKey"

Hear = Callable[["Event"], None]


@dataclass(slots=True)
class Remote:
    """Calls one server. `hear` is told the steps of a run."""

    client: Client
    hear: Hear

    async def answer(self, tool: str, arguments: Mapping[str, Any], operation: Operation | None) -> dict[str, Any]:
        """The answer of the tool; raises its error."""
        if operation is None or not _is_run(operation):
            return await self.client.call(tool, arguments)
        joins = getattr(operation, "joins", False)
        own = {} if joins or KEY in arguments else {KEY: f"cli:{uuid.uuid4().hex}"}
        said = {**own, **arguments}
        state: Mapping[str, Any] = await self._repeated(tool, {**said, "wait": False}, begun=False)
        if said.get("wait") is False:
            return dict(state)
        state = await self._watched(state)
        if state.get("status") == "failed" and KEY not in said:
            # The same call would begin anew. Nothing is resumed here: a run that has ended answers its failure.
            await self._repeated("operation_resume", {"operationId": state.get("operationId")})
        return await self._repeated(tool, said)

    async def _repeated(self, tool: str, arguments: Mapping[str, Any], *, begun: bool = True) -> dict[str, Any]:
        """The answer of a call that may be repeated. `begun`: the server has answered before, so that one that cannot be
        reached is expected back."""
        from codeb_mcp.faces.client import Lost

        for pause in REPEAT_SECONDS:
            try:
                return await self.client.call(tool, arguments)
            except DriverUnavailable as error:
                if not begun and not isinstance(error, Lost):
                    raise
            begun = True
            await asyncio.sleep(pause)
        return await self.client.call(tool, arguments)

    async def _watched(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Show the run's steps until it is not running any more; what it has come to. A key that may call the tool but not
        look at its runs sees no steps."""
        run_id, shown, looks = str(state.get("operationId") or ""), 0, 0
        while run_id:
            steps = [step for step in state.get("steps", []) if isinstance(step, Mapping)]
            for number, step in enumerate(steps[shown:], start=shown + 1):
                self.hear(_event(run_id, number, step))
            shown = len(steps)
            if state.get("status") != "running":
                break
            await asyncio.sleep(LOOK_SECONDS[min(looks, len(LOOK_SECONDS) - 1)])
            looks += 1
            try:
                with contextlib.suppress(RateLimited):
                    state = await self._repeated("operation_get", {"operationId": run_id})
            except Forbidden:
                break
        return state


def _is_run(operation: Operation) -> bool:
    """Whether the operation starts a run that callers may leave alone and join again."""
    fields = operation.request.model_fields
    return operation.long and "idempotency_key" in fields and "wait" in fields


def _event(run_id: str, number: int, step: Mapping[str, Any]) -> Event:
    """A step of a run as news; how many there will be is not known from here."""
    from codeb_mcp.operations.context import Event

    words = str(step.get("error") or step.get("output") or "")
    return Event(run_id, str(step.get("name")), "failed" if step.get("error") else "started", number, 0, None, words)
