"""Settings: read once, and a wrong key is refused by its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.model.names import Environment
from codeb_mcp.settings import load


def _write(root: Path, text: str) -> Path:
    (root / "codeb.toml").write_text(text, encoding="utf-8")
    return root


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    settings = load(tmp_path, {})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 9101)
    assert settings.ports.of(Environment.PREVIEW) == ((5000, 5431),)
    assert settings.registry == tmp_path / "registry"
    assert (settings.projects, settings.traffic, settings.run) == tuple(
        tmp_path / name for name in ("projects", "traffic", "run")
    )


def test_the_file_and_the_environment_are_heard_and_the_environment_counts(tmp_path: Path) -> None:
    _write(tmp_path, '[server]\nport = 9200\nhost = "0.0.0.0"\n[ports]\nproduction = [[6000, 6099]]\n')
    settings = load(None, {"CODEB_ROOT": str(tmp_path), "CODEB_PORT": "9300", "CODEB_DOCKER_HOST": "tcp://127.0.0.1:1"})
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 9300)
    assert settings.docker.host == "tcp://127.0.0.1:1"
    assert settings.ports.of(Environment.PRODUCTION) == ((6000, 6099),)
    assert settings.ports.of(Environment.STAGING) == ((4500, 4999),)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("hots = 1", "hots"),
        ("[server]\nprot = 1", "server.prot"),
        ("[server]\nport = 0", "server.port"),
        ("[server]\nport = 70000", "server.port"),
        ('[server]\nport = "x"', "server.port"),
        ("[server]\nmax_body_bytes = 1", "server.max_body_bytes"),
        ("[docker]\nmin_free_mb = -1", "docker.min_free_mb"),
        ('[proxy]\ntls = "maybe"', "proxy.tls"),
        ("[proxy]\nadmni = 1", "proxy.admni"),
        ("[ports]\nproduction = [[4000]]", "ports.production.0.1"),
        ("[ports]\ntest = [[1, 2]]", "ports.test"),
        ('base_domain = "Not A Domain"', "base_domain"),
        ('log_level = "loud"', "log_level"),
        ("housekeeping_seconds = 0.01", "housekeeping_seconds"),
        ("server = 1", "server"),
    ],
)
def test_a_wrong_key_is_named_with_its_path(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        load(_write(tmp_path, text), {})
    assert field in [problem["field"] for problem in refusal.value.detail["fields"]]
    assert field in refusal.value.message
    assert str(tmp_path / "codeb.toml") in refusal.value.hint


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        load(_write(tmp_path, "a = 1\nb = 2\n[server]\nport = -1\n"), {})
    assert [problem["field"] for problem in refusal.value.detail["fields"]] == ["server.port", "a", "b"]


def test_a_wrong_variable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"server\.port"):
        load(tmp_path, {"CODEB_PORT": "nine"})


@pytest.mark.parametrize("content", [b"= 1", b"\xff\xfe", b"[server\n", b"a = 1\na = 2\n"])
def test_a_file_that_does_not_parse_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "codeb.toml").write_bytes(content)
    with pytest.raises(InvalidRequest) as refusal:
        load(tmp_path, {})
    assert str(tmp_path / "codeb.toml") in refusal.value.message


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "codeb.toml").mkdir()
    with pytest.raises(InvalidRequest, match=r"codeb\.toml cannot be read"):
        load(tmp_path, {})


def test_a_range_whose_end_is_before_its_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        load(_write(tmp_path, "[ports]\nproduction = [[4499, 4000]]"), {})
    assert "ports.production" in refusal.value.message


def test_a_section_that_is_a_value_is_refused_also_when_a_variable_goes_into_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="server"):
        load(_write(tmp_path, "server = 1"), {"CODEB_PORT": "9300"})
