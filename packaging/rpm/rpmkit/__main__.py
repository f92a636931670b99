"""`python -m rpmkit relock | build | pack | repo`: from the lock to the RPMs."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tomllib
from pathlib import Path

from rpmkit import components, fetch, lock, runtime
from rpmkit.host_files import place_host_files
from rpmkit.package import PAYLOADS, Build, build_rpm
from rpmkit.report import BuildError, run, step
from rpmkit.repository import make_repository

HERE = Path(__file__).resolve().parents[1]
SOURCE = HERE.parents[1]
WORK = SOURCE / "build/rpm"
ROOT, CUDA_ROOT = WORK / "root", WORK / "root-cuda"
CACHE = WORK / "cache"
LOCK = HERE / "runtime.lock"


def relock() -> None:
    """Writes the lock anew: Debian's packages as the mirror has them, wheels of requirements.lock's versions."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    # The CPU build is smaller by half; the GPU is reached through ONNX Runtime.
    wanted = [name.replace("tensorflow==", "tensorflow-cpu==") for name in project["dependencies"]]
    with step("Looking up Debian's packages"):
        entries = fetch.resolve_debs(runtime.DEBS)
    found = fetch.resolve_wheels("\n".join(wanted), SOURCE / "requirements.lock", "wheel", CACHE)
    entries += [entry for entry in found if entry.name not in runtime.UNUSED_WHEELS]
    # The extras name the libraries that the CUDA provider is linked with.
    provider = next(name for name in wanted if name.startswith("onnxruntime-gpu"))
    extra = provider.replace("onnxruntime-gpu", "onnxruntime-gpu[cuda,cudnn]")
    found = fetch.resolve_wheels(extra, SOURCE / "requirements.lock", "cuda", CACHE)
    entries += [entry for entry in found if entry.name.startswith("nvidia-")]
    LOCK.write_text(lock.dump(entries))
    print(f"{LOCK.relative_to(SOURCE)}: {len(entries)} files")


def build(arguments: argparse.Namespace) -> None:
    """Builds the base package, and dropserve-cuda where that is asked for."""
    build = _build_of(arguments)
    entries = lock.read(LOCK)
    by_kind = {kind: [entry for entry in entries if entry.kind == kind] for kind in lock.KINDS}
    if {entry.name for entry in by_kind["deb"]} != set(runtime.DEBS):
        raise BuildError("the lock's Debian packages are not those that the runtime is made of", "run make relock")
    with step("Checking the locked files"):
        debs, wheels = fetch.fetch(by_kind["deb"], CACHE), fetch.fetch(by_kind["wheel"], CACHE)
        cuda = fetch.fetch(by_kind["cuda"], CACHE) if arguments.cuda else {}
    shutil.rmtree(CUDA_ROOT, ignore_errors=True)
    root = runtime.stage(debs, wheels, SOURCE, WORK)
    runtime.split_cuda(root, CUDA_ROOT)
    runtime.byte_compile(root)
    packages = root / runtime.SITE_PACKAGES
    share = root / runtime.PREFIX / "share"
    components.place_licenses(debs, WORK / "debian", SOURCE, share / "licenses")
    components.place_wheel_licenses(wheels, packages, share / "licenses/python-packages.txt")
    bill = components.bill("dropserve", build.version, dict.fromkeys([*debs, *wheels], packages), build.epoch)
    (share / "dropserve.spdx.json").write_text(bill)
    place_host_files(root, SOURCE)
    runtime.set_times(root, build.epoch)
    _tell(build_rpm(HERE / "dropserve.spec", root, build, WORK))
    if arguments.cuda:
        runtime.add_cuda(cuda, CUDA_ROOT)
        runtime.check_cuda(CUDA_ROOT, root)
        share = CUDA_ROOT / runtime.PREFIX / "share"
        (share / "licenses").mkdir(parents=True)
        components.place_wheel_licenses(cuda, CUDA_ROOT / runtime.SITE_PACKAGES, share / "licenses/nvidia-packages.txt")
        # The provider comes from ONNX Runtime's wheel, whose licence is in the base package.
        contained = dict.fromkeys(cuda, CUDA_ROOT / runtime.SITE_PACKAGES)
        contained |= {entry: packages for entry in wheels if entry.name == "onnxruntime-gpu"}
        bill = components.bill("dropserve-cuda", build.version, contained, build.epoch)
        (share / "dropserve-cuda.spdx.json").write_text(bill)
        runtime.set_times(CUDA_ROOT, build.epoch)
        _tell(build_rpm(HERE / "dropserve-cuda.spec", CUDA_ROOT, build, WORK))


def pack(arguments: argparse.Namespace) -> None:
    """Packs the tree that the last build staged once more: with another release or payload."""
    if not ROOT.is_dir():
        raise BuildError(f"{ROOT} is missing", "run make rpm first")
    _tell(build_rpm(HERE / "dropserve.spec", ROOT, _build_of(arguments), WORK))


def _build_of(arguments: argparse.Namespace) -> Build:
    version = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["version"]
    return Build(version, arguments.release, arguments.payload, _epoch(), arguments.output.resolve())


def _tell(path: Path) -> None:
    print(f"{path}  {path.stat().st_size / 1e6:.0f} MB  sha256 {fetch.sha256_of(path)}")


def _epoch() -> int:
    """SOURCE_DATE_EPOCH, or the time of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH") or run(["git", "-C", SOURCE, "log", "-1", "--format=%ct"])
    try:
        return int(given)
    except ValueError:
        raise BuildError(f"SOURCE_DATE_EPOCH is {given!r}", "it is a whole number of seconds") from None


def main() -> int:
    """The exit status: 0, or 1 with a line that says what failed."""
    parser = argparse.ArgumentParser(prog="rpmkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("relock", help="write runtime.lock anew")
    for name, text in (("build", "build the RPMs"), ("pack", "pack the staged tree again")):
        builder = commands.add_parser(name, help=text)
        builder.add_argument("--payload", choices=sorted(PAYLOADS), default="release", help="how hard it compresses")
        builder.add_argument("--release", default="1", help="the RPM's release [%(default)s]")
        builder.add_argument("--output", type=Path, default=SOURCE / "dist", help="the folder for the RPMs")
        if name == "build":
            builder.add_argument("--cuda", action="store_true", help="build dropserve-cuda too")
    repository = commands.add_parser("repo", help="make a yum repository of a folder with RPMs")
    repository.add_argument("--folder", type=Path, required=True)
    repository.add_argument("--key", default="", help="GPG key (RSA) that signs the packages and the metadata")
    arguments = parser.parse_args()
    os.umask(0o022)
    try:
        match arguments.command:
            case "relock":
                relock()
            case "repo":
                make_repository(arguments.folder, arguments.key)
            case "pack":
                pack(arguments)
            case _:
                build(arguments)
    except BuildError as error:
        print(f"rpmkit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
