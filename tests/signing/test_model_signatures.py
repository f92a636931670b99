"""Signatures that the OpenSSF's own tool has made are taken, and whatever differs from what was signed is not."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from appliance.core.errors import ConfigError
from appliance.signing.errors import SignatureError
from appliance.signing.model import sign_model, verify_model
from appliance.signing.trust import key_hint, private_key, read_trust

BUNDLES = Path(__file__).parent / "bundles"
NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
WEIGHTS = "variables/variables.data-00000-of-00001"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model that was signed."""
    return Path(shutil.copytree(BUNDLES / "model", tmp_path / "7"))


def signed(model: Path, name: str) -> Path:
    shutil.copy(BUNDLES / f"{name}.sig", model / "model.sig")
    return model


def verify(model: Path, *trusted: str, now: dt.datetime = NOW) -> str:
    return verify_model(str(model), read_trust([str(BUNDLES / name) for name in trusted]), now)


def refusal(model: Path, *trusted: str) -> str:
    with pytest.raises(SignatureError) as raised:
        verify(model, *trusted)
    return str(raised.value)


# -- what the tool signs


@pytest.mark.parametrize(
    ("name", "key"), [("p256", "p256"), ("p384", "p384"), ("p521", "p521"), ("shards", "p256"), ("blake2", "p256")]
)
def test_a_model_that_was_signed_with_a_key_is_verified(model: Path, name: str, key: str) -> None:
    assert verify(signed(model, name), f"{key}.pub") == f"the key {BUNDLES / key}.pub"


def test_a_model_that_was_signed_with_a_certificate_is_verified(model: Path) -> None:
    assert verify(signed(model, "certificate"), "root.pem") == "the certificate CN=certificate of somebody"


def test_one_of_several_keys_and_authorities_is_enough(model: Path) -> None:
    trusted = ("other.pub", "stranger.pem", "root.pem", "p384.pub", "p256.pub")
    assert verify(signed(model, "p256"), *trusted).endswith("p256.pub")
    assert verify(signed(model, "certificate"), *trusted).startswith("the certificate")


def test_the_repository_around_a_model_and_its_signature_are_not_signed(model: Path) -> None:
    signed(model, "p256")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("[core]")
    (model / ".gitattributes").write_text("*.pb binary")
    assert verify(model, "p256.pub")
    (model / "variables" / ".gitignore").write_text("x")
    assert "'variables/.gitignore' is not in the signature" in refusal(model, "p256.pub")


# -- whom nobody trusts


def test_a_model_without_a_signature_is_told_from_one_with_a_wrong_one(model: Path) -> None:
    with pytest.raises(SignatureError, match=r"it is not signed: there is no model\.sig; sign it by") as raised:
        verify(model, "p256.pub")
    assert raised.value.is_missing
    with pytest.raises(SignatureError) as raised:
        verify(signed(model, "p384"), "p256.pub")
    assert not raised.value.is_missing


def test_a_signature_of_another_key_is_refused(model: Path) -> None:
    text = refusal(signed(model, "p256"), "other.pub", "p384.pub", "root.pem")
    hint = key_hint(read_trust([str(BUNDLES / "p256.pub")]).keys[0][1])
    assert f"signed with the key with the SHA-256 {hint[:16]}…, which is not trusted" in text
    assert "add the public key to model_signing_keys" in text
    assert "model_signing_keys has certificates only" in refusal(model, "root.pem")


def test_a_certificate_of_another_authority_is_refused(model: Path) -> None:
    text = refusal(signed(model, "certificate"), "stranger.pem")
    assert "does not lead to an authority in model_signing_keys" in text
    assert "no authority is trusted" in refusal(model, "p256.pub")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("expired", "is valid from 2020-01-01 to 2021-01-01"),
        ("not_yet", "is valid from 2119-01-01 to 2120-01-01"),
        ("no_signer", "is not for signing (digitalSignature, codeSigning)"),
    ],
)
def test_a_certificate_that_must_not_sign_now_is_refused(model: Path, name: str, told: str) -> None:
    assert told in refusal(signed(model, name), "root.pem")


def test_a_certificate_is_valid_as_long_as_it_says(model: Path) -> None:
    assert verify(signed(model, "expired"), "root.pem", now=dt.datetime(2020, 6, 1, tzinfo=dt.UTC))


# -- what was changed


def replaced(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def extended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("name", ["p256", "shards", "certificate"])
@pytest.mark.parametrize("file", ["saved_model.pb", WEIGHTS, "assets/words.txt"])
@pytest.mark.parametrize("change", [replaced, extended, os.unlink])
def test_a_changed_or_removed_file_is_refused(
    model: Path, name: str, file: str, change: Callable[[Path], object]
) -> None:
    change(signed(model, name) / file)
    assert file in refusal(model, "p256.pub", "root.pem")


@pytest.mark.parametrize("name", ["p256", "shards", "certificate"])
@pytest.mark.parametrize("file", ["added", "variables/added", "model.onnx", "new/folder/file", ".hidden"])
def test_an_added_file_is_refused(model: Path, name: str, file: str) -> None:
    path = signed(model, name) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert f"'{file}' is not in the signature" in refusal(model, "p256.pub", "root.pem")


def test_what_the_signer_has_left_out_is_refused(model: Path) -> None:
    """The tool would take it: but the server would load it, whoever has written it."""
    text = refusal(signed(model, "left_out"), "p256.pub")
    assert "'assets/nothing.txt' is not in the signature: it was added, changed, or left out by the signer" in text
    shutil.rmtree(model / "assets")
    assert verify(model, "p256.pub")


def test_files_that_were_swapped_are_refused(model: Path) -> None:
    signed(model, "p256")
    (model / "saved_model.pb").rename(model / "x")
    (model / "variables" / "variables.index").rename(model / "saved_model.pb")
    (model / "x").rename(model / "variables" / "variables.index")
    assert "'saved_model.pb' is not the file that was signed" in refusal(model, "p256.pub")


def test_links_and_pipes_are_refused(model: Path, tmp_path: Path) -> None:
    signed(model, "p256")
    shutil.move(model / "saved_model.pb", tmp_path / "graph")
    (model / "saved_model.pb").symlink_to(tmp_path / "graph")
    assert "'saved_model.pb' is a link, which its signer has not allowed" in refusal(model, "p256.pub")
    (model / "saved_model.pb").unlink()
    os.mkfifo(model / "saved_model.pb")
    assert "'saved_model.pb' is no file" in refusal(model, "p256.pub")
    (model / "saved_model.pb").unlink()
    shutil.move(tmp_path / "graph", model / "saved_model.pb")
    shutil.move(model / "assets", tmp_path / "assets")
    (model / "assets").symlink_to(tmp_path / "assets")
    assert "'assets' is a link to a folder" in refusal(model, "p256.pub")


def altered(model: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """The model with its signature's bundle changed by hand."""
    document = json.loads((BUNDLES / f"{name}.sig").read_text())
    change(document)
    (model / "model.sig").write_text(json.dumps(document))
    return model


def payload(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def changed(document: dict[str, Any]) -> None:
        envelope = document["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return changed


def flip_signature(document: dict[str, Any]) -> None:
    signature = bytearray(base64.b64decode(document["dsseEnvelope"]["signatures"][0]["sig"]))
    signature[-1] ^= 1
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()


@pytest.mark.parametrize("name", ["p256", "certificate"])
@pytest.mark.parametrize(
    "change",
    [
        flip_signature,
        lambda document: document["dsseEnvelope"]["signatures"][0].update(sig=""),
        payload(lambda statement: statement["predicate"]["resources"].pop()),
        payload(lambda statement: statement["subject"][0].update(name="another")),
        payload(lambda _: None),  # the same in other bytes
    ],
)
def test_a_changed_signature_or_payload_is_refused(
    model: Path, name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    text = refusal(altered(model, name, change), "p256.pub", "root.pem")
    assert text.startswith("the signature is not that of ")


def test_the_signature_of_one_with_the_certificate_of_another_is_refused(model: Path) -> None:
    other = json.loads((BUNDLES / "p256.sig").read_text())["dsseEnvelope"]
    altered(model, "certificate", lambda document: document.update(dsseEnvelope=other))
    assert refusal(model, "root.pem").startswith("the signature is not that of its certificate")


def test_without_the_certificate_between_nothing_leads_to_the_authority(model: Path) -> None:
    altered(model, "certificate", lambda document: chain_of(document).pop())
    assert "does not lead to an authority" in refusal(model, "root.pem")
    altered(model, "certificate", lambda document: chain_of(document).__imul__(20))
    assert "has 40 certificates, more than 16" in refusal(model, "root.pem")
    altered(model, "certificate", lambda document: chain_of(document)[0].update(rawBytes="AAAA"))
    assert "its certificates cannot be read" in refusal(model, "root.pem")


def chain_of(document: dict[str, Any]) -> list[Any]:
    found: list[Any] = document["verificationMaterial"]["x509CertificateChain"]["certificates"]
    return found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no Sigstore bundle"),
        ("[" * 100_000, "is no Sigstore bundle"),
        ("{}", "missing required field `mediaType`"),
    ],
)
def test_what_is_no_bundle_is_refused(model: Path, text: str, told: str) -> None:
    (model / "model.sig").write_text(text)
    assert told in refusal(model, "p256.pub")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda document: document.update(mediaType="text/plain"), "is 'text/plain' with"),
        (lambda document: document["dsseEnvelope"].update(payloadType="text/plain"), "with 'text/plain'"),
        (lambda document: document["dsseEnvelope"].update(signatures=[]), "has 0 signatures instead of one"),
        (lambda document: document["dsseEnvelope"].update(payload="%"), "is no Sigstore bundle"),
        (lambda document: document.update(verificationMaterial={"certificate": {}}), "made without a key"),
    ],
)
def test_another_kind_of_bundle_is_refused(model: Path, change: Callable[[dict[str, Any]], None], told: str) -> None:
    assert told in refusal(altered(model, "p256", change), "p256.pub")


# -- what a trusted signer states


@pytest.fixture
def own_key(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a private key of ours, and of its public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "own.key", tmp_path / "own.pub"
    private.write_bytes(pem(key))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def pem(key: Any, password: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


@pytest.fixture
def stated(model: Path, own_key: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Signs what a change has made of the statement of the model, and returns why that is refused."""

    def state(change: Callable[[dict[str, Any]], None] | bytes) -> str:
        private, public = own_key
        sign_model(str(model), private_key(str(private)))
        document = json.loads((model / "model.sig").read_text())
        body = change
        if not isinstance(change, bytes):
            statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
            change(statement)
            resources = statement["predicate"].get("resources", [])
            total = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources))
            statement["subject"][0]["digest"]["sha256"] = total.hexdigest()
            body = json.dumps(statement).encode()
        assert isinstance(body, bytes)
        encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(body), body)
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

        key = serialization.load_pem_private_key(private.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        signature = key.sign(encoded, ec.ECDSA(hashes.SHA256()))
        document["dsseEnvelope"]["payload"] = base64.b64encode(body).decode()
        document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
        (model / "model.sig").write_text(json.dumps(document))
        with pytest.raises(SignatureError) as raised:
            verify_model(str(model), read_trust([str(public)]), NOW)
        return str(raised.value)

    return state


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "variables/../saved_model.pb", "./saved_model.pb"])
def test_a_name_that_leads_elsewhere_is_no_name_of_a_file(stated: Callable[[Any], str], model: Path, name: str) -> None:
    outside = model.parent / "outside"
    outside.write_bytes(b"there is a file there, with that hash")
    digest = hashlib.sha256(outside.read_bytes()).hexdigest()

    def add(statement: dict[str, Any]) -> None:
        statement["predicate"]["resources"].append({"name": name, "algorithm": "sha256", "digest": digest})

    assert f"{name!r} was signed, and is not there" in stated(add)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "' twice"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="md5"), "its hashes are 'md5'"),
        (lambda s: s["predicate"]["serialization"].update(method="tensors"), "by the method 'tensors'"),
        (lambda s: s["predicate"]["serialization"].update(method="shards", shard_size=0), "its shards have 0 bytes"),
        (lambda s: s["subject"].append(s["subject"][0]), "is about 2 subjects instead of one model"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "sign the model by Model Signing 1.0"),
        (lambda s: s["predicate"].pop("resources"), "missing required field `resources`"),
        (b"[]", "is no statement of Model Signing v1"),
        (b'{"_type": "a", "_type": "b"}', "a key is there twice"),
    ],
)
def test_a_statement_that_is_none_is_refused(stated: Callable[[Any], str], change: Any, told: str) -> None:
    assert told in stated(change)


def test_files_must_have_the_total_hash_of_the_subject(model: Path, own_key: tuple[Path, Path]) -> None:
    from appliance.signing.statement import make_statement, parse_statement  # noqa: PLC0415

    made = make_statement(str(model), "m", [("saved_model.pb", False)])
    assert set(parse_statement(made).hashes) == {"saved_model.pb"}
    with pytest.raises(SignatureError, match="do not have the total hash"):
        parse_statement(made.replace(b'"sha256": "', b'"sha256": "0', 1))


# -- signing


def test_what_we_sign_is_verified(model: Path, own_key: tuple[Path, Path]) -> None:
    private, public = own_key
    assert sign_model(str(model), private_key(str(private))) == str(model / "model.sig")
    assert verify_model(str(model), read_trust([str(public)]), NOW) == f"the key {public}"
    assert sign_model(str(model), private_key(str(private)))  # anew
    assert sorted(os.listdir(model)) == ["assets", "model.sig", "saved_model.pb", "variables"]
    with pytest.raises(SignatureError):
        verify(model, "p256.pub")


def test_what_cannot_be_signed_is_told(model: Path, own_key: tuple[Path, Path], tmp_path: Path) -> None:
    key = private_key(str(own_key[0]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SignatureError, match="it has no files"):
        sign_model(str(tmp_path / "empty"), key)
    (model / "link").symlink_to("saved_model.pb")
    with pytest.raises(SignatureError, match="'link' is a link: put the file itself there"):
        sign_model(str(model), key)
    with pytest.raises(SignatureError, match="none/ cannot be read or written: No such file or directory"):
        sign_model(str(tmp_path / "none"), key)


# -- files of keys


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pem(ec.generate_private_key(ec.SECP256R1())), "has a private key; only who signs may have that"),
        (b"", "has no key and no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "has no key and no certificate"),
        (
            ed25519.Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            "is none of an elliptic curve (P-256, P-384 or P-521)",
        ),
        (
            ec.generate_private_key(ec.SECP256K1())
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            "is none of an elliptic curve (P-256, P-384 or P-521)",
        ),
    ],
)
def test_a_file_that_nobody_can_be_trusted_by_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_trust([str(path)])
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pem(ec.generate_private_key(ec.SECP256R1()), b"password"), "has no private key that can be used"),
        (pem(rsa.generate_private_key(65537, 2048)), "is none of an elliptic curve"),
        (b"x", "has no private key that can be used"),
    ],
)
def test_a_key_that_cannot_sign_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        private_key(str(path))
    assert told in str(raised.value)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read|is no file"):
            private_key(str(missing))
