"""Versions are loaded only as they were signed, if that is asked for; the status, the log and a metric say why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.signing.model import sign_model
from appliance.signing.trust import private_key
from tests.support.server import ROOT, Server, eventually

ANSWER = (200, {"predictions": [2.5]})


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The file of a private key, whose public key lies beside it as `key.pub`."""
    made = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "key"
    path.write_bytes(
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.with_suffix(".pub").write_bytes(
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return path


@pytest.fixture
def dropped(zoo: Path, tmp_path: Path, key: Path) -> Callable[..., Path]:
    """Drops a version of the model "a", signed unless it is asked not to be."""

    def drop(version: int, source: str = "half_plus_two", *, signed: bool = True) -> Path:
        base = tmp_path / "models" / "a"
        base.mkdir(parents=True, exist_ok=True)
        hidden = base / f".{version}"
        shutil.copytree(zoo / source, hidden)
        if signed:
            sign_model(str(hidden), private_key(str(key)))
        return hidden.rename(base / str(version))

    return drop


@pytest.fixture
def served(tmp_path: Path, key: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(model_signing: str = "require", **options: Any) -> Server:
        config = tmp_path / "dropserve.toml"
        config.write_text(f"model_signing_keys = {json.dumps([f'{key}.pub'])}\n")
        values = {"model_root": tmp_path / "models", "model_signing": model_signing, **options}
        servers.append(Server(f"--config={config}", **values))
        return servers[-1].__enter__()

    yield start
    for server in servers:
        server.__exit__()


def count(server: Server, outcome: str) -> int:
    line = f'dropserve_signatures_total{{model="a",outcome="{outcome}"}} '
    found = [text for text in server.get("/metrics")[1].decode().splitlines() if text.startswith(line)]
    return int(float(found[0].removeprefix(line))) if found else 0


def test_what_is_not_signed_does_not_replace_what_is(
    dropped: Callable[..., Path], served: Callable[..., Server]
) -> None:
    dropped(1)
    server = served()
    server.wait_for("a", 1)
    assert "a/1: signed by the key " in server.log()
    assert server.predict("a", {"instances": [1.0]}) == ANSWER
    second = dropped(2, signed=False)
    reason = server.wait_for("a", 2, "failed")
    assert reason.startswith("its signature: it is not signed: there is no model.sig; sign it by dropserve sign")
    dropped(3)
    path = dropped(4, signed=False)
    shutil.copy(second.parent / "3" / "model.sig", path)
    (path / "more").write_bytes(b"x")
    assert "its signature: 'more' is not in the signature" in server.wait_for("a", 4, "failed")
    server.wait_for("a", 3)
    assert server.predict("a", {"instances": [1.0]}) == ANSWER
    assert (count(server, "valid"), count(server, "missing"), count(server, "invalid")) == (2, 1, 1)


def test_a_version_is_loaded_once_its_signature_has_come(
    dropped: Callable[..., Path], served: Callable[..., Server], key: Path
) -> None:
    path = dropped(1, signed=False)
    server = served()
    server.wait_for("a", 1, "failed")
    command = [sys.executable, "-m", "appliance", "sign", str(path), "--key", str(key)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True)
    server.wait_for("a", 1)
    assert server.predict("a", {"instances": [1.0]}) == ANSWER


def test_what_is_to_be_warned_of_is_served_with_a_remark(
    dropped: Callable[..., Path], served: Callable[..., Server]
) -> None:
    dropped(1, signed=False)
    server = served("warn")
    server.wait_for("a", 1)
    assert server.predict("a", {"instances": [1.0]}) == ANSWER
    (version,) = server.get("/v1/models")[1]["models"][0]["versions"]
    assert [text for text in version["remarks"] if text.startswith("its signature: it is not signed")]
    assert "it is loaded all the same (model_signing is warn)" in server.log()
    assert count(server, "missing") == 1


def test_a_worker_that_is_started_again_loads_only_what_was_signed(
    dropped: Callable[..., Path], served: Callable[..., Server]
) -> None:
    path = dropped(1)
    server = served()
    server.wait_for("a", 1)
    (path / "variables" / "more").write_bytes(b"x")
    (worker,) = server.pids("ds-worker")
    os.kill(worker, 9)
    reason = eventually(lambda: "its signature" in (text := server.versions("a")[1][1]) and text, "it is refused")
    assert "'variables/more' is not in the signature" in reason
    assert server.predict("a", {"instances": [1.0]})[0] == 503


def test_nothing_is_converted_of_a_version_that_waits_for_its_form_and_is_not_signed(
    dropped: Callable[..., Path], served: Callable[..., Server], tmp_path: Path
) -> None:
    dropped(1, "tiny_tf2", signed=False)
    server = served(acceleration="onnx", wait_for_acceleration=True, cache_dir=tmp_path / "cache")
    server.wait_for("a", 1, "failed")
    assert not (tmp_path / "cache" / "jobs").exists()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("[]", "model_signing is require, and model_signing_keys is empty; list the files"),
        ('["/none.pub"]', "model_signing_keys: /none.pub cannot be read: No such file or directory"),
    ],
)
def test_a_server_that_could_verify_nothing_does_not_start(tmp_path: Path, keys: str, told: str) -> None:
    config = tmp_path / "dropserve.toml"
    config.write_text(f'model_root = "{tmp_path}"\nmodel_signing = "require"\nmodel_signing_keys = {keys}\n')
    command = [sys.executable, "-m", "appliance", "serve", "--config", str(config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, told in ended.stderr) == (2, True), ended.stderr
