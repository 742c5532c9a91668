"""Pebble: a real ACME authority for tests, with a root of its own made at each start."""

from __future__ import annotations

import datetime
import json
import shutil
import ssl
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.lab.daemons import end, launch, program, read_pid, wait_until
from tests.lab.ports import FreePorts

PART = PACKAGE = "pebble"


class Pebble:
    """An authority that asks `http_port` of what `resolver` (`127.0.0.1:port`) says. `directory` is its ACME address, believed by
    those who have `root`; `issuing_root` is what its certificates end in."""

    def __init__(self, folder: Path, ports: FreePorts, *, http_port: int, tls_port: int, resolver: str) -> None:
        self.folder = folder
        self._port, self._manage = ports(), ports()
        self._http_port, self._tls_port = http_port, tls_port
        self._resolver = resolver
        self._pidfile = folder / "pid"
        self.root = folder / "directory.pem"
        self.issuing_root = folder / "issuing.pem"
        self.directory = f"https://127.0.0.1:{self._port}/dir"

    def start(self) -> None:
        """Have it answering; `issuing_root` is there afterwards."""
        self._make_certificate()
        config = {
            "listenAddress": f"127.0.0.1:{self._port}",
            "managementListenAddress": f"127.0.0.1:{self._manage}",
            "certificate": str(self.root),
            "privateKey": str(self.folder / "directory.key"),
            "httpPort": self._http_port,
            "tlsPort": self._tls_port,
        }
        (self.folder / "config.json").write_text(json.dumps({"pebble": config}), encoding="utf-8")
        argv = [program("pebble", part=PART, package=PACKAGE), "-config", str(self.folder / "config.json")]
        quick = ["env", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", *argv, "-dnsserver", self._resolver]
        launch(quick, pidfile=self._pidfile, log=self.folder / "log")
        wait_until(self._fetch_root, 15, "pebble did not answer", log=self.folder / "log")

    def stop(self) -> None:
        """End it."""
        if (pid := read_pid(self._pidfile, "pebble")) is not None:
            end(pid, grace_seconds=5)

    def orders(self) -> int:
        """How often anybody asked it for a certificate."""
        log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        return log.count("POST /order-plz")

    def _fetch_root(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.root))
        with suppress(OSError):
            url = f"https://127.0.0.1:{self._manage}/roots/0"
            with urllib.request.urlopen(url, context=context, timeout=5) as answer:
                self.issuing_root.write_bytes(answer.read())
            return True
        return False

    def _make_certificate(self) -> None:
        import ipaddress

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab directory")])
        now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .add_extension(usage, True)
            .sign(key, hashes.SHA256())
        )
        self.root.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / "directory.key").write_bytes(secret)


@contextmanager
def running_pebble(ports: FreePorts, *, http_port: int, tls_port: int, resolver: str) -> Iterator[Pebble]:
    """A started Pebble; ended, and its folder removed, afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="codeb-pebble-"))
    server = Pebble(folder, ports, http_port=http_port, tls_port=tls_port, resolver=resolver)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
