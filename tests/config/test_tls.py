"""TLS and mutual TLS by --ssl_config_file, with real certificates and a real server."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from appliance.config.tls import load_ssl_config
from appliance.core.errors import ConfigError
from appliance.protocols import protos
from tests.support.grpc_calls import code_of, half_plus_two, reload
from tests.support.server import ROOT, Server

AUTHORITY = trustme.CA()
STRANGER = trustme.CA()
SERVER = AUTHORITY.issue_cert("127.0.0.1", "localhost")
CLIENT = AUTHORITY.issue_cert("client@example.org")


def pem(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


def key_of(certificate: trustme.LeafCert) -> str:
    return certificate.private_key_pem.bytes().decode()


def chain_of(certificate: trustme.LeafCert) -> str:
    return "".join(blob.bytes().decode() for blob in certificate.cert_chain_pems)


def config(**changes: Any) -> str:
    """An SSLConfig in text format; a field that is None is left out."""
    fields = {"server_key": key_of(SERVER), "server_cert": chain_of(SERVER), **changes}
    return str(protos.SSLConfig(**{name: value for name, value in fields.items() if value is not None}))


def channel(
    server: Server, authority: trustme.CA = AUTHORITY, client: trustme.LeafCert | None = None, secure: bool = True
) -> grpc.Channel:
    target = f"127.0.0.1:{server.grpc_port}"
    if not secure:
        return grpc.insecure_channel(target)
    pair = (key_of(client).encode(), chain_of(client).encode()) if client is not None else (None, None)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(pem(authority).encode(), *pair))


def serving(folder: Path, drop: Callable[..., Path], text: str) -> Server:
    drop("half_plus_two")
    path = folder / "ssl.txt"
    path.write_text(text)
    return Server(
        model_root=folder / "models", ssl_config_file=path, grpc_socket_path=folder / "grpc.sock", grpc_workers=1
    )


@pytest.fixture
def encrypted(tmp_path: Path, drop: Callable[..., Path]) -> Iterator[Server]:
    with serving(tmp_path, drop, config()) as server:
        server.wait_for("half_plus_two", 1)
        yield server


@pytest.fixture
def mutual(tmp_path: Path, drop: Callable[..., Path]) -> Iterator[Server]:
    with serving(tmp_path, drop, config(custom_ca=pem(AUTHORITY), client_verify=True)) as server:
        server.wait_for("half_plus_two", 1)
        yield server


def test_tls_serves_clients_that_trust_the_authority_and_no_others(encrypted: Server, tmp_path: Path) -> None:
    with channel(encrypted) as trusting:
        assert half_plus_two(trusting) == [2.5, 3.0, 4.5]
        code, details = code_of(lambda: reload(trusting))
        assert code == "PERMISSION_DENIED"  # TLS alone does not say who calls
        assert "client certificate" in details
    for refused in (channel(encrypted, STRANGER), channel(encrypted, secure=False)):
        with refused:
            assert code_of(lambda refused=refused: half_plus_two(refused))[0] == "UNAVAILABLE"
    with grpc.insecure_channel(f"unix:{tmp_path}/grpc.sock") as local:  # file modes guard it
        assert half_plus_two(local) == [2.5, 3.0, 4.5]


def test_connections_that_are_not_tls_leave_no_line_in_the_log(encrypted: Server) -> None:
    before = encrypted.log()
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(300), b"\x16\x03\x01\x02\x00\x01", b""):
        with socket.create_connection(("127.0.0.1", encrypted.grpc_port), timeout=30) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
    assert encrypted.log() == before


def test_mutual_tls_serves_only_clients_with_a_certificate_and_lets_them_reload(mutual: Server) -> None:
    with channel(mutual, client=CLIENT) as known:
        assert half_plus_two(known) == [2.5, 3.0, 4.5]
        code, details = code_of(lambda: reload(known))
        assert code == "INVALID_ARGUMENT"  # past the door: what it asks for is wrong
        assert details.startswith("ServerModelConfig type not supported by HandleReloadConfigRequest.")
    for client in (None, STRANGER.issue_cert("client@example.org")):
        with channel(mutual, client=client) as unknown:
            assert code_of(lambda unknown=unknown: half_plus_two(unknown))[0] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server_key: {", "Error parsing text-format tensorflow.serving.SSLConfig in line 1"),
        (
            'server_key: "a"\nserver_certificate: "b"',
            "Error parsing text-format tensorflow.serving.SSLConfig in line 2",
        ),
        (config(server_key=None), "has no server_key"),
        (config(server_cert=None), "has no server_cert"),
        (config(server_key="/etc/server.key"), "put the contents of that file there"),
        (config(server_cert="server.crt"), 'must contain "-----BEGIN'),
        (config(server_key=key_of(CLIENT)), "key values mismatch"),
        (config(server_key=key_of(SERVER)[:120]), "server_key and server_cert cannot be used together"),
        (config(server_cert=chain_of(SERVER)[:120]), "server_key and server_cert cannot be used together"),
        (config(custom_ca="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "custom_ca holds no"),
        (config(client_verify=True), "client_verify is set, but custom_ca is not"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_telling_the_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "ssl.txt"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_ssl_config(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    secret = key_of(SERVER).splitlines()[1]
    assert secret not in str(caught.value)


def test_a_key_with_a_password_is_refused_rather_than_asked_for(tmp_path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = serialization.load_pem_private_key(key_of(SERVER).encode(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    path = tmp_path / "ssl.txt"
    path.write_text(config(server_key=encrypted.decode()))
    with pytest.raises(ConfigError, match="without a password"):
        load_ssl_config(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the ssl_config_file .*/none\.txt: No such file"):
        load_ssl_config(str(tmp_path / "none.txt"))


def test_a_loaded_config_does_not_show_its_key(tmp_path: Path) -> None:
    path = tmp_path / "ssl.txt"
    path.write_text(config(custom_ca=pem(AUTHORITY), client_verify=True))
    loaded = load_ssl_config(str(path))
    assert loaded.key == key_of(SERVER).encode()
    assert loaded.client_verify
    assert "PRIVATE" not in repr(loaded)


def test_a_bad_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "ssl.txt"
    path.write_text(config(server_key=key_of(CLIENT)))
    arguments = [f"--model_root={tmp_path}", f"--ssl_config_file={path}", "--port=0", "--rest_api_port=0"]
    ended = subprocess.run(
        [sys.executable, "-m", "appliance", "serve", *arguments, f"--runtime_dir={tmp_path}/run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "key values mismatch" in ended.stderr
