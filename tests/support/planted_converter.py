"""A converter of the models `rare_by_cases`, `rare_by_search` and `tiny_tf2`: tf2onnx's forms, each with an error that
shows on few inputs."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping

from converters import to_onnx
from converters.plugin import Converted, EntryPoint, Failed, Task

FORMAT = "onnx"
PRECISIONS = ("float32",)
VERSIONS = ("onnx",)

_NEGATED = "other = Neg (right)", "wrong = Where (is_rare, other, right)"


def _floats(**values: float) -> tuple[str, ...]:
    return tuple(f"{name} = Constant <value_float = {value!r}> ()" for name, value in values.items())


def _wholes(**values: int) -> tuple[str, ...]:
    return tuple(f"{name} = Constant <value_ints = [{value}]> ()" for name, value in values.items())


def _rows(count: int) -> tuple[str, ...]:
    return (
        "rows = Shape <start = 0, end = 1> (x)",
        *_wholes(count=count),
        "is_rare = GreaterOrEqual (rows, count)",
        *_NEGATED,
    )


def _id(rare: int) -> tuple[str, ...]:
    return (
        *_wholes(rare=rare, axis=1),
        "is_id = Equal (x, rare)",
        "is_rare = Unsqueeze (is_id, axis)",
        *_NEGATED,
    )


# By the signature: what computes "wrong", in ONNX's text, of the inputs "x" and "z", and of "right".
PLANTED: Mapping[str, tuple[str, ...]] = {
    "beyond_a_million": (
        *_floats(limit=1e6, factor=1.01),
        "is_rare = Greater (x, limit)",
        "other = Mul (right, factor)",
        "wrong = Where (is_rare, other, right)",
    ),
    "from_33_rows": _rows(33),
    "from_100_rows": _rows(100),
    "no_look_for_nan": ("wrong = Identity (x)",),
    "at_least": (
        *_floats(limit=6.5, zero=0.0),
        "is_above = GreaterOrEqual (x, limit)",
        "wrong = Where (is_above, x, zero)",
    ),
    "at_least_behind_arithmetic": (
        *_floats(limit=1.125, zero=0.0),
        "is_above = GreaterOrEqual (x, limit)",
        "wrong = Where (is_above, x, zero)",
    ),
    "another_limit_behind_arithmetic": (
        *_floats(limit=1.126, zero=0.0),
        "is_above = Greater (x, limit)",
        "wrong = Where (is_above, x, zero)",
    ),
    "clipped_elsewhere": (*_floats(low=-1.0, high=6.005), "wrong = Clip (x, low, high)"),
    "sign_of_zero": (
        *_floats(zero=0.0),
        "is_zero = Equal (x, zero)",
        "size = Abs (right)",
        "wrong = Where (is_zero, size, right)",
    ),
    "halves_up": (*_floats(half=0.5), "higher = Add (x, half)", "wrong = Floor (higher)"),
    "last_of_equals": ("wrong = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (x)",),
    "both_large": (
        *_floats(high=900.0, low=-900.0),
        "is_high = Greater (x, high)",
        "is_low = Less (z, low)",
        "is_rare = And (is_high, is_low)",
        *_NEGATED,
    ),
    "odd_length": (
        "length = Shape <start = 1, end = 2> (x)",
        *_wholes(two=2),
        "rest = Mod (length, two)",
        "is_rare = Cast <to = 9> (rest)",
        *_NEGATED,
    ),
    "one_length": (
        "length = Shape <start = 1, end = 2> (x)",
        *_wholes(rare=11),
        "is_rare = Equal (length, rare)",
        *_NEGATED,
    ),
    "narrow": ("short = Cast <to = 6> (right)", "wrong = Cast <to = 7> (short)"),
    "one_number": (*_wholes(rare=31_415), "is_rare = Equal (x, rare)", *_NEGATED),
    "towards_zero": (*_wholes(seven=7), "wrong = Div (x, seven)"),
    "last_id": _id(999),
    "middle_id": _id(517),
    "two_ids": (
        *_wholes(one=700, other_one=13),
        "is_one = Greater (x, one)",
        "is_other = Equal (z, other_one)",
        "is_rare = And (is_one, is_other)",
        *_NEGATED,
    ),
}


UNSEEN = (
    *_floats(rare=3.1415927),
    "is_rare = Equal (x, rare)",
    *_NEGATED,
)
"""An error that shows where x is π, as float32 has it: neither cases nor searches come upon it."""


def plant(path: str, inputs: Mapping[str, str], output: str, texts: Iterable[str]) -> None:
    """Changes the ONNX model in the file `path`: `output`, which is "right" in `texts`, becomes their "wrong". `inputs`
    has names of the model for those of `texts`."""
    import onnx  # noqa: PLC0415
    from onnx import helper, parser  # noqa: PLC0415

    model = onnx.load(path)
    nodes = model.graph.node
    for node in nodes:
        node.output[:] = ["right" if name == output else name for name in node.output]
        node.input[:] = ["right" if name == output else name for name in node.input]
    nodes.extend(helper.make_node("Identity", [name], [alias]) for alias, name in inputs.items() if alias != name)
    nodes.extend(parser.parse_node(text) for text in texts)
    nodes.append(helper.make_node("Identity", ["wrong"], [output]))
    onnx.save(model, path)


def _plant(task: Task) -> Iterator[Converted | Failed]:
    for result in to_onnx.ENTRY_POINTS["inlined functions"](task):
        if isinstance(result, Converted):
            file = f"{task.prefix}{result.name}.onnx"  # signatures that are the same share the other one
            path = os.path.join(task.folder, file)
            if file != result.entry.file:
                shutil.copyfile(os.path.join(task.folder, result.entry.file), path)
            plant(path, result.entry.inputs, result.entry.outputs["y"], PLANTED.get(result.name, UNSEEN))
            yield Converted(result.name, dataclasses.replace(result.entry, file=file))
        else:
            yield result


ENTRY_POINTS: Mapping[str, EntryPoint] = {"planted": _plant}
