"""The libraries of operators that TensorFlow lacks, for the error about a model that needs one.

The operators of each file were read from the packages named here (2026-11): TF-Text 2.21.1, Decision Forests 1.12.0
(ydf-tf 2.21.0 has the same), I/O 0.37.1, Addons 0.23.0, Struct2Tensor 0.48.1, tf-sentencepiece 0.1.90.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["OpLibrary", "explained", "library_of", "missing_text"]

_MAX_NAMED = 20  # the most operators that a message names

# `OpNotFound` in tensorflow/core/framework/op.cc: where it was looked for, and a remedy for TensorFlow 1.
_NOT_REGISTERED = re.compile(r"Op type not registered '([^']+)' in binary running on [^\n]*")


@dataclass(frozen=True, slots=True)
class OpLibrary:
    """A library of operators.

    `package` is its name on PyPI. `files` has the file in that package for each operator whose name is known;
    `prefixes` are the beginnings of the names of its other operators.
    """

    name: str
    package: str
    files: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    remark: str = ""


def _files(**ops: str) -> dict[str, str]:
    """Return the file of each operator, from each file's operators."""
    return {op: f"{file}.so" for file, names in ops.items() for op in names.split()}


_LIBRARIES = (
    OpLibrary(
        "TensorFlow Text",
        "tensorflow-text",
        _files(
            _boise_offset_converter="TFText>BoiseTagsToOffsets TFText>OffsetsToBoiseTags",
            _byte_splitter="TFText>ByteSplitByOffsets TFText>ByteSplitWithOffsets",
            _constrained_sequence_op="ConstrainedSequence",
            _fast_bert_normalizer="FastBertNormalize",
            _fast_sentencepiece_tokenizer="TFText>FastSentencepieceDetokenize TFText>FastSentencepieceTokenize",
            _fast_wordpiece_tokenizer="FastWordpieceTokenizeWithOffsets TFText>FastWordpieceDetokenize",
            _mst_ops="MaxSpanningTree",
            _ngrams_op="TFText>NgramsStringJoin",
            _normalize_ops="CaseFoldUTF8 FindSourceOffsets NormalizeUTF8 NormalizeUTF8WithOffsetsMap",
            _phrase_tokenizer="PhraseTokenize TFText>PhraseDetokenize",
            _regex_split_ops="RegexSplitWithOffsets",
            _sentence_breaking_ops="SentenceFragments",
            _sentencepiece_tokenizer="SentencepieceDetokenizeOp SentencepieceIdToStringOp SentencepieceOp "
            "SentencepieceStringToIdOp SentencepieceTokenizeOp SentencepieceTokenizeWithOffsetsOp "
            "SentencepieceVocabSizeOp",
            _split_merge_from_logits_tokenizer="TokenizerFromLogits",
            _split_merge_tokenizer="SplitMergeTokenizeWithOffsets",
            _state_based_sentence_breaker_op="SentenceFragmentsV2",
            _text_similarity_metric_ops="RougeL",
            _trimmer_ops="TFText>RoundRobinGenerateMasks TFText>RoundRobinTrim",
            _unicode_script_tokenizer="UnicodeScriptTokenizeWithOffsets",
            _utf8_binarize_op="TFText>Utf8Binarize",
            _whitespace_tokenizer="WhitespaceTokenizeWithOffsets",
            _whitespace_tokenizer_v2="TFText>WhitespaceTokenizeWithOffsetsV2",
            _wordpiece_tokenizer="WordpieceTokenizeWithOffsets",
        ),
        ("TFText>",),
    ),
    OpLibrary(
        "TensorFlow Decision Forests",
        # Its releases follow TensorFlow's; tensorflow-decision-forests ended with TensorFlow 2.19.
        "ydf-tf",
        _files(
            inference="SimpleMLCreateModelResource SimpleMLInferenceLeafIndexOpWithHandle SimpleMLInferenceOp "
            "SimpleMLInferenceOpWithHandle SimpleMLLoadModelFromPath SimpleMLLoadModelFromPathWithHandle"
        ),
        ("SimpleML",),
    ),
    OpLibrary(
        "TensorFlow I/O",
        "tensorflow-io",
        prefixes=("IO>",),
        remark="its release 0.37.1 is for TensorFlow 2.16",
    ),
    OpLibrary(
        "TensorFlow Addons",
        "tensorflow-addons",
        _files(
            _beam_search_ops="Addons>GatherTree",
            _correlation_cost_ops="Addons>CorrelationCost",
            _distort_image_ops="Addons>AdjustHsvInYiq",
            _embedding_bag_ops="Addons>EmbeddingBag",
            _image_ops="Addons>EuclideanDistanceTransform Addons>ImageConnectedComponents",
            _parse_time_op="Addons>ParseTime",
            _resampler_ops="Addons>Resampler",
            _skip_gram_ops="Addons>SkipGramGenerateCandidates",
        ),
        ("Addons>",),
        "its last release, 0.23.0, is for TensorFlow 2.15",
    ),
    OpLibrary(
        "Struct2Tensor",
        "struct2tensor",
        _files(
            _decode_proto_map_op="DecodeProtoMap DecodeProtoMapV2",
            _decode_proto_sparse_op="DecodeProtoSparseV2 DecodeProtoSparseV3 DecodeProtoSparseV4",
            _equi_join_any_indices_op="EquiJoinAnyIndices",
            _equi_join_indices_op="EquiJoinIndices",
            _parquet_dataset_op="ParquetDataset",
            _run_length_before_op="RunLengthBefore",
        ),
    ),
    OpLibrary(
        "SentencePiece's wrapper for TensorFlow",
        "tf-sentencepiece",
        dict.fromkeys(
            (
                *("SentencepieceDecode", "SentencepieceEncodeDense", "SentencepieceEncodeSparse"),
                *("SentencepieceGetPieceSize", "SentencepieceGetPieceType"),
                *("SentencepieceIdToPiece", "SentencepiecePieceToId"),
            ),
            "_sentencepiece_processor_ops.so",
        ),
        remark="its last release, 0.1.90, is for TensorFlow 2.2: export the model with TensorFlow Text's tokenizer",
    ),
    OpLibrary("TensorFlow Recommenders Addons", "tensorflow-recommenders-addons", prefixes=("TFRA>",)),
    OpLibrary("ScaNN", "scann", prefixes=("Scann>",)),
    OpLibrary("TensorFlow Quantum", "tensorflow-quantum", prefixes=("Tfq",)),
)


def library_of(op: str) -> OpLibrary | None:
    """Return the library that has the operator `op`; None if it is not known."""
    by_name = (library for library in _LIBRARIES if op in library.files)
    by_prefix = (library for library in _LIBRARIES if op.startswith(library.prefixes))
    return next(by_name, None) or next(by_prefix, None)


def missing_text(ops: Collection[str], tensorflow: str, exporter: str = "") -> str:
    """Return an error for a model that needs the unregistered operators `ops`: their libraries, and what to do.

    `tensorflow` is the version of this TensorFlow, `exporter` that of the one that wrote the model, if known.
    """
    ops = sorted(ops)
    parts = [f"Op type not registered {_listed(ops)}: {'it is' if len(ops) == 1 else 'they are'} not TensorFlow's own."]
    of_library: dict[str, list[str]] = {}
    for op in ops:
        library = library_of(op)
        of_library.setdefault("" if library is None else library.name, []).append(op)
    for library in _LIBRARIES:
        if found := of_library.get(library.name):
            files = sorted({library.files[op] for op in found if op in library.files})
            where = f" in {', '.join(files)}" if files and all(op in library.files for op in found) else ""
            remark = f"; {library.remark}" if library.remark else ""
            parts.append(f"{library.name} has {_listed(found)}{where} ({library.package} on PyPI{remark}).")
    if unknown := of_library.get(""):
        newer = f"; or TensorFlow {exporter}, which exported the model, has" if exporter not in ("", tensorflow) else ""
        parts.append(f"A library of custom operators has {_listed(unknown)}{newer}.")
    parts.append(
        f"Write the libraries' files, built for TensorFlow {tensorflow}, into the configuration: op_libraries = "
        '["/path/to/library.so"]'
    )
    return " ".join(parts)


def explained(message: str, tensorflow: str, missing: Callable[[], tuple[Iterable[str], str]] | None = None) -> str:
    """Return TensorFlow's `message`, with "Op type not registered" replaced by what we know about that operator.

    `missing` returns all unregistered operators of the model, and the exporter's version.
    """
    found = _NOT_REGISTERED.search(message)
    if found is None:
        return message
    others, exporter = ((), "") if missing is None else missing()
    return message[: found.start()] + missing_text({found[1], *others}, tensorflow, exporter) + message[found.end() :]


def _listed(ops: Collection[str]) -> str:
    named = ", ".join(f"'{op}'" for op in sorted(ops)[:_MAX_NAMED])
    return named + (f" and {len(ops) - _MAX_NAMED} more" if len(ops) > _MAX_NAMED else "")
