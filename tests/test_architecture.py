"""Who may import whom, read from the code; and that nothing but a backend loads TensorFlow."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("appliance", "converters", "backends")
FOUNDATION = frozenset({"core", "backends"})
# Which rooms a room may import, besides itself and the foundation. `backends` and `converters` are rooms as well.
ARROWS: dict[str, set[str]] = {
    "backends": set(),
    "converters": set(),
    "core": set(),
    "host": set(),
    "protocols": set(),
    "transport": set(),
    "metrics": set(),
    "source": set(),
    "gpu": {"host"},
    "config": {"protocols"},
    "lifecycle": {"config"},
    "conversion": {"config", "converters", "host", "protocols"},
    "worker": {"config", "host", "metrics", "protocols", "transport"},
    "inference": {"metrics", "protocols", "transport"},
    "rest": {"config", "gpu", "host", "inference", "metrics", "protocols"},
    "rpc": {"config", "host", "inference", "metrics", "protocols"},
    "doctor": {"config", "converters", "gpu", "host", "source"},
    "supervisor": {
        "config", "conversion", "converters", "gpu", "host", "lifecycle", "metrics", "protocols", "source", "worker"
    },
    "cli": {"config", "conversion", "converters", "doctor", "gpu", "host", "supervisor"},
}  # fmt: skip


# What is loaded only where it is wanted, of a room that there is an arrow to: a framework, or what needs one.
LOADED_BY_NAME = {
    "appliance.worker.forkserver": {"backends.tensorflow_backend"},
    "converters.work": {"backends.tensorflow_backend"},
    "converters.registry": {"converters.to_onnx", "converters.to_tflite"},
}


# Declared for the sake of other packages: the one that uvicorn parses HTTP with, and a bound (see pyproject.toml).
FOR_OTHERS = {"backports-strenum", "httptools"}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """The modules of ours that `module` imports, also inside functions. `from package import name` names the
    sub-module where there is one."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]  # noqa: PLW2901 - from the name to the module that has it
            if name:
                yield name


def room(module: str) -> str:
    """The room that `module` is in; "" for the top of the appliance."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "appliance" else package


def test_every_module_is_in_a_room_and_every_room_has_its_arrows() -> None:
    assert {module for module in MODULES if not room(module)} == {"appliance"}
    assert {room(module) for module in MODULES} - {"", "__main__"} == set(ARROWS)
    assert [path.name for path in sorted((ROOT / "appliance").glob("*.py"))] == ["__init__.py", "__main__.py"]


def test_the_arrows_make_no_circle() -> None:
    left = {name: set(arrows) for name, arrows in ARROWS.items()}
    while ends := [name for name, arrows in left.items() if not arrows & left.keys()]:
        for name in ends:
            del left[name]
    assert not left


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_those_that_it_has_an_arrow_to(module: str) -> None:
    own = room(module)
    if own in ("", "__main__"):
        assert {room(name) for name in imports(module)} <= {"cli"}
        return
    foundation = {"backends": set(), "core": {"backends"}}.get(own, FOUNDATION)
    if own == "converters":
        foundation = {"backends"}
    allowed = {own, "", *foundation, *ARROWS[own]}
    assert [name for name in imports(module) if room(name) not in allowed] == []


@pytest.mark.parametrize("name", [name for name in ARROWS if name not in PACKAGES])
def test_a_room_says_what_it_is_for(name: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "appliance" / name / "__init__.py").read_text()))
    assert docstring is not None
    assert len(docstring) > 40


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_named_in_a_string_only_to_run_it_as_a_process(module: str) -> None:
    """Or it would be an import that no arrow shows."""
    texts = {
        node.value
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    named = {name for name in texts if name in MODULES and "." in name}
    assert {name for name in named if "__main__" not in MODULES[name].read_text()} <= LOADED_BY_NAME.get(module, set())


def third_party() -> set[str]:
    """The packages of others that the modules import, by the name of their first folder."""
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            found |= {name.partition(".")[0] for name in names}
    return found - sys.stdlib_module_names - set(PACKAGES)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    owners = importlib.metadata.packages_distributions()
    found = {name: {owner.lower().replace("_", "-") for owner in owners[name]} for name in third_party()}
    assert {name for name, distributions in found.items() if not distributions & declared} == set()
    assert declared - set().union(*found.values()) == FOR_OTHERS


def test_only_the_command_reads_its_arguments() -> None:
    readers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("argv", "orig_argv"))
        or (isinstance(node, ast.alias) and node.name in ("argv", "orig_argv", "argparse"))
    }
    assert readers <= {"appliance.cli.main", "appliance.__main__"}


def test_no_pickle_travels_between_processes() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.partition(".")[0] for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, module


@pytest.mark.parametrize(
    "module",
    [
        "appliance.cli.main",
        "appliance.supervisor",
        "appliance.worker.forkserver",
        "appliance.rest.process",
        "appliance.rpc.server",
        "appliance.worker.process",
        "backends.registry",
    ],
)
def test_importing_a_module_loads_no_framework(module: str) -> None:
    program = f"import sys, {module}\nprint(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(ended.stdout.split())
    assert module in loaded
    assert not loaded & {"tensorflow", "onnxruntime", "ai_edge_litert", "tf2onnx", "keras", "pynvml"}
