"""HTTPS from a certificate and its key."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from router_kit import Client, MakeRouter, chat

from enginerouter.errors import ConfigError

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


def certificate(folder: Path) -> tuple[str, str]:
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*made, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@needs_openssl
async def test_requests_are_served_over_https(make_router: MakeRouter, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    router = await make_router(tls_cert_file=Path(cert), tls_key_file=Path(key))
    trusting = ssl.create_default_context(cafile=cert)
    client = Client(*await asyncio.open_connection("127.0.0.1", router.port, ssl=trusting, server_hostname="localhost"))
    await client.send("POST", "/v1/chat/completions", chat())
    answer = await client.answer()
    await client.close()
    assert answer.status == 200


async def test_a_certificate_that_cannot_be_read_is_a_configuration_error(
    make_router: MakeRouter, tmp_path: Path
) -> None:
    router = await make_router(
        starts=False, tls_cert_file=tmp_path / "no-such.pem", tls_key_file=tmp_path / "no-such.key"
    )
    with pytest.raises(ConfigError, match=r"tls_cert_file: .*no-such.pem"):
        await router.router.start()
