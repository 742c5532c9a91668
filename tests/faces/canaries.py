"""Fifty kinds of secrets, as they look in the wild. The values are made up."""

from __future__ import annotations

import base64
import hashlib
import string

_LETTERS = string.ascii_letters + string.digits


def _noise(kind: str, length: int, alphabet: str = _LETTERS) -> str:
    digest = b"".join(hashlib.sha256(f"{kind} {number}".encode()).digest() for number in range(1 + length // 32))
    return "".join(alphabet[byte % len(alphabet)] for byte in digest[:length])


def _hex(kind: str, length: int) -> str:
    return _noise(kind, length, "0123456789abcdef")


def _upper(kind: str, length: int) -> str:
    return _noise(kind, length, string.ascii_uppercase + string.digits)


def _token() -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    return f"{head}.{_noise('jwt body', 40)}.{_noise('jwt signature', 43)}"


SHAPED: dict[str, str] = {
    "codeb owner key": f"codeb_acme_owner_{_noise('codeb', 36)}",
    "codeb short key": f"codeb_default_member_{_noise('codeb short', 24)}",
    "github personal": f"ghp_{_noise('ghp', 36)}",
    "github oauth": f"gho_{_noise('gho', 36)}",
    "github user": f"ghu_{_noise('ghu', 36)}",
    "github server": f"ghs_{_noise('ghs', 36)}",
    "github refresh": f"ghr_{_noise('ghr', 36)}",
    "github fine-grained": f"github_pat_{_noise('pat', 22)}_{_noise('pat two', 59)}",
    "gitlab personal": f"glpat-{_noise('glpat', 20)}",
    "aws access key": f"AKIA{_upper('akia', 16)}",
    "aws temporary key": f"ASIA{_upper('asia', 16)}",
    "slack bot": f"xoxb-{_noise('xoxb', 12, string.digits)}-{_noise('xoxb two', 24)}",
    "slack user": f"xoxp-{_noise('xoxp', 12, string.digits)}-{_noise('xoxp two', 32)}",
    "slack app": f"xapp-1-{_noise('xapp', 40)}",
    "openai": f"sk-{_noise('openai', 48)}",
    "openai project": f"sk-proj-{_noise('openai project', 64)}",
    "anthropic": f"sk-ant-api03-{_noise('anthropic', 90)}AA",
    "stripe secret": f"sk_live_{_noise('stripe', 24)}",
    "stripe restricted": f"rk_live_{_noise('stripe rk', 24)}",
    "stripe webhook": f"whsec_{_noise('whsec', 32)}",
    "google api": f"AIza{_noise('aiza', 35)}",
    "google oauth": f"ya29.{_noise('ya29', 60)}",
    "npm": f"npm_{_noise('npm', 36)}",
    "pypi": f"pypi-AgEIcHlwaS5vcmc{_noise('pypi', 60)}",
    "digitalocean": f"dop_v1_{_hex('dop', 64)}",
    "vault": f"hvs.{_noise('hvs', 28)}",
    "sendgrid": f"SG.{_noise('sg', 22)}.{_noise('sg two', 43)}",
    "age": f"AGE-SECRET-KEY-1{_upper('age', 58)}",
    "json web token": _token(),
    "rsa private key": f"-----BEGIN RSA PRIVATE KEY-----\n{_noise('rsa', 64)}\n-----END RSA PRIVATE KEY-----",
    "openssh private key": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{_noise('ssh', 64)}\n-----END OPENSSH PRIVATE KEY-----",
    "ec private key": f"-----BEGIN EC PRIVATE KEY-----\n{_noise('ec', 64)}\n-----END EC PRIVATE KEY-----",
    "postgres url": f"postgresql://app:{_noise('pg', 20)}@db.internal:5432/app",
    "redis url": f"redis://:{_noise('redis', 20)}@cache:6379/0",
    "mysql url": f"mysql://root:{_noise('mysql', 20)}@db/app",
    "amqp url": f"amqps://user:{_noise('amqp', 20)}@queue/vhost",
    "mongodb url": f"mongodb+srv://app:{_noise('mongo', 20)}@cluster/app",
    "https url": f"https://deploy:{_noise('https', 20)}@git.internal/app.git",
}
"""Unmistakable by their shape."""

NAMED: dict[str, str] = {
    "password assigned": f"password={_noise('password', 16)}",
    "password in yaml": f"db_password: {_noise('yaml', 16)}",
    "password in json": f'{{"password":"{_noise("json", 16)}"}}',
    "environment password": f"POSTGRES_PASSWORD={_noise('postgres', 16)}",
    "secret assigned": f"client_secret='{_noise('client', 24)}'",
    "api key assigned": f"API_KEY={_noise('api', 24)}",
    "api-key header": f"x-api-key: {_noise('header', 24)}",
    "access key": f"aws_secret_access_key = {_noise('aws', 40)}",
    "token assigned": f"TOKEN={_noise('token', 24)}",
    "session secret": f"SESSION_SECRET={_noise('session', 24)}",
    "passphrase": f"passphrase={_noise('passphrase', 16)}",
    "credentials": f"credentials={_noise('credentials', 16)}",
    "private key assigned": f"private_key={_noise('private', 24)}",
    "bearer": f"Authorization: Bearer {_noise('bearer', 32)}",
    "basic": f"Authorization: Basic {base64.b64encode(_noise('basic', 20).encode()).decode()}",
}
"""Secret because of the words beside them."""

SECRETS = {**SHAPED, **NAMED}


def cores(text: str) -> list[str]:
    """The parts of a secret that must not be seen anywhere: its long runs of random characters."""
    for sign in "=:'\"@/.{}_- \n":
        text = text.replace(sign, " ")
    words = ("PRIVATE", "AUTHORIZATION", "OPENSSH", "POSTGRES", "PASSWORD", "CREDENTIALS", "PASSPHRASE", "INTERNAL")
    return [word for word in text.split() if len(word) >= 12 and word.upper() not in words]
