"""What converted forms get wrong of single operators: the table, what of it a graph contains, the campaign that finds
it, and that what is spelled out anew is right."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorflow.core.framework import graph_pb2, node_def_pb2

from backends.dtypes import BY_NAME
from benchmarks.operators import campaign, table
from converters.hazards import FILE, Effect, Hazard, Values, from_text, hazards, hazards_of, met, order, to_text, told
from converters.onnx_handlers import HANDLERS
from converters.repairs import REPAIRED
from tests.support.acceleration_jobs import ROOT

pytestmark = pytest.mark.timeout(300)

# -- the table


def test_the_table_is_written_as_it_is_read_sorted_and_without_doubles() -> None:
    text = Path(FILE).read_text(encoding="utf-8")
    assert to_text(from_text(text)) == text
    keys = [(*order(found)[:4], found.source) for found in hazards()]
    assert keys == sorted(set(keys))
    assert len(keys) == text.count("\n") - 2  # a line each


def test_each_hazard_names_a_form_element_types_and_its_source() -> None:
    assert hazards()
    for found in hazards():
        assert found.form in {"onnx", "tflite"}
        assert found.dtypes
        assert set(found.dtypes) <= BY_NAME.keys()
        assert found.example
        assert found.source == table.CAMPAIGN or found.source.startswith("https://")


def test_what_is_spelled_out_is_not_in_the_table_on_what_it_is_spelled_out_for() -> None:
    known = {
        (found.op, dtype, found.values)
        for found in hazards()
        for dtype in found.dtypes
        if found.form == "onnx" and found.effect in (Effect.DIFFERS, Effect.DIES)
    }
    assert known.isdisjoint({(op, dtype, kind) for op, dtype, kinds in REPAIRS for kind in kinds})


# -- what a graph contains


def node(op: str, name: str, **types: str) -> node_def_pb2.NodeDef:
    found = node_def_pb2.NodeDef(op=op, name=name, input=["x"])
    for attribute, dtype in types.items():
        found.attr[attribute].type = BY_NAME[dtype].number
    return found


def erf_in(graph: graph_pb2.GraphDef, form: str = "onnx") -> list[Hazard]:
    return [found for found in hazards_of([graph], form) if found.op == "Erf" and found.values is Values.NAN]


def test_a_graph_has_the_hazards_of_its_operators_and_of_those_of_its_functions() -> None:
    graph = graph_pb2.GraphDef(node=[node("Identity", "x", T="float32")])
    assert not erf_in(graph)
    graph.library.function.add().node_def.append(node("Erf", "deep", T="float32"))
    graph.library.function[0].signature.name = "body"
    (found,) = erf_in(graph)
    assert "float32" in found.dtypes
    places = {(one.function, one.node, one.inputs) for one in met(graph, "onnx")}
    assert places == {("body", "deep", ("x",))}


def test_a_hazard_is_of_its_form_and_element_types_only() -> None:
    assert erf_in(graph_pb2.GraphDef(node=[node("Erf", "x", T="float32")]))
    assert not erf_in(graph_pb2.GraphDef(node=[node("Erf", "x", T="float64")]))
    assert not erf_in(graph_pb2.GraphDef(node=[node("Erf", "x", T="float32")]), "tflite")
    assert erf_in(graph_pb2.GraphDef(node=[node("Erf", "x")]))  # it does not say which


def test_people_are_told_of_what_may_come_about_inside_a_graph() -> None:
    def hazard(values: Values, effect: Effect = Effect.DIFFERS) -> Hazard:
        return Hazard("Op", "onnx", values, effect, "T", ("int32", "int64"), (), "", "campaign")

    assert told([hazard(Values.NAN), hazard(Values.ORDINARY), hazard(Values.INDEX, Effect.REFUSES)]) == ()
    assert told([hazard(Values.NEGATIVE)]) == ("Op (int32, int64) differs on negative whole numbers",)


# -- results become a table


def line(op: str, dtype: str, **classes: dict) -> dict:
    return {
        "op": op,
        "dtype": dtype,
        "not run": {},
        "forms": {"onnx": {"": {"classes": classes["onnx"]}}, "tflite": {}},
    }


def test_what_differs_on_ordinary_values_is_not_told_of_on_others() -> None:
    differs = ["differs", "1 instead of 2"]
    (found,) = table.found_hazards([line("Log", "float64", onnx={"floats nan": differs, "one row": differs})])
    assert (found.values, found.effect, found.dtypes) == (Values.ORDINARY, Effect.DIFFERS, ("float64",))
    assert found.example == "float64: 1 instead of 2"


def test_element_types_that_go_wrong_alike_are_one_hazard() -> None:
    classes = {"whole numbers below 0, of up to 8 bits": ["dies", "SIGFPE"], "ordinary values": "equal"}
    (found,) = table.found_hazards([line("Mod", dtype, onnx=classes) for dtype in ("int64", "int8")])
    assert (found.dtypes, found.values, found.variants) == (("int8", "int64"), Values.NEGATIVE, ())


def test_what_comes_from_elsewhere_stays_when_operators_are_tried_again() -> None:
    known = Hazard("Mod", "onnx", Values.NAN, Effect.DIFFERS, "T", ("float32",), (), "x", "https://example.com/1")
    old = Hazard("Mod", "onnx", Values.INFINITE, Effect.DIFFERS, "T", ("float32",), (), "x", table.CAMPAIGN)
    other = Hazard("Exp", "onnx", Values.INFINITE, Effect.DIFFERS, "T", ("float32",), (), "x", table.CAMPAIGN)
    assert table.merged([known, old, other], [], {("Mod", "float32")}) == [known, other]


def test_of_an_operator_whose_element_types_are_not_all_tried_again_the_others_stay() -> None:
    old = Hazard("Mod", "onnx", Values.NAN, Effect.DIFFERS, "T", ("float32", "float64"), (), "x", table.CAMPAIGN)
    new = dataclasses.replace(old, dtypes=("float16",))
    (one,) = table.merged([old], [], {("Mod", "float32")})
    assert one.dtypes == ("float64",)
    (one,) = table.merged([old], [new], {("Mod", "float32"), ("Mod", "float16")})
    assert one.dtypes == ("float64", "float16")


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"op": "Abs", "dtype": dtype, "forms": {}}) for dtype in ("float32", "float64")]
    (tmp_path / "results").write_text("\n".join(lines) + '\n{"op": "Ab')
    assert [found["dtype"] for found in campaign.read(str(tmp_path / "results"))] == ["float32", "float64"]


# -- the campaign, and what is spelled out, beside TensorFlow

_WHOLE = {Values.ORDINARY, Values.NEGATIVE, Values.LARGE_WHOLE, Values.LEAST_BY_MINUS_ONE}
_FLOAT = {Values.ORDINARY, Values.HALVES, Values.HUNDREDS, Values.LARGE}
REPAIRS: list[tuple[str, str, set[Values]]] = [
    ("ClipByValue", "int64", _WHOLE),
    ("Bucketize", "float32", _FLOAT | {Values.NAN, Values.INFINITE}),
    ("Bucketize", "int64", _WHOLE),
    ("Div", "int64", _WHOLE),
    ("Erfc", "float32", _FLOAT),
    ("FloorDiv", "int8", _WHOLE),
    ("FloorDiv", "int64", _WHOLE),
    ("FloorMod", "float32", _FLOAT | {Values.INFINITE, Values.HUGE}),
    ("FloorMod", "int8", _WHOLE),
    ("FloorMod", "int64", _WHOLE),
    ("Greater", "int64", _WHOLE),
    ("Less", "int64", _WHOLE),
    ("Log", "float64", _FLOAT),
    ("Log1p", "float32", _FLOAT | {Values.TINY, Values.INFINITE, Values.NAN}),
    ("LowerBound", "float32", _FLOAT | {Values.NAN, Values.INFINITE}),
    ("Max", "int64", _WHOLE),
    ("Maximum", "int64", _WHOLE),
    ("Min", "int64", _WHOLE),
    ("Minimum", "int64", _WHOLE),
    ("Mod", "int64", _WHOLE),
    ("OneHot", "int64", {Values.ORDINARY, Values.INDEX}),
    ("Relu", "int64", _WHOLE),
    ("Relu6", "int64", _WHOLE),
    ("ReverseSequence", "float32", {Values.ORDINARY}),
    ("SelectV2", "int8", _WHOLE),
    ("RightShift", "int8", _WHOLE),
    ("ScatterNd", "float32", {Values.ORDINARY, Values.NAN}),
    ("SelectV2", "float32", _FLOAT | {Values.NAN, Values.INFINITE}),
    ("Sign", "int64", _WHOLE),
    ("Softplus", "float64", _FLOAT),
    ("TopKV2", "float64", _FLOAT),
    ("TopKV2", "int64", _WHOLE | {Values.EQUAL}),
    ("TruncateDiv", "float32", _FLOAT),
    ("TruncateDiv", "int64", _WHOLE),
    ("TruncateMod", "int64", _WHOLE),
    ("UpperBound", "float32", _FLOAT | {Values.NAN, Values.INFINITE}),
    ("UpperBound", "int64", _WHOLE),
]
REPAIRS_OF_TFLITE = [
    ("FloorDiv", "float32", _FLOAT),
    ("LowerBound", "float32", _FLOAT | {Values.NAN, Values.INFINITE}),
    ("Softplus", "float32", _FLOAT | {Values.HUGE}),
    ("UpperBound", "float32", _FLOAT | {Values.INFINITE}),
    ("UpperBound", "int64", _WHOLE),
]


def test_everything_that_is_spelled_out_has_its_place_here() -> None:
    others = {"Select"}  # which TensorFlow 2 writes as SelectV2
    assert {op for op, _, _ in REPAIRS} | others == REPAIRED["onnx"] | HANDLERS.keys()
    assert {op for op, _, _ in REPAIRS_OF_TFLITE} == REPAIRED["tflite"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("operators")
    for folder in ("converters", "docs"):
        (root / folder).mkdir()
    (root / "converters" / "hazards.json").write_text(to_text([]))
    for page in ("docs/acceleration.md", "docs/operators.md"):
        shutil.copy(ROOT / page, root / page)

    def run(*options: str) -> Path:
        command = [
            sys.executable,
            "-m",
            "benchmarks.operators",
            "--results",
            str(root / "results"),
            "--root",
            str(root),
        ]
        subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, timeout=280)
        return root

    return run


@pytest.fixture(scope="module")
def results(run: Callable[..., Path]) -> dict[tuple[str, str], dict]:
    """What the campaign says of the operators that are spelled out, by operator and element type."""
    tried = [*REPAIRS, *REPAIRS_OF_TFLITE]
    root = run("--only", *sorted({f"{op}:{dtype}" for op, dtype, _ in tried}))
    return {(line["op"], line["dtype"]): line for line in campaign.read(str(root / "results"))}


def wrong(result: dict, form: str) -> set[Values]:
    """The values on which a form is not TensorFlow's equal; all where there is none."""
    if all("not converted" in variant for variant in result["forms"][form].values()):
        return set(Values)
    effects = (Effect.DIFFERS, Effect.DIES, Effect.REFUSES)
    return {one.values for one in table.found_hazards([result]) if one.form == form and one.effect in effects}


@pytest.mark.parametrize(("op", "dtype", "kinds"), REPAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_spelled_out_for_onnx_is_right(results: dict, op: str, dtype: str, kinds: set[Values]) -> None:
    assert wrong(results[op, dtype], "onnx") & kinds == set()


@pytest.mark.parametrize(
    ("op", "dtype", "kinds"), REPAIRS_OF_TFLITE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_spelled_out_for_tflite_is_right(results: dict, op: str, dtype: str, kinds: set[Values]) -> None:
    assert wrong(results[op, dtype], "tflite") & kinds == set()


def test_the_campaign_writes_what_it_finds_into_the_table_and_the_page(run: Callable[..., Path]) -> None:
    root = run("--only", "Erf:float32", "CheckNumerics:float32")
    forms = {(of["op"], of["dtype"]): of["forms"] for of in campaign.read(str(root / "results"))}
    classes = forms["Erf", "float32"]["onnx"][""]["classes"]
    assert classes["ordinary values"] == "equal"
    assert classes["floats nan"][0] == "differs"
    assert forms["CheckNumerics", "float32"]["onnx"][""]["classes"]["floats nan"][0] == "answers"
    known = from_text((root / "converters" / "hazards.json").read_text())
    effects = {(of.op, of.effect) for of in known if of.values is Values.NAN and of.form == "onnx"}
    assert {("Erf", Effect.DIFFERS), ("CheckNumerics", Effect.ANSWERS)} <= effects
    assert "| Erf | onnx | float32 |" in (root / "docs" / "operators.md").read_text()
