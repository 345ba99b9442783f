"""The page for other hosts, as docs/dashboard.md sets it up: TLS with a certificate of our own, and a token."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from stream_agent.config import load_config
from stream_agent.errors import ConfigError
from stream_agent.sinks.dashboard.process import require_usable
from tests.sinks.dashboard.agents import SMALL, TOKEN, DashboardAgent

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


def make_certificate(folder: Path, *more: str) -> tuple[Path, Path]:
    """A self-signed certificate for this host, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate), *(more or ("-nodes",))),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return certificate, key


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sa") as root:
        yield Path(root)


@pytest.fixture(scope="module")
def trusting(folder: Path) -> ssl.SSLContext:
    """A client that trusts this certificate alone, and checks the name in it."""
    certificate, _ = make_certificate(folder)
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(scope="module")
def page(folder: Path, trusting: ssl.SSLContext) -> Iterator[str]:
    """`https://localhost:PORT` of an agent that listens for other hosts."""
    settings = {
        "host": "0.0.0.0",
        "token_env": "DASHBOARD_TOKEN",
        "certificate": folder / "cert.pem",
        "certificate_key": folder / "key.pem",
    }
    agent = DashboardAgent(folder, *SMALL, *(f"sinks.dashboard.{key}={value}" for key, value in settings.items()))
    assert agent.url == f"https://0.0.0.0:{agent.port}"
    yield f"https://localhost:{agent.port}"
    assert agent.stop() == 0


def test_the_page_is_encrypted_and_asks_for_the_token(page: str, trusting: ssl.SSLContext) -> None:
    assert httpx.get(page, verify=trusting).status_code == 401
    assert httpx.get(page, params={"token": "x" * 30}, verify=trusting).status_code == 401
    right = httpx.get(page, params={"token": TOKEN}, verify=trusting)
    assert right.status_code == 303
    assert "; Secure" in right.headers["set-cookie"]
    cookie = right.headers["set-cookie"].partition(";")[0]
    assert "<html" in httpx.get(page, headers={"Cookie": cookie}, verify=trusting).text
    with connect(
        page.replace("https", "wss") + "/live",
        ssl=trusting,
        origin=Origin(page),
        additional_headers={"Cookie": cookie},
        max_size=None,
    ) as live:
        assert json.loads(live.recv(10))["sections"]


def test_without_the_token_the_live_line_is_refused(page: str, trusting: ssl.SSLContext) -> None:
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(page.replace("https", "wss") + "/live", ssl=trusting, origin=Origin(page)),
    ):
        pass


def test_plain_http_and_a_client_that_trusts_others_get_nothing(page: str, trusting: ssl.SSLContext) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(page.replace("https", "http"))
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(page, verify=ssl.create_default_context())


def test_files_that_are_no_certificate_with_its_key_are_one_message(folder: Path, trusting: ssl.SSLContext) -> None:
    """They were found out by the server, in a trace of its own, after everything had started."""
    (other := folder / "other").mkdir()
    _, foreign_key = make_certificate(other)
    (locked := folder / "locked").mkdir()
    _, locked_key = make_certificate(locked, "-passout", "pass:secret")
    (garbage := folder / "garbage.pem").write_text("no PEM")
    certificate = folder / "cert.pem"
    pairs = ((certificate, foreign_key), (locked / "cert.pem", locked_key), (garbage, garbage), (certificate, garbage))
    for pair in pairs:
        config = load_config(
            None, [f"sinks.dashboard.certificate={pair[0]}", f"sinks.dashboard.certificate_key={pair[1]}"]
        )
        with pytest.raises(ConfigError, match="name PEM files of one certificate and of its own key"):
            require_usable(config.sinks.dashboard)
