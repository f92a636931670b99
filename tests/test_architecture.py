"""Who may import whom, read from the code; and that nothing but a backend loads TensorFlow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("appliance", "converters", "backends")  # each may import those after it
PARTS = ("cli", "supervisor", "lifecycle", "dataplane", "fronts")
# What a part of the appliance may import of the others, besides itself and the leaves.
MAY_IMPORT = {
    "cli": {"supervisor"},
    "supervisor": {"lifecycle", "dataplane", "fronts"},
    "lifecycle": set(),
    "dataplane": set(),
    "fronts": set(),
    "leaf": set(),
}
# What single modules may import besides.
EXCEPTIONS = {
    "appliance.__main__": {"appliance.cli.main"},
    # A policy is a plain value, and what configures it must know it.
    "appliance.config.options": {"appliance.config.version_policy"},
    "appliance.config.model_config": {"appliance.config.version_policy"},
    "appliance.config.models": {"appliance.config.version_policy"},
    # The doctor looks at model folders as the source does.
    "appliance.doctor.facts": {"appliance.source.watcher"},
    # The worker that a forked process becomes; the import is in that process only.
    "appliance.worker.forkserver": {"appliance.worker.process", "appliance.worker.task"},
}


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


def part(module: str) -> str:
    """The part of the appliance that `module` is of: "leaf" for what all may import."""
    if module == "appliance.__main__" or module.startswith("appliance.protocols.protos"):
        return "leaf"
    second = module.split(".")[1] if "." in module else ""
    return second if second in PARTS else "leaf"


def test_the_packages_and_parts_are_those_of_the_design() -> None:
    assert set(PACKAGES) <= {module.partition(".")[0] for module in MODULES}
    assert {part(module) for module in MODULES if module.startswith("appliance")} == {*PARTS, "leaf"}


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_only_those_below_it(module: str) -> None:
    package = module.partition(".")[0]
    below = PACKAGES[PACKAGES.index(package) :]
    assert [name for name in imports(module) if name.partition(".")[0] not in below] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("appliance")])
def test_a_part_of_the_appliance_imports_only_what_is_below_it(module: str) -> None:
    own = part(module)
    allowed = {own, "leaf", *MAY_IMPORT[own]}
    wrong = [
        name
        for name in imports(module)
        if name.startswith("appliance") and part(name) not in allowed and name not in EXCEPTIONS.get(module, set())
    ]
    if own == "fronts":
        wrong = [name for name in wrong if name != "appliance.inference.router"]
    assert wrong == []


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
        "appliance.rest.server",
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
