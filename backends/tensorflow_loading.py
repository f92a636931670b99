"""Load a SavedModel into a session in which all variables have values: see `opened`.

Only processes that have imported TensorFlow import this module.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.saved_model import loader_impl

from backends.contract import BackendError, Code
from backends.error_texts import shortened, without_python_trace
from backends.known_ops import explained
from backends.missing_ops import missing_ops
from backends.tensorflow_variables import Read, Reads, copies, copy_values, unset

__all__ = ["OP_SIGNATURES", "Opened", "backend_error", "opened"]

# Entries of signature_def that are ops to run, not functions to serve (tensorflow/python/saved_model/constants.py).
OP_SIGNATURES = frozenset({"__saved_model_init_op", "__saved_model_train_op"})

_Lacking = Mapping[str, Mapping[str, Read]]

_NAMED = 5  # the most variables that a message names

# The exceptions of TensorFlow's Python loaders are not specified: OSError, RuntimeError and ValueError were seen; the
# others are what Python raises on a graph that contradicts itself.
_LOADERS_ERRORS = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and the MetaGraphDef of its graph, whose signatures name its tensors.

    `remarks` tell how it was loaded if not in the usual way; `kept` must live as long as the session.
    """

    session: Any
    meta_graph: Any
    remarks: tuple[str, ...] = ()
    kept: Any = field(default=None, repr=False)


def opened(path: str, tags: Sequence[str], config: config_pb2.ConfigProto | None = None) -> Opened:
    """Load the graph with exactly `tags` of the SavedModel in the folder `path`, and run its initialisers.

    First as TensorFlow Serving does. If this leaves variables unset that a signature reads, they get the values of
    their copies (`backends.tensorflow_variables`); if there are no copies, the model is loaded by its object graph, as
    `tf.saved_model.load` does, into another session.

    Raise BackendError if TensorFlow refuses the model, or if every signature reads a variable without a value.
    """
    # Each load would log that loader.load is deprecated, and which file it restores.
    tf.get_logger().setLevel("ERROR")
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    try:
        meta_graph = tf.compat.v1.saved_model.loader.load(session, list(tags), path)
    except tf.errors.FailedPreconditionError as error:
        # An initialiser has read a variable that the restore left without a value.
        session.close()
        refusal = backend_error(error, f"cannot load {path}: ")
        try:
            why = f"the session's way fails: {backend_error(error).message.partition(chr(10))[0]}"
            return _by_object_graph(path, tags, config, why)
        except BackendError:
            raise refusal from error
    except tf.errors.OpError as error:
        session.close()
        missing = functools.partial(missing_ops, path, tags)
        raise backend_error(error, f"cannot load {path}: ", missing) from error
    except _LOADERS_ERRORS as error:
        session.close()
        split = " The split form, saved_model.cpb, is not read: export without experimental_image_format."
        remedy = split if os.path.exists(os.path.join(path, "saved_model.cpb")) else ""
        raise BackendError(Code.INVALID_ARGUMENT, f"cannot load {path}: {error}{remedy}") from error
    found = Opened(session, meta_graph)
    try:
        return _with_values(found, path, tags, config)
    except (*_LOADERS_ERRORS, tf.errors.OpError) as error:  # RuntimeErrors: functions nested too deeply
        # Loading succeeded, so the model can be served without this check.
        return replace(found, remarks=(f"its variables could not be looked at: {type(error).__name__}: {error}",))
    except BaseException:
        session.close()
        raise


def backend_error(
    error: tf.errors.OpError, context: str = "", missing: Callable[[], tuple[Iterable[str], str]] | None = None
) -> BackendError:
    """Return TensorFlow's error after `context`; `missing` finds the operators that it lacks (`known_ops`)."""
    message = without_python_trace(shortened(error.message))
    return BackendError(Code(error.error_code), context + explained(message, tf.__version__, missing))


def _with_values(found: Opened, path: str, tags: Sequence[str], config: config_pb2.ConfigProto | None) -> Opened:
    """Return `found`, or another load in its place, such that its signatures' variables have values if possible."""
    meta_graph = found.meta_graph
    reads = Reads(meta_graph.graph_def)
    set_on_load = reads.assigned(_on_load(found))
    held = _held(reads, meta_graph)
    suspects = frozenset().union(*held.values()) - set_on_load
    if not suspects:
        return found
    has_object_graph = meta_graph.HasField("object_graph_def")
    if has_object_graph and (pairs := _pairs(meta_graph.graph_def, suspects, set_on_load)):
        copy_values(found.session, pairs)
        found = replace(found, remarks=(_told_of_copies(len(pairs)),))
        suspects -= pairs.keys()
    lacking = _lacking(found, reads, held, suspects)
    if not lacking or not has_object_graph:
        return _judged(found, lacking, path)
    way = f"the session's way leaves variables without a value: {_list_text(_names(lacking))}"
    try:
        other = _by_object_graph(path, tags, config, way)
    except BackendError as error:
        remark = f"{way}; its object graph does not load either: {error.message}"
        return _judged(replace(found, remarks=(*found.remarks, remark)), lacking, path)
    found.session.close()
    return other


def _by_object_graph(path: str, tags: Sequence[str], config: config_pb2.ConfigProto | None, why: str) -> Opened:
    """Load as `tf.saved_model.load` does, but into a graph and a session; signatures are called and fail as there."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=config)
    try:
        with graph.as_default():
            loaded = tf.saved_model.load(path, tags=list(tags))
            meta_graph = _called(loaded, _meta_graph(path, tags))
            v1 = tf.compat.v1
            session.run(v1.global_variables_initializer())
            session.run(v1.tables_initializer())
        remark = f"loaded by its object graph, as tf.saved_model.load does, because {why}"
        meta_graph.graph_def.CopyFrom(graph.as_graph_def())
        found = Opened(session, meta_graph, (remark,), loaded)
        reads = Reads(meta_graph.graph_def)
        held = _held(reads, meta_graph)
        return _judged(found, _lacking(found, reads, held, frozenset().union(*held.values())), path)
    except BackendError:
        session.close()
        raise
    except tf.errors.OpError as error:
        session.close()
        raise backend_error(error, f"cannot load {path} by its object graph: ") from error
    except Exception as error:
        session.close()
        raise BackendError(
            Code.INVALID_ARGUMENT, f"cannot load {path} by its object graph: {type(error).__name__}: {error}"
        ) from error


def _meta_graph(path: str, tags: Sequence[str]) -> Any:
    for meta_graph in loader_impl.parse_saved_model(path).meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            return meta_graph
    raise ValueError(f"no graph has the tags {', '.join(tags)}")


def _called(loaded: Any, written: Any) -> Any:
    """Return a MetaGraphDef, without its graph, of calls of the signatures of `loaded` in the default graph.

    `written` is the MetaGraphDef of the file.
    """
    meta_graph = meta_graph_pb2.MetaGraphDef()
    for name, signature in written.signature_def.items():
        if name in OP_SIGNATURES or name not in loaded.signatures:
            continue
        entry = meta_graph.signature_def[name]
        entry.CopyFrom(signature)
        if any(info.WhichOneof("encoding") != "name" for info in (*entry.inputs.values(), *entry.outputs.values())):
            continue  # sparse: our protocols cannot carry it
        inputs = {
            # The name in the file, which GetModelMetadata reports.
            alias: tf.compat.v1.placeholder(info.dtype, tf.TensorShape(info.tensor_shape), info.name.partition(":")[0])
            for alias, info in signature.inputs.items()
        }
        outputs = loaded.signatures[name](**inputs)
        for infos, tensors in ((entry.inputs, inputs), (entry.outputs, outputs)):
            for alias, info in infos.items():
                info.name = tensors[alias].name
    return meta_graph


# -- variables without a value


def _on_load(found: Opened) -> list[str]:
    """Return the operations that the loader has run: the restore, and the initialiser."""
    with found.session.graph.as_default():
        initialise = loader_impl.get_init_op(found.meta_graph)
    names = [found.meta_graph.saver_def.restore_op_name, "" if initialise is None else initialise.name]
    return [name.partition(":")[0] for name in names if name]


def _held(reads: Reads, meta_graph: Any) -> dict[str, frozenset[str]]:
    """Return the variables that each signature depends on, by signature."""
    return {name: reads.variables(*_tensors(definition)) for name, definition in _served(meta_graph).items()}


def _lacking(
    found: Opened, reads: Reads, held: Mapping[str, frozenset[str]], suspects: Collection[str]
) -> Mapping[str, Mapping[str, Read]]:
    """Return for each signature those of the variables `suspects` without a value that it reads, or may read."""
    lacking: dict[str, dict[str, Read]] = {}
    without = unset(found.session, sorted(suspects))
    for name, definition in _served(found.meta_graph).items():
        uses = reads.of(held[name] & without, *_tensors(definition)) if held[name] & without else {}
        uses = {variable: read for variable, read in uses.items() if read.always or read.perhaps}
        if uses:
            lacking[name] = uses
    return lacking


def _served(meta_graph: Any) -> dict[str, Any]:
    return {name: entry for name, entry in meta_graph.signature_def.items() if name not in OP_SIGNATURES}


def _tensors(signature: Any) -> tuple[list[str], list[str]]:
    """Return the names of the tensors that are fed, and of those that are fetched."""
    feeds, fetches = (
        [
            name
            for info in infos.values()
            for name in (
                info.name,
                info.coo_sparse.values_tensor_name,
                info.coo_sparse.indices_tensor_name,
                info.coo_sparse.dense_shape_tensor_name,
            )
            if name
        ]
        for infos in (signature.inputs, signature.outputs)
    )
    return feeds, fetches


def _names(lacking: _Lacking) -> list[str]:
    return sorted({variable for reads in lacking.values() for variable in reads})


def _pairs(graph_def: Any, names: Collection[str], with_values: Collection[str]) -> dict[str, str]:
    """Return the copy of each of the variables `names` that has exactly one copy in `with_values`."""
    found = {
        name: [copy for copy in candidates if copy in with_values]
        for name, candidates in copies(graph_def, names).items()
    }
    return {name: candidates[0] for name, candidates in found.items() if len(candidates) == 1}


def _judged(found: Opened, lacking: _Lacking, path: str) -> Opened:
    """Return `found` with remarks on the signatures that lack values. Raise BackendError if no signature can run.

    A signature that reads a variable only in a branch, or sets it itself, may run.
    """
    if not lacking:
        return found
    broken = [name for name, reads in lacking.items() if any(read.cannot_be_unset for read in reads.values())]
    if len(broken) == len(_served(found.meta_graph)):
        raise BackendError(
            Code.FAILED_PRECONDITION,
            f"cannot load {path}: every signature reads variables that have no value after loading: "
            f"{_list_text(_names(lacking))}. Export the model so that they are saved: a Keras model by "
            "model.export(folder), another one with each variable as an attribute of the object that is saved",
        )
    remarks = [
        f"signature {name!r} {'reads' if name in broken else 'may read'} variables that have no value: "
        f"{_list_text(sorted(reads))}"
        for name, reads in lacking.items()
    ]
    return replace(found, remarks=(*found.remarks, *remarks))


def _told_of_copies(number: int) -> str:
    return (
        f"{number} variables had no value and got those of their copies: the model was written by tf.saved_model.save, "
        "which writes each variable of Keras 3 twice; model.export writes it once"
    )


def _list_text(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
