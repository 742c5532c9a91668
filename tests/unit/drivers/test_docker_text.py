"""Reading what engines and registries write: errors, pull streams, log frames."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.drivers.docker_errors import clean, refused_container, refused_pull
from codeb_mcp.drivers.docker_logs import LogLines
from codeb_mcp.drivers.docker_pull import Entries, PullMeter
from codeb_mcp.drivers.docker_spec import container_of, fence_of, moment
from codeb_mcp.model.errors import DriverRefused, DriverUnavailable

IMAGE = "ghcr.io/denied/timeout-not-found:x509"

PULLS = [
    (
        "manifest for ghcr.io/denied/timeout-not-found:x509 not found: manifest unknown",
        DriverRefused,
        "image_not_found",
    ),
    (
        "pull access denied for x, repository does not exist or may require 'docker login'",
        DriverRefused,
        "image_not_found",
    ),
    ('Head "https://ghcr.io/v2/denied/x/manifests/x509": unauthorized', DriverRefused, "unauthorized"),
    ("Get https://r/v2/x: no basic auth credentials", DriverRefused, "unauthorized"),
    ('Head "https://ghcr.io/v2/a/manifests/b": denied', DriverRefused, "unauthorized"),
    (
        'Get "https://r/v2/": dial tcp 127.0.0.1:5: connect: connection refused',
        DriverUnavailable,
        "registry_unreachable",
    ),
    ('Get "https://r/v2/": dial tcp: lookup r: no such host', DriverUnavailable, "registry_unreachable"),
    ('Get "https://r/v2/": net/http: TLS handshake timeout', DriverUnavailable, "registry_unreachable"),
    ("received unexpected HTTP status: 503 Service Unavailable", DriverUnavailable, "registry_unreachable"),
    ('Get "https://r/v2/": x509: certificate signed by unknown authority', DriverUnavailable, "registry_tls"),
    ("http: server gave HTTP response to HTTPS client", DriverUnavailable, "registry_tls"),
    ("toomanyrequests: You have reached your pull rate limit.", DriverUnavailable, "registry_busy"),
    ("no matching manifest for linux/arm64 in the manifest list entries", DriverRefused, "wrong_platform"),
    ("invalid reference format", DriverRefused, "invalid_reference"),
    ("something nobody has ever seen", DriverRefused, "pull_failed"),
]

STARTS = [
    (
        "driver failed programming external connectivity: Bind for 127.0.0.1:4 failed: port is already allocated",
        "port_in_use",
    ),
    ("listen tcp4 127.0.0.1:4000: bind: address already in use", "port_in_use"),
    ('exec: "/x": stat /x: no such file or directory: unknown', "bad_command"),
    ('exec: "run": executable file not found in $PATH', "bad_command"),
    ("exec /app: exec format error", "wrong_platform"),
    ("unable to find user ghost: no matching entries in passwd file", "bad_user"),
    ("Minimum memory limit allowed is 6MB", "bad_limits"),
    ("something nobody has ever seen", None),
]


@pytest.mark.parametrize(("words", "kind", "reason"), PULLS)
def test_pull_errors_are_told_apart_by_the_engines_words_alone(words: str, kind: type, reason: str) -> None:
    error = refused_pull(DriverRefused(f"the container engine refused pulling {IMAGE}: {words}", hint="h"), IMAGE)
    assert (type(error), error.detail["reason"]) == (kind, reason)
    assert error.hint


@pytest.mark.parametrize(("words", "reason"), STARTS)
def test_start_errors_have_a_reason_and_a_hint(words: str, reason: str | None) -> None:
    error = refused_container(DriverRefused(f"the container engine refused starting x: {words}", hint="h"), "x")
    assert error.detail.get("reason") == reason
    assert error.hint


def test_engine_words_are_one_clean_line_without_secrets() -> None:
    text = clean("a\x1b[31m\nb\u202e  tok-123 c\x00" + "x" * 900, ["tok-123", "b"])
    assert text.startswith("a [31m b *** c x")
    assert len(text) == 500


def _frame(text: bytes, kind: int = 1) -> bytes:
    return struct.pack(">BxxxL", kind, len(text)) + text


STAMP = b"2024-05-06T07:08:09.123456789Z "


@given(st.data())
def test_lines_come_whole_however_the_stream_is_cut(data: st.DataObject) -> None:
    lines = data.draw(
        st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=40), max_size=8)
    )
    stream = b"".join(_frame(STAMP + line.encode() + b"\n") for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = LogLines()
    got: list[str] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:end])
    assert [*got, *reader.rest()] == [STAMP.decode() + line for line in lines]


def test_a_line_in_several_frames_is_joined_and_both_outputs_are_kept_apart() -> None:
    reader = LogLines()
    long = b"x" * 16384
    parts = _frame(STAMP + long) + _frame(STAMP + b"err\n", 2) + _frame(STAMP + b" end\n") + _frame(STAMP + long)
    assert [line[31:] for line in reader.feed(parts)] == ["err", long.decode() + " end"]
    assert [line[31:] for line in reader.rest()] == [long.decode()]


def test_the_last_words_of_a_process_are_a_line_of_their_own() -> None:
    reader = LogLines()
    lines = reader.feed(_frame(STAMP + b"no newline") + _frame(STAMP + b"after the restart\n"))
    assert [line[31:] for line in lines] == ["no newline", "after the restart"]


def test_an_endless_line_is_cut_and_wrong_bytes_are_replaced() -> None:
    reader = LogLines()
    lines = [line for _ in range(10) for line in reader.feed(_frame(STAMP + b"x" * 16384))]
    lines += reader.feed(_frame(STAMP + b"\n") + _frame(STAMP + b"caf\xe9\n"))
    assert [len(lines[0]), lines[1][31:]] == [65536, "caf\ufffd"]


@given(st.binary(max_size=200))
def test_a_stream_that_is_no_log_is_an_error_or_nothing(noise: bytes) -> None:
    reader = LogLines()
    try:
        list(reader.feed(noise))
    except ValueError as error:
        assert str(error) == "not a log frame"  # noqa: PT017


def test_the_meter_never_goes_back_and_ends_at_one() -> None:
    def entry(status: str, layer: str, **detail: int) -> dict[str, object]:
        return {"status": status, "id": layer, "progressDetail": detail}

    script: list[dict[str, object]] = [
        {"status": "Pulling from acme/shop", "id": "v1"},
        entry("Pulling fs layer", "a"), entry("Pulling fs layer", "b"), entry("Already exists", "c"),
        entry("Downloading", "a", current=50, total=100), entry("Downloading", "b", current=900, total=1000),
        entry("Verifying Checksum", "a"), entry("Download complete", "a"), entry("Download complete", "b"),
        entry("Extracting", "a", current=10, total=100), entry("Pull complete", "a"), entry("Pull complete", "b"),
        {"status": "Digest: sha256:" + "a" * 64}, {"status": "Status: Downloaded newer image for acme/shop:v1"},
    ]  # fmt: skip
    meter, entries, seen = PullMeter(), Entries(), []
    raw = "".join(json.dumps(item) + "\r\n" for item in script).encode()
    for start in range(0, len(raw), 7):
        for item in entries.feed(raw[start : start + 7]):
            meter.feed(item)
            seen.append(meter.fraction)
    known = [fraction for fraction in seen if fraction is not None]
    assert seen[0] is None
    assert known == sorted(known)
    assert (known[-1], meter.digest, meter.complete) == (1.0, "sha256:" + "a" * 64, True)


@pytest.mark.parametrize("text", ["", "-3", "3.0", "x", "²", " 4"])
def test_a_fence_that_is_no_number_counts_as_none(text: str) -> None:
    assert fence_of({"codeb.fence": text}) == 0


def test_a_container_that_never_started_has_no_start_and_no_exit_code() -> None:
    made = container_of(
        {
            "Id": "1", "Name": "/x", "Image": "sha256:1", "Config": {"Image": "i", "Labels": None}, "HostConfig": {},
            "State": {"Status": "created", "ExitCode": 0, "StartedAt": "0001-01-01T00:00:00Z"},
        }
    )  # fmt: skip
    assert (made.started_at, made.exit_code, made.host_ports, dict(made.labels)) == (None, None, (), {})
    assert str(moment("2024-05-06T07:08:09.123456789Z")) == "2024-05-06 07:08:09.123456+00:00"
