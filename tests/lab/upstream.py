"""A tiny application in the test's own event loop, which can be told to hold requests back."""

from __future__ import annotations

import asyncio

from aiohttp import WSMsgType, web


class Upstream:
    """Answers `name` on every path; POST echoes; `/held` waits for `release`; `/ws` echoes; `/lie` claims another slot.

    `arrived` counts the requests that `/held` has got, so that a test can wait for one without sleeping.
    """

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.release = asyncio.Event()
        self.arrived = asyncio.Semaphore(0)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on loopback."""
        app = web.Application()
        app.router.add_get("/held", self._held)
        app.router.add_get("/ws", self._websocket)
        app.router.add_get("/lie", self._lie)
        app.router.add_route("*", "/{path:.*}", self._plain)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Stop listening and end what runs."""
        self.release.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _plain(self, request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(body=body if request.method == "POST" else self.name.encode(), headers={"X-App": self.name})

    async def _held(self, request: web.Request) -> web.Response:
        self.arrived.release()
        await self.release.wait()
        return web.Response(text=self.name)

    async def _lie(self, request: web.Request) -> web.Response:
        return web.Response(text=self.name, headers={"X-CodeB-Slot": "neither"})

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        async for message in connection:
            if message.type is WSMsgType.TEXT:
                await connection.send_str(f"{self.name} {message.data}")
        return connection
