"""Logins out of a file as `docker login` writes it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.drivers.docker_credentials import credentials_from
from codeb_mcp.model.errors import RegistryDamaged


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def written(folder: Path, config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://registry.example.com/v2/", "registry.example.com"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_a_login_is_found_under_the_keys_that_docker_uses(tmp_path: Path, key: str, host: str) -> None:
    find = credentials_from(written(tmp_path, {"auths": {key: auth("anna", "right:horse")}}))
    assert find(host) == ("anna", "right:horse")
    assert find("other.example.com") is None


def test_user_and_password_may_stand_in_the_clear(tmp_path: Path) -> None:
    config = {"auths": {"ghcr.io": {"username": "anna", "password": "right-horse"}}}
    assert credentials_from(written(tmp_path, config))("ghcr.io") == ("anna", "right-horse")


def test_a_login_that_a_helper_keeps_is_said_and_not_taken_for_none(tmp_path: Path) -> None:
    config = {"auths": {"ghcr.io": {}}, "credsStore": "desktop"}
    with pytest.raises(RegistryDamaged) as caught:
        credentials_from(written(tmp_path, config))("ghcr.io")
    assert "credential helper" in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"auths": 3}', '{"auths": {"ghcr.io": {"auth": "%%%"}}}', '{"auths": {"ghcr.io": 1}}']
)
def test_a_file_that_cannot_be_read_is_not_taken_for_no_login(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(RegistryDamaged):
        credentials_from(path)("ghcr.io")


def test_without_a_file_nobody_has_a_login() -> None:
    assert credentials_from(None)("ghcr.io") is None


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryDamaged):
        credentials_from(tmp_path / "none.json")("ghcr.io")
