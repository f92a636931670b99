"""TLS of the gRPC port: reads the file that --ssl_config_file names, and proves it usable before anything is served.

Format: text proto `tensorflow.serving.SSLConfig` (`tensorflow_serving/config/ssl_config.proto`), whose fields hold PEM
text, not names of files.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from dataclasses import dataclass, field

from appliance.config.files import read_config_file
from appliance.config.text_protos import parse_text
from appliance.core.errors import ConfigError
from appliance.protocols import protos

__all__ = ["SslConfig", "load_ssl_config"]

_MAX_FILE_BYTES = 4 << 20
_BEGIN = "-----BEGIN "


@dataclass(frozen=True, slots=True)
class SslConfig:
    """A server's key and certificate chain, and the authorities that it trusts (b"": none), all as PEM.

    With `client_verify`, a client must show a certificate of a trusted authority.
    """

    key: bytes = field(repr=False)
    certificate: bytes
    client_ca: bytes
    client_verify: bool


def load_ssl_config(path: str) -> SslConfig:
    """Return the SSLConfig in the file at `path`.

    Raise ConfigError if it cannot be read or parsed, if key and certificate are not PEM or do not match, or if clients
    are to be verified but no authority is named. No message quotes the file, because it holds the private key.
    """
    message = _read(path)
    where = f"the ssl_config_file {path}"
    for name in ("server_key", "server_cert", "custom_ca"):
        text = getattr(message, name)
        if not text and name != "custom_ca":
            raise ConfigError(f"{where} has no {name}", f'write {name}: "…" with the PEM text, its line ends as \\n')
        if text and _BEGIN not in text:
            remedy = (
                "it is read as the PEM text itself; put the contents of that file there"
                if text.startswith(("/", "."))
                else f'it must contain "{_BEGIN}…", with its line ends as \\n'
            )
            raise ConfigError(f"{where}: {name} is not PEM text", remedy)
    key, certificate, client_ca = (
        getattr(message, name).encode() for name in ("server_key", "server_cert", "custom_ca")
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _prove_pair(context, key, certificate, where)
    if client_ca:
        try:
            context.load_verify_locations(cadata=message.custom_ca)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{where}: custom_ca holds no certificates: {_reason(error)}") from None
    elif message.client_verify:
        raise ConfigError(
            f"{where}: client_verify is set, but custom_ca is not",
            "give the certificates of the authorities that sign clients' certificates in custom_ca",
        )
    return SslConfig(key, certificate, client_ca, message.client_verify)


def _read(path: str) -> protos.SSLConfig:
    return parse_text(
        read_config_file(path, "the ssl_config_file", _MAX_FILE_BYTES),
        protos.SSLConfig(),
        path,
        'its fields are server_key: "…", server_cert: "…", custom_ca: "…" and client_verify: true',
        is_secret=True,
    )


def _prove_pair(context: ssl.SSLContext, key: bytes, certificate: bytes, where: str) -> None:
    """Raise ConfigError unless `key` belongs to the first certificate in `certificate`.

    The ssl module reads both only from files. These have no name, and lie in memory if the machine allows it.
    """
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - unlinked at once
    with tempfile.TemporaryFile(dir=folder) as key_file, tempfile.TemporaryFile(dir=folder) as certificate_file:
        for file, data in ((key_file, key), (certificate_file, certificate)):
            file.write(data)
            file.flush()
        certificate_path, key_path = (f"/proc/self/fd/{file.fileno()}" for file in (certificate_file, key_file))
        try:
            # Refuse a key with a password; without this, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(certificate_path, key_path, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{where}: server_key and server_cert cannot be used together: {_reason(error)}",
                "give a PEM private key without a password, and the certificate that was issued for it, then its chain",
            ) from None


def _reason(error: Exception) -> str:
    return (getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)).replace("_", " ").lower()
