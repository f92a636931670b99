"""What the operators of TensorFlow do besides answering: every one that it registers is known to us."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

from backends.graph_effects import acts_outside, changes_state


def test_of_every_operator_that_may_have_effects_it_is_known_whether_it_has() -> None:
    # One that a new TensorFlow brings goes into a pattern of backends/graph_effects.py, or, where it changes nothing
    # that outlasts a request, into the list here.
    known = set((Path(__file__).parent / "ops_without_effects.txt").read_text().split())
    found = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    names = {op.name for op in found.op if op.is_stateful or any(arg.is_ref for arg in (*op.input_arg, *op.output_arg))}
    with_effects = {name for name in names if changes_state(name) or acts_outside(name)}
    assert names - with_effects - known == set()
    assert known & with_effects == set()
    assert known - names == set()


@pytest.mark.parametrize(
    "op", ["SaveV2", "MergeV2Checkpoints", "WriteFile", "WriteScalarSummary", "SaveDatasetV2", "SnapshotDatasetV2"]
)
def test_what_writes_files_acts_outside(op: str) -> None:
    assert acts_outside(op)


@pytest.mark.parametrize("op", ["TensorScatterUpdate", "TensorListPushBack", "ReadVariableOp", "RestoreV2", "PrintV2"])
def test_what_makes_a_new_tensor_or_reads_has_no_effect(op: str) -> None:
    assert not acts_outside(op)
    assert not changes_state(op)
