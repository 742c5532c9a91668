"""What every `Traffic` keeps; what only files can get wrong; and that real requests follow the flags without loss."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import multiprocessing
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path

import aiohttp
import pytest

from codeb_mcp.drivers.caddy_config import Tls
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeTraffic
from codeb_mcp.drivers.flags import Flags, FlagTraffic
from codeb_mcp.drivers.probe import HttpProber
from codeb_mcp.model.errors import DriverRefused, InvalidRequest, LeaseLost, LockHeld
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import Site
from tests.bench.hammer import Hammer, Target, Wire
from tests.contract.edges import Case, RealCase, site, until

KEY = "shop-production"
SLOTS: tuple[Slot | None, ...] = (Slot.BLUE, Slot.GREEN, None)


@pytest.fixture(params=["fake", "flags"])
def traffic(request: pytest.FixtureRequest, tmp_path: Path) -> Flags:
    """The fake and the real one."""
    return FakeTraffic(FakeEdge()) if request.param == "fake" else FlagTraffic(tmp_path / "flags")


# --- every traffic


def test_an_unknown_environment_is_not_live(traffic: Flags) -> None:
    assert traffic.live(KEY) is None
    assert traffic.keys() == []
    traffic.forget(KEY, fence=1)


@pytest.mark.parametrize(("start", "end"), [*product(SLOTS, SLOTS)])
def test_a_switch_arrives_from_everywhere_and_repeating_it_moves_nothing(
    traffic: Flags, start: Slot | None, end: Slot | None
) -> None:
    assert traffic.switch(KEY, start, fence=1)
    assert traffic.live(KEY) is start
    assert traffic.switch(KEY, end, fence=1) is (start is not end)
    assert traffic.live(KEY) is end
    assert not traffic.switch(KEY, end, fence=2)
    assert traffic.keys() == [KEY]


def test_an_older_fence_is_refused_and_changes_nothing(traffic: Flags) -> None:
    traffic.switch(KEY, Slot.GREEN, fence=7)
    for call in (lambda: traffic.switch(KEY, Slot.BLUE, fence=6), lambda: traffic.forget(KEY, fence=6)):
        with pytest.raises(LeaseLost):
            call()
    assert traffic.live(KEY) is Slot.GREEN
    assert traffic.switch(KEY, Slot.BLUE, fence=7)
    assert traffic.switch("other-production", Slot.BLUE, fence=1)


def test_a_forgotten_environment_is_gone_but_a_late_writer_stays_out(traffic: Flags) -> None:
    traffic.switch(KEY, Slot.GREEN, fence=7)
    traffic.forget(KEY, fence=8)
    assert traffic.live(KEY) is None
    assert traffic.keys() == []
    with pytest.raises(LeaseLost):
        traffic.switch(KEY, Slot.BLUE, fence=7)
    assert traffic.switch(KEY, None, fence=9)


def test_a_long_random_walk_ends_where_the_model_does(tmp_path: Path) -> None:
    seed = 20240
    rng, real, model = random.Random(seed), FlagTraffic(tmp_path), FakeTraffic(FakeEdge())
    for step in range(400):
        key, slot, fence = (
            rng.choice(["a-staging", "b-staging"]),
            rng.choice(SLOTS),
            step // 3 - rng.choice([0, 0, 0, 2]),
        )
        outcomes: list[bool | None] = []
        for one in (real, model):
            try:
                outcomes.append(
                    one.forget(key, fence=fence) if rng.random() < 0 else one.switch(key, slot, fence=fence)
                )
            except LeaseLost:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1], f"seed {seed} step {step}"
        assert (real.live(key), real.keys()) == (model.live(key), model.keys()), f"seed {seed} step {step}"


# --- files only


@pytest.mark.parametrize(
    "key", ["", "../etc", "a/b", ".lock", "A-production", "a.green", "a\n", "a\0b", "x" * 200, "-a"]
)
def test_a_key_that_is_no_name_touches_no_file(tmp_path: Path, key: str) -> None:
    traffic = FlagTraffic(tmp_path / "flags")
    for call in (
        lambda: traffic.switch(key, None, fence=1),
        lambda: traffic.live(key),
        lambda: traffic.forget(key, fence=1),
    ):
        with pytest.raises(InvalidRequest):
            call()
    assert list(tmp_path.iterdir()) == []


def test_another_user_can_read_the_flags_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        FlagTraffic(tmp_path / "flags").switch(KEY, Slot.GREEN, fence=1)
    finally:
        os.umask(before)
    assert (tmp_path / "flags").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / f"flags/{KEY}.green").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("end", SLOTS)
def test_green_covers_the_off_flag_it_came_from_and_the_next_switch_is_right(tmp_path: Path, end: Slot | None) -> None:
    traffic = FlagTraffic(tmp_path)
    traffic.switch(KEY, None, fence=1)
    traffic.switch(KEY, Slot.GREEN, fence=1)
    assert {path.name for path in tmp_path.glob(f"{KEY}.*")} == {f"{KEY}.fence", f"{KEY}.green", f"{KEY}.off"}
    assert traffic.live(KEY) is Slot.GREEN
    assert traffic.switch(KEY, end, fence=1) is (end is not Slot.GREEN)
    assert traffic.live(KEY) is end
    if end is not Slot.GREEN:
        names = {path.name for path in tmp_path.glob(f"{KEY}.*")}
        assert names == {f"{KEY}.fence", f"{KEY}.{'off' if end is None else end.value}"}


@pytest.mark.parametrize("content", [b"", b"12", b"-1", b"0000000000000000001", b"000000000000000001x\n", b"\0" * 20])
def test_a_damaged_fence_is_refused_not_guessed(tmp_path: Path, content: bytes) -> None:
    traffic = FlagTraffic(tmp_path)
    traffic.switch(KEY, Slot.GREEN, fence=1)
    (tmp_path / f"{KEY}.fence").write_bytes(content)
    with pytest.raises(DriverRefused, match="damaged"):
        traffic.switch(KEY, Slot.BLUE, fence=2)
    assert traffic.live(KEY) is Slot.GREEN


def test_a_process_that_was_stopped_in_a_switch_makes_others_give_up_after_a_while(tmp_path: Path) -> None:
    traffic = FlagTraffic(tmp_path, lock_seconds=0.05)
    traffic.switch(KEY, Slot.GREEN, fence=1)
    with (tmp_path / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockHeld):
            traffic.switch(KEY, Slot.BLUE, fence=2)
        assert traffic.live(KEY) is Slot.GREEN
    assert traffic.switch(KEY, Slot.BLUE, fence=2)


def _compete(folder: Path, number: int, results: multiprocessing.Queue[tuple[int, int, int]]) -> None:
    traffic, accepted, refused = FlagTraffic(folder), 0, 0
    for fence in range(1, 201):
        try:
            traffic.switch(KEY, Slot.GREEN if number % 2 else Slot.BLUE, fence=fence)
            accepted += 1
        except LeaseLost:
            refused += 1
    results.put((number, accepted, refused))


def test_processes_that_fight_leave_one_state_and_the_highest_fence(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, int, int]] = context.Queue()
    fighters = [context.Process(target=_compete, args=(tmp_path, number, results)) for number in range(4)]
    for fighter in fighters:
        fighter.start()
    seen, traffic = [results.get(timeout=60) for _ in fighters], FlagTraffic(tmp_path)
    for fighter in fighters:
        fighter.join(20)
    results.close()
    assert all(accepted + refused == 200 for _, accepted, refused in seen)
    assert traffic.live(KEY) in (Slot.BLUE, Slot.GREEN)
    assert int((tmp_path / f"{KEY}.fence").read_text()) == 200
    assert len([path for path in tmp_path.iterdir() if path.suffix in (".green", ".off", ".blue")]) == 1
    with pytest.raises(LeaseLost):
        traffic.switch(KEY, None, fence=199)


# --- real requests through a real Caddy


async def _shop(case: RealCase, *, preview: bool = False) -> Site:
    shop = site(KEY, case.ports, preview=preview)
    case.traffic.switch(KEY, None, fence=1)
    await case.proxy().apply(upsert=[shop])
    return shop


async def test_the_proxy_sends_each_request_where_the_flag_says_and_names_the_slot(edge: Case) -> None:
    shop = site(KEY, edge.ports, preview=True)
    edge.traffic.switch(KEY, None, fence=1)
    await edge.proxy().apply(upsert=[shop])
    for slot in Slot:
        await edge.serve(shop.port(slot), f"release on {slot.value}")
    walk: list[Slot | None] = [None, Slot.BLUE, Slot.GREEN, None, Slot.GREEN, Slot.BLUE, None]
    for live in walk:
        edge.traffic.switch(KEY, live, fence=2)
        answer = await edge.prober.public(shop.hosts[0], "/", timeout_seconds=10)
        if live is None:
            assert (answer.status, answer.slot) == (503, None)
        else:
            assert (answer.status, answer.slot, answer.body_head) == (200, live.value, f"release on {live.value}")
        for preview, name in ((shop.blue_preview, "blue"), (shop.green_preview, "green")):
            assert preview is not None
            seen = await edge.prober.public(preview, "/", timeout_seconds=10)
            assert (seen.status, seen.slot, seen.body_head) == (200, name, f"release on {name}")


async def test_an_answer_that_the_proxy_makes_up_names_no_slot(edge: Case) -> None:
    shop = site(KEY, edge.ports)
    edge.traffic.switch(KEY, Slot.GREEN, fence=1)
    await edge.proxy().apply(upsert=[shop])
    answer = await edge.prober.public(shop.hosts[0], "/", timeout_seconds=10)
    assert (answer.status, answer.slot) == (502, None)


async def test_a_preview_of_an_empty_slot_says_so_instead_of_a_bare_502(edge: Case) -> None:
    shop = site(KEY, edge.ports, preview=True)
    edge.traffic.switch(KEY, Slot.BLUE, fence=1)
    await edge.proxy().apply(upsert=[shop])
    await edge.serve(shop.blue_port, "blue")
    for name, expected in ((shop.green_preview, (503, None)), (shop.blue_preview, (200, "blue"))):
        answer = await edge.prober.public(name or "", "/", timeout_seconds=10)
        assert (answer.status, answer.slot) == expected
        assert ("no release answers in slot green" in (answer.body_head or "")) is (answer.status == 503)


async def test_a_release_cannot_pretend_to_be_the_other_slot(real: RealCase) -> None:
    shop = await _shop(real)
    await real.serve(shop.blue_port, "liar")
    real.traffic.switch(KEY, Slot.BLUE, fence=1)
    answer = await real.prober.public(shop.hosts[0], "/lie", timeout_seconds=10)
    assert (answer.body_head, answer.slot) == ("liar", "blue")


async def test_switching_on_to_green_never_shows_the_empty_blue_slot(real: RealCase) -> None:
    shop = await _shop(real)
    await real.serve(shop.green_port, "green")
    target, statuses, done = Target("127.0.0.1", real.server.port, shop.hosts[0]), Counter[int](), asyncio.Event()

    async def ask() -> None:
        wire = Wire(target)
        while not done.is_set():
            statuses[(await wire.ask("GET", "/", b""))[0]] += 1
        await wire.close()

    def switch() -> None:
        for _ in range(400):
            real.traffic.switch(KEY, Slot.GREEN, fence=1)
            real.traffic.switch(KEY, None, fence=1)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(ask())
        await asyncio.to_thread(switch)
        done.set()
    assert set(statuses) == {200, 503}, statuses


@pytest.mark.parametrize("kill", [False, True])
async def test_a_restart_of_caddy_keeps_the_live_slot(real: RealCase, kill: bool) -> None:
    shop = await _shop(real)
    for slot in Slot:
        await real.serve(shop.port(slot), slot.value)
    real.traffic.switch(KEY, Slot.GREEN, fence=1)
    real.server.restart(resume=True, kill=kill)
    answer = await real.prober.public(shop.hosts[0], "/", timeout_seconds=10)
    assert answer.slot == "green"


@contextlib.asynccontextmanager
async def _websocket(case: RealCase, host: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{case.server.port}/ws", headers={"Host": host}) as socket,
    ):
        yield socket


async def test_twenty_switches_under_keep_alive_posts_and_a_websocket_lose_nothing(real: RealCase) -> None:
    shop = await _shop(real)
    for slot in Slot:
        await real.serve(shop.port(slot), slot.value)
    real.traffic.switch(KEY, Slot.BLUE, fence=1)
    hammer = Hammer(Target("127.0.0.1", real.server.port, shop.hosts[0]), clients=8)
    async with _websocket(real, shop.hosts[0]) as socket, hammer.running():
        for number in range(20):
            before = hammer.report.served
            real.traffic.switch(KEY, Slot.BLUE if number % 2 else Slot.GREEN, fence=1)
            await socket.send_str(str(number))
            message = await socket.receive(timeout=10)
            assert message.data == f"blue {number}"
            await hammer.until_served(before + 40, seconds=20)
    assert hammer.report.troubles == {}
    assert hammer.report.served >= 800
    assert {"blue", "green"} <= set(hammer.report.slots)


async def _served(prober: HttpProber, host: str) -> bool:
    """Caddy issues a certificate after it has taken the configuration, and writes its root certificate before that."""
    return (await prober.public(host, "/", timeout_seconds=10)).status is not None


@pytest.fixture(params=["with the root certificate", "on loopback without it"])
def trust(request: pytest.FixtureRequest) -> bool:
    """Whether the prober is given Caddy's root certificate."""
    return bool(re.match("with ", request.param))


async def test_internal_tls_is_served_and_probed(real: RealCase, trust: bool) -> None:
    tls: Tls = "internal"
    case = RealCase(real.server, real.ports, tls=tls)
    shop = site(KEY, real.ports, preview=True)
    case.traffic.switch(KEY, Slot.GREEN, fence=1)
    await case.serve(shop.green_port, "green")
    await case.proxy().apply(upsert=[shop])
    authority = real.server.authority if trust else None
    prober = HttpProber(port=real.server.port, tls=tls, authority=authority)
    try:
        for host in shop.hosts[0], str(shop.green_preview):
            await until(lambda host=host: _served(prober, host))  # type: ignore[misc]
            answer = await prober.public(host, "/", timeout_seconds=10)
            assert (answer.status, answer.slot, answer.problem) == (200, "green", "")
        stranger = await prober.public("unknown.test", "/", timeout_seconds=10)
        assert stranger.status is None
        assert stranger.problem.startswith("TLS failed")
    finally:
        await prober.close()
        await case.close()
