"""Stages the runtime: Debian's CPython and libraries, the wheels and our code, in one tree under /opt/dropserve."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rpmkit import patches
from rpmkit.components import is_license
from rpmkit.lock import Locked
from rpmkit.report import BuildError, run, step

PREFIX = "opt/dropserve"
RUNTIME = f"{PREFIX}/runtime"
SITE_PACKAGES = f"{RUNTIME}/lib/python3.11/site-packages"

# Debian's packages. gcc-12-base and base-files are there for the licences that the others refer to, locales for the
# sources of _LOCALE. Left out, with the
# modules that need them: readline, ncurses, Berkeley DB; and tzdata, since nothing here computes in local time.
DEBS = (
    *("libc6", "libc-bin", "locales", "libcrypt1", "libgcc-s1", "libstdc++6", "libgomp1", "gcc-12-base", "base-files"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libexpat1", "zlib1g", "libbz2-1.0"),
    *("liblzma5", "libffi8", "libsqlite3-0", "libssl3", "libuuid1"),
)

# The interpreter names all libraries, so that they are loaded by its RPATH: an extension module whose RUNPATH disables
# that finds them loaded already.
_NEEDED = (
    *("libstdc++.so.6", "libgcc_s.so.1", "libz.so.1", "libssl.so.3", "libcrypto.so.3", "libffi.so.8", "libbz2.so.1.0"),
    *("liblzma.so.5", "libsqlite3.so.0", "libexpat.so.1", "libuuid.so.1", "librt.so.1", "libpthread.so.0"),
    *("libdl.so.2", "libm.so.6", "libgomp.so.1", "libresolv.so.2", "libutil.so.1", "libcrypt.so.1"),
)

_UNUSED_LIBRARIES = {
    *("libBrokenLocale.so.1", "libc_malloc_debug.so.0", "libmemusage.so", "libpcprofile.so", "libthread_db.so.1"),
    *("libnsl.so.1", "libnss_compat.so.2", "libnss_hesiod.so.2", "libexpatw.so.1"),
}

# What ONNX Runtime asks for to make text lower case; C.utf8 comes ready with libc-bin.
_LOCALE, _CHARSET = "en_US", "UTF-8"

# Wheels that others ask for, and nothing imports while it serves or converts.
UNUSED_WHEELS = {"libclang", "wheel"}

# Of the standard library: what needs a terminal, a display or a library that is left out, and the tests.
_PRUNED_LIBRARY = (
    *("EXTERNALLY-MANAGED", "sitecustomize.py", "curses", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test"),
    *("tkinter", "turtle.py", "turtledemo", "lib-dynload/_curses*", "lib-dynload/_dbm*", "lib-dynload/*test*"),
    *("lib-dynload/nis*", "lib-dynload/ossaudiodev*", "lib-dynload/readline*", "lib-dynload/xx*"),
)

# Of the wheels: what serving and converting do not use. ai_edge_litert/vendors has RPATHs into the host's /usr/lib.
_PRUNED_PACKAGES = (
    *("bin", "share", "tests", "*.dist-info/RECORD", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED"),
    "*.dist-info/direct_url.json",
    *("tensorflow/include", "tensorflow/xla_aot_runtime_src", "ai_edge_litert/vendors", "ai_edge_litert/tools"),
    *("ai_edge_litert/*[wW]eb[gG]pu*", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"),
    *("onnxruntime/transformers", "onnx/test", "onnx/backend/test", "h5py/tests", "google/_upb/*.a"),
    *("**/*.a", "**/*.pyi", "**/*.h", "**/*.hpp", "**/*.pxd", "**/*.pyx", "**/*.lib", "**/*.c", "**/*.cc", "**/*.cpp"),
)
CUDA_PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"  # belongs to dropserve-cuda
# Of NVIDIA's wheels: headers, and libraries that nothing links or opens: the build of NVRTC with another allocator, and
# the stand-ins for FFTW and for a CPU's BLAS.
_PRUNED_CUDA = (
    *("*.dist-info/RECORD", "**/include", "**/*.a", "nvidia/cuda_nvrtc/lib/*.alt.so*"),
    *("nvidia/cufft/lib/libcufftw.so*", "nvidia/cublas/lib/libnvblas.so*"),
)
_DRIVER = {"libcuda.so.1"}  # what the machine's NVIDIA driver brings

# Their symbols are only for debuggers. No other is stripped: what patchelf and auditwheel did would not survive it.
_STRIPPED = ("tensorflow/libtensorflow_cc.so.2", "tensorflow/libtensorflow_framework.so.2")


def stage(debs: dict[Locked, Path], wheels: dict[Locked, Path], source: Path, work: Path) -> Path:
    """The staged tree's root, a new folder in `work`."""
    root = work / "root"
    extracted = work / "debian"
    for folder in (root, extracted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    with step(f"Unpacking {len(debs)} Debian packages"):
        for path in debs.values():
            run(["dpkg-deb", "-x", path, extracted])
    with step("Placing and patching the interpreter and its libraries"):
        _place_libraries(extracted, root / RUNTIME / "lib")
        _place_python(extracted, root)
    with step(f"Installing {len(wheels)} wheels"):
        _install_wheels(wheels, root / SITE_PACKAGES, work)
    with step("Pruning and stripping"):
        _prune(root / SITE_PACKAGES, _PRUNED_PACKAGES)
        _alias_tensorflow(root / SITE_PACKAGES)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda n: run(["strip", "--strip-unneeded", root / SITE_PACKAGES / n]), _STRIPPED))
    _install_ourselves(source, root / SITE_PACKAGES)
    (root / PREFIX / "driver").mkdir()
    return root


def _place_libraries(extracted: Path, target: Path) -> None:
    """All shared libraries in one folder, each under its SONAME, and patched."""
    target.mkdir(parents=True)
    for folder in (extracted / "lib/x86_64-linux-gnu", extracted / "usr/lib/x86_64-linux-gnu"):
        for path in sorted(folder.glob("*.so*")):
            if path.is_symlink():
                continue
            name = run(["patchelf", "--print-soname", path]).strip() or path.name
            if name not in _UNUSED_LIBRARIES:
                shutil.copy2(path, target / name)
    for name, changes in patches.PATCHES.items():
        patches.apply(target / name, changes)
    (target / "ossl-modules").mkdir()
    shutil.copy2(extracted / "usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so", target / "ossl-modules")
    _place_locales(extracted, target / "locale")
    (target.parent / "so").symlink_to("lib")  # the name that fits into the place of a longer one: see rpmkit.patches


def _place_locales(extracted: Path, target: Path) -> None:
    """The locales, and beside the runtime the links by which its C library finds them: see rpmkit.patches."""
    shutil.copytree(extracted / "usr/lib/locale/C.utf8", target / "C.utf8")
    made = target / f"{_LOCALE}.utf8"
    library, sources = extracted / "lib/x86_64-linux-gnu", extracted / "usr/share/i18n"
    # By the C library that will read it, on whichever machine this is built.
    localedef = [library / "ld-linux-x86-64.so.2", "--library-path", library, extracted / "usr/bin/localedef"]
    run(
        [*localedef, "--no-archive", "--no-hard-links", "-i", _LOCALE, "-f", _CHARSET, made],
        environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "I18NPATH": str(sources)},
    )
    for path in target.iterdir():
        (target.parents[2] / path.name).symlink_to(f"runtime/lib/locale/{path.name}")


def _place_python(extracted: Path, root: Path) -> None:
    runtime = root / RUNTIME
    library = runtime / "lib/python3.11"
    shutil.copytree(extracted / "usr/lib/python3.11", library, symlinks=True)
    _prune(library, _PRUNED_LIBRARY)
    (library / "site-packages").mkdir()
    (library / "dist-packages").symlink_to("site-packages")  # where Debian's interpreter looks
    (runtime / "bin").mkdir()
    python = runtime / "bin/python3.11"
    shutil.copy2(extracted / "usr/bin/python3.11", python)
    (runtime / "bin/python3").symlink_to("python3.11")
    # One call for each kind of change: patchelf has corrupted binaries that it changed in several ways at once.
    run(["patchelf", "--set-interpreter", f"/{RUNTIME}/lib/ld-linux-x86-64.so.2", python])
    run(["patchelf", "--force-rpath", "--set-rpath", f"/{RUNTIME}/lib", python])
    run(["patchelf", *(word for name in _NEEDED for word in ("--add-needed", name)), python])
    (runtime / "pyvenv.cfg").write_text(f"home = /{RUNTIME}/bin\ninclude-system-site-packages = false\n")


def _install_wheels(wheels: dict[Locked, Path], target: Path, work: Path) -> None:
    listing = work / "wheels.txt"
    listing.write_text("".join(f"{path.resolve()} --hash=sha256:{entry.sha256}\n" for entry, path in wheels.items()))
    run(
        [
            *(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:", "--no-compile", "--target", target, "-r", listing),
        ]
    )


def _prune(folder: Path, patterns: Iterable[str]) -> None:
    """Removes what matches, but for licences: those beside TensorFlow's headers are of code that is linked into it."""
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
                continue
            for parent, folders, files in os.walk(path, topdown=False):
                for name in (*folders, *files):
                    inner = os.path.join(parent, name)
                    if os.path.islink(inner) or (name in files and not is_license(name)):
                        os.unlink(inner)
                if not os.listdir(parent):
                    os.rmdir(parent)


def _alias_tensorflow(packages: Path) -> None:
    """Lets `importlib.metadata` find `tensorflow`: `tensorflow-cpu` is the same under another name."""
    found = next(packages.glob("tensorflow_cpu-*.dist-info"))
    version = found.name.removeprefix("tensorflow_cpu-").removesuffix(".dist-info")
    alias = packages / f"tensorflow-{version}.dist-info"
    alias.mkdir()
    (alias / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: tensorflow\nVersion: {version}\nSummary: provided by tensorflow-cpu\n"
    )


def _install_ourselves(source: Path, packages: Path) -> None:
    project = tomllib.loads((source / "pyproject.toml").read_text())
    setup = project["tool"]["setuptools"]
    tops = {pattern.partition(".")[0] for pattern in setup["packages"]["find"]["include"]}
    for folder in sorted(path.parent for top in tops for path in (source / top).rglob("__init__.py")):
        parts = folder.relative_to(source).parts
        target = packages.joinpath(*parts)
        target.mkdir(parents=True)
        for pattern in ("*.py", *setup["package-data"].get(".".join(parts), ())):
            for path in sorted(folder.glob(pattern)):
                shutil.copyfile(path, target / path.name)
    about = packages / f"dropserve-{project['project']['version']}.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: dropserve\nVersion: {project['project']['version']}\n"
        f"Summary: {project['project']['description']}\n"
    )


def in_runtime(root: Path, arguments: Sequence[str]) -> str:
    """What the staged interpreter prints, run where it will be installed: in the tree as its root folder."""
    become_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    python = f"/{RUNTIME}/bin/python3"
    return run([*become_root, "chroot", root, python, *arguments], environment=environment)


def byte_compile(root: Path) -> None:
    """Adds the `.pyc` files: the service's user cannot write them, and an import without them takes three times as
    long.

    Two processes with fixed parts, each in one order, so that their result does not depend on scheduling.
    """
    packages = f"/{SITE_PACKAGES}"
    common = ["-B", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    parts = (
        [f"{packages}/tensorflow"],
        ["-x", "/site-packages/tensorflow/", f"/{RUNTIME}/lib/python3.11"],
    )
    with step("Byte-compiling"), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part: in_runtime(root, [*common, *part]), parts))


def split_cuda(root: Path, target: Path) -> None:
    """Moves what belongs to dropserve-cuda from one tree into another."""
    source = root / SITE_PACKAGES / CUDA_PROVIDER
    if not source.is_file():
        raise BuildError(f"{CUDA_PROVIDER} is not in onnxruntime's wheel", "was the lock made with onnxruntime-gpu?")
    moved = target / SITE_PACKAGES / CUDA_PROVIDER
    moved.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, moved)


def add_cuda(wheels: dict[Locked, Path], target: Path) -> None:
    """NVIDIA's libraries, unpacked into the tree of dropserve-cuda: their wheels hold nothing but files."""
    packages = target / SITE_PACKAGES
    packages.mkdir(parents=True, exist_ok=True)
    for path in wheels.values():
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(packages)
    _prune(packages, _PRUNED_CUDA)


def check_cuda(target: Path, root: Path) -> None:
    """Raises BuildError where a library of dropserve-cuda is linked with one that no package and no driver has."""
    libraries = [path for path in sorted(target.rglob("*.so*")) if path.is_file()]
    present = {path.name for path in (*libraries, *(root / RUNTIME / "lib").iterdir())} | _DRIVER
    for path in libraries:
        if missing := set(run(["patchelf", "--print-needed", path]).split()) - present:
            raise BuildError(
                f"{path.name} is linked with {', '.join(sorted(missing))}, which neither package has",
                "lock the wheel that brings it: see relock in packaging/rpm/rpmkit/__main__.py",
            )


def set_times(root: Path, epoch: int) -> None:
    """Gives everything one time, and modes that do not depend on the builder's umask."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                # Modules are imported, not run: their #! lines would take the host's interpreter.
                is_program = os.stat(path).st_mode & 0o100 and "/lib/python3.11/" not in path
                executable = os.path.isdir(path) or is_program
                os.chmod(path, 0o755 if executable else 0o644)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
