"""A yum repository of a folder with RPMs, signed with a key of the caller's."""

from __future__ import annotations

import shutil
from pathlib import Path

from rpmkit.report import BuildError, run, step

RSA = "1"  # OpenPGP's number of the algorithm (RFC 4880, 9.1); rpm 4.11 knows no EdDSA


def make_repository(folder: Path, key: str) -> None:
    """Writes the metadata, which yum of EL7 reads. With `key`, signs each package and the metadata, and puts the public
    key beside them as RPM-GPG-KEY-dropserve."""
    packages = sorted(folder.glob("*.rpm"))
    if not packages:
        raise BuildError(f"{folder} holds no RPM", "run make rpm first")
    if key:
        _check_key(key)
        with step(f"Signing {len(packages)} packages"):
            program = shutil.which("gpg") or "gpg"  # Debian's rpm looks for one that Debian does not have
            macros = {"_gpg_name": key, "_gpg_digest_algo": "sha256", "__gpg": program}
            defines = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
            run(["rpmsign", *defines, "--addsign", *packages])
    with step(f"Indexing {len(packages)} packages"):
        run(["createrepo_c", "--general-compress-type=gz", "--simple-md-filenames", folder])
    if key:
        index = folder / "repodata/repomd.xml"
        run(["gpg", "--batch", "--yes", "--local-user", key, "--detach-sign", "--armor", index])
        (folder / "RPM-GPG-KEY-dropserve").write_text(run(["gpg", "--batch", "--armor", "--export", key]))


def _check_key(key: str) -> None:
    """Raises BuildError unless the secret key is there, and RSA."""
    try:
        listed = run(["gpg", "--batch", "--with-colons", "--list-secret-keys", key])
    except BuildError as error:
        raise BuildError(f"there is no secret GPG key {key!r} ({error})", "import it, or name another") from None
    algorithms = {line.split(":")[3] for line in listed.splitlines() if line.startswith("sec:")}
    if algorithms != {RSA}:
        raise BuildError(f"the GPG key {key!r} is no RSA key", "rpm of EL7 reads only signatures by RSA keys")
