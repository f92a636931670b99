"""`dropserve sign` and `dropserve verify`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.cli.main import main

BUNDLES = Path(__file__).parents[1] / "signing" / "bundles"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLES / "model", tmp_path / "7"))


def test_what_was_signed_is_verified_until_it_is_changed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert main(["sign", str(model), "--key", str(private)]) == 0
    assert capsys.readouterr().out == f"{model}/model.sig: signed\n"
    assert main(["verify", str(model), "--key", str(BUNDLES / "other.pub"), "--key", str(public)]) == 0
    assert capsys.readouterr().out == f"{model}: signed by the key {public}\n"
    (model / "saved_model.pb").write_bytes(b"other")
    assert main(["verify", str(model), "--key", str(public)]) == 1
    assert (
        f"{model} is not what was signed: 'saved_model.pb' is not the file that was signed" in capsys.readouterr().err
    )


def test_what_the_openssfs_tool_has_signed_is_verified(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(BUNDLES / "certificate.sig", model / "model.sig")
    assert main(["verify", str(model), "--key", str(BUNDLES / "root.pem")]) == 0
    assert "signed by the certificate CN=" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sign", "verify"])
def test_a_wrong_folder_or_key_is_told_in_one_line(
    model: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, key, told in [
        (f"{model}-none", "x", f"{model}-none is not a folder; give a version folder"),
        (str(model), f"{model}/none", f"{model}/none cannot be read: No such file or directory; give a file in PEM"),
        (str(model), f"{model}/saved_model.pb", "saved_model.pb has no "),
    ]:
        assert main([command, path, "--key", key]) == 2
        err = capsys.readouterr().err
        assert told in err
        assert err.count("\n") == 1
