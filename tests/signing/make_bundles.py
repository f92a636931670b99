"""Makes tests/signing/bundles by the PyPI package `model-signing`, which is not among the packages of this project:

    python3.11 -m venv VENV && VENV/bin/pip install model-signing==1.1.1 pyOpenSSL
    VENV/bin/python tests/signing/make_bundles.py

There is one small model, and a signature of it in each way of signing. The private keys are thrown away, and so all
files are other ones after each run.
"""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from model_signing import hashing, signing

FOLDER = Path(__file__).parent / "bundles"
MODEL = FOLDER / "model"
CURVES = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
SHARD_BYTES = 100

Key = ec.EllipticCurvePrivateKey


def make_model() -> None:
    """As a SavedModel's folder; its files are no TensorFlow's."""
    (MODEL / "variables").mkdir(parents=True)
    (MODEL / "assets").mkdir()
    (MODEL / "saved_model.pb").write_bytes(b"a graph")
    (MODEL / "variables" / "variables.index").write_bytes(b"an index")
    (MODEL / "variables" / "variables.data-00000-of-00001").write_bytes(bytes(range(250)))
    (MODEL / "assets" / "words.txt").write_text("one\ntwo\n")
    (MODEL / "assets" / "nothing.txt").write_bytes(b"")


def write_private(key: Key, path: Path) -> Path:
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def write_public(key: Key, path: Path) -> None:
    path.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def certificate(
    name: str, key: Key, issuer: str, issuer_key: Key, years: tuple[int, int], *, is_ca: bool, signs: bool = True
) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    usage = {
        **dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        ),
        "encipher_only": False,
        "decipher_only": False,
        "digital_signature": signs and not is_ca,
        "key_cert_sign": is_ca,
    }
    if not signs:
        usage["key_agreement"] = True
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime(years[0], 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(years[1], 1, 1, tzinfo=dt.UTC))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_ca and signs:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def write_certificate(found: x509.Certificate, path: Path) -> Path:
    path.write_bytes(found.public_bytes(serialization.Encoding.PEM))
    return path


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_model()
    keys = {name: ec.generate_private_key(curve) for name, curve in CURVES.items()}
    other = ec.generate_private_key(ec.SECP256R1())
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for name, key in keys.items():
            write_public(key, FOLDER / f"{name}.pub")
            private = write_private(key, work / name)
            config = signing.Config().use_elliptic_key_signer(private_key=private)
            config.sign(MODEL, FOLDER / f"{name}.sig")
        write_public(other, FOLDER / "other.pub")

        def sign(name: str, hashed: hashing.Config) -> None:
            config = signing.Config().use_elliptic_key_signer(private_key=work / "p256").set_hashing_config(hashed)
            config.sign(MODEL, FOLDER / f"{name}.sig")

        sign("shards", hashing.Config().use_shard_serialization(shard_size=SHARD_BYTES))
        sign("blake2", hashing.Config().use_file_serialization(hashing_algorithm="blake2"))
        sign("left_out", hashing.Config().set_ignored_paths(paths=[MODEL / "assets"]))

        authority, between, signer = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
        root = certificate("a root", authority, "a root", authority, (2020, 2120), is_ca=True)
        middle = certificate("between", between, "a root", authority, (2020, 2120), is_ca=True)
        write_certificate(root, FOLDER / "root.pem")
        chain = [write_certificate(middle, work / "between.pem")]
        ends = {
            "certificate": ((2020, 2120), True),
            "expired": ((2020, 2021), True),
            "not_yet": ((2119, 2120), True),
            "no_signer": ((2020, 2120), False),
        }
        for name, (years, signs) in ends.items():
            end = certificate(f"{name} of somebody", signer, "between", between, years, is_ca=False, signs=signs)
            config = signing.Config().use_certificate_signer(
                private_key=write_private(signer, work / "signer"),
                signing_certificate=write_certificate(end, work / f"{name}.pem"),
                certificate_chain=chain,
            )
            config.sign(MODEL, FOLDER / f"{name}.sig")
        stranger = ec.generate_private_key(ec.SECP256R1())
        write_certificate(
            certificate("a root", stranger, "a root", stranger, (2020, 2120), is_ca=True), FOLDER / "stranger.pem"
        )


if __name__ == "__main__":
    main()
