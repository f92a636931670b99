"""Who may import whom, what a module offers, and that nothing but a backend loads TensorFlow: read from the code."""

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
    "signing": {"host"},
    "config": {"protocols"},
    "lifecycle": {"config"},
    "conversion": {"config", "converters", "host", "protocols"},
    "worker": {"config", "host", "metrics", "protocols", "transport"},
    "inference": {"metrics", "protocols", "transport"},
    "rest": {"config", "gpu", "host", "inference", "metrics", "protocols"},
    "rpc": {"config", "host", "inference", "metrics", "protocols"},
    "doctor": {"config", "converters", "gpu", "host", "source"},
    "supervisor": {
        "config", "conversion", "converters", "gpu", "host", "lifecycle", "metrics", "protocols", "signing", "source",
        "worker",
    },
    "cli": {"config", "conversion", "converters", "doctor", "gpu", "host", "signing", "supervisor"},
}  # fmt: skip


# What is loaded only where it is wanted, of a room that there is an arrow to: a framework, or what needs one.
LOADED_BY_NAME = {
    "appliance.worker.forkserver": {"backends.tensorflow_backend"},
    "converters.processes": {"backends.tensorflow_backend"},
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


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


TREES = {module: parsed(path) for module, path in MODULES.items()}
USERS = [parsed(path) for folder in ("tests", "benchmarks", "packaging") for path in (ROOT / folder).rglob("*.py")]
SCRIPTS = (ROOT / "pyproject.toml").read_text()


def definitions(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """The names that `module` defines at its top level, with where, but for its loggers."""
    for statement in TREES[module].body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and "getLogger" not in ast.dump(statement):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                yield from ((node.id, statement) for node in ast.walk(target) if isinstance(node, ast.Name))


def references(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What `tree` takes from modules of ours: (module, name), imported, read as an attribute, or named in a string."""
    modules_by_name = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules_by_name |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules_by_name |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, _, name = node.value.replace(":", ".").rpartition(".")
            yield module, name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (module := modules_by_name.get(ast.unparse(node.value))):
            yield module, node.attr


def imported_of_ours(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What `tree` imports by name from modules of ours: (module, name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
            yield from ((node.module, alias.name) for alias in node.names)


def types_of(statement: ast.stmt) -> set[str]:
    """The names in the types of what `statement` defines: whoever uses it uses them."""
    types: list[ast.expr | None] = [statement.value] if isinstance(statement, ast.Assign) else []
    for node in ast.walk(statement):
        if isinstance(node, ast.arg | ast.AnnAssign):
            types.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            types.append(node.returns)
        elif isinstance(node, ast.ClassDef):
            types += node.bases
    return {node.id for found in types if found for node in ast.walk(found) if isinstance(node, ast.Name)}


USED = {found for tree in (*TREES.values(), *USERS) for found in references(tree)}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("appliance.")])
def test_what_no_other_module_uses_is_private(module: str) -> None:
    """Used is also the type of what is used, a command's function, and `main` of a module that runs as a process. Tests
    count: the pure part of a module is tested at its own functions."""
    public = {name: statement for name, statement in definitions(module) if not name.startswith("_")}
    in_types = set().union(*map(types_of, public.values()))
    commands = {name for name in public if f'"{module}:{name}"' in SCRIPTS}
    if "__main__" in MODULES[module].read_text():
        commands.add("main")
    assert sorted(name for name in public.keys() - in_types - commands if (module, name) not in USED) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_module_takes_a_private_name_of_another(module: str) -> None:
    private = [(of, name) for of, name in references(TREES[module]) if of in MODULES and name.startswith("_")]
    assert [found for found in private if found[0] != module and not found[1].startswith("__")] == []


def test_what_tests_and_benchmarks_import_is_there() -> None:
    """Types are not checked there, and some run in processes of their own, long after the others."""
    there = {(module, name) for module in MODULES for name, _ in definitions(module)}
    there |= {(module, name) for module, tree in TREES.items() for _, name in imported_of_ours(tree)}
    there |= {(package, name) for package, _, name in (module.rpartition(".") for module in MODULES)}
    assert sorted({found for tree in USERS for found in imported_of_ours(tree)} - there) == []


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
