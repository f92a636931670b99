"""Find the operators that a SavedModel needs and this process's TensorFlow lacks. Imports TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from tensorflow.python.framework import op_def_registry
from tensorflow.python.saved_model import loader_impl

__all__ = ["missing_ops"]


def missing_ops(path: str, tags: Sequence[str]) -> tuple[list[str], str]:
    """Return the unregistered operators of the graph with `tags` and of its functions, and the exporter's version.

    The version of TensorFlow that exported it is "" if unknown. Both are empty if the graph cannot be read.
    """
    try:
        saved_model = loader_impl.parse_saved_model(path)
    except (OSError, ValueError, RuntimeError):
        return [], ""
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            library = meta_graph.graph_def.library
            functions = {function.signature.name for function in library.function}
            needed = {node.op for node in meta_graph.graph_def.node}
            needed.update(node.op for function in library.function for node in function.node_def)
            missing = [op for op in needed - functions if op_def_registry.get(op) is None]
            return sorted(missing), str(meta_graph.meta_info_def.tensorflow_version)
    return [], ""
