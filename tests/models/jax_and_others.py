"""SavedModels that other tools than TensorFlow and Keras write: JAX, Orbax, YDF, TF-Text.

Only the tools' own virtual environment imports them (tests/models/requirements.lock).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.model import Group, floats, uniform, words

GROUP = Group("JAX, Orbax, YDF, TF-Text", environment="requirements")
_model = GROUP.model


@_model("`jax2tf.convert`, then `tf.saved_model.save`", inputs={"x": floats(4)})
def jax2tf(tf: Any, out: str) -> None:
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    from jax.experimental import jax2tf as converter  # noqa: PLC0415

    w = np.asarray(jax.random.normal(jax.random.PRNGKey(1), (4, 3)))
    module = tf.Module()
    module.w = tf.Variable(w)
    # Operations of TensorFlow, as models of earlier releases have them; xla_call_module is the default since 2023.
    converted = converter.convert(
        lambda w, x: jnp.tanh(x @ w), polymorphic_shapes=[None, "(b, ...)"], with_gradient=False
    )
    specs = [tf.TensorSpec([None, 4], tf.float32, "x")]
    function = tf.function(lambda x: {"y": converted(module.w, x)}).get_concrete_function(*specs)
    tf.saved_model.save(module, out, signatures=function)


@_model("Orbax: `JaxModule`, `ServingConfig`, `ExportManager.save`", inputs={"inputs": floats(4)})
def orbax_export(tf: Any, out: str) -> None:
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    from orbax.export import ExportManager, JaxModule, ServingConfig  # noqa: PLC0415

    params = {"w": jax.random.normal(jax.random.PRNGKey(1), (4, 3)), "b": jnp.ones(3)}
    module = JaxModule(
        params,
        lambda params, x: {"scores": jax.nn.softmax(x @ params["w"] + params["b"])},
        input_polymorphic_shape="b, ...",
    )
    serving = ServingConfig("serving_default", input_signature=[tf.TensorSpec([None, 4], tf.float32, name="inputs")])
    ExportManager(module, [serving]).save(out)


@_model(
    "YDF: `model.to_tensorflow_saved_model(path)`, its own operators",
    refused=r"Op type not registered|SimpleML|has the op",
)
def ydf_saved_model(tf: Any, out: str) -> None:
    _ydf().to_tensorflow_saved_model(out, mode="tf")


@_model(
    "YDF: `model.to_jax_function()`, then `jax2tf`: no operators of its own", inputs={"a": uniform(), "b": uniform()}
)
def ydf_by_jax(tf: Any, out: str) -> None:
    from jax.experimental import jax2tf as converter  # noqa: PLC0415

    predict = _ydf().to_jax_function().predict
    converted = converter.convert(predict, polymorphic_shapes=["(b)"], with_gradient=False)
    specs = [tf.TensorSpec([None], tf.float32, name) for name in ("a", "b")]
    function = tf.function(lambda a, b: {"y": converted({"a": a, "b": b})}).get_concrete_function(*specs)
    tf.saved_model.save(tf.Module(), out, signatures=function)


def _ydf() -> Any:
    import ydf  # noqa: PLC0415

    rng = np.random.default_rng(8)
    table = {"a": rng.uniform(size=300).astype("float32"), "b": rng.uniform(size=300).astype("float32")}
    table["y"] = 3.0 * table["a"] + np.sin(6.0 * table["b"])
    learner = ydf.GradientBoostedTreesLearner(label="y", task=ydf.Task.REGRESSION, num_trees=10)
    return learner.train(table, verbose=0)


@_model("TF-Text: `WhitespaceTokenizer`", refused=r"Op type not registered|has the op")
def tf_text_tokens(tf: Any, out: str) -> None:
    import tensorflow_text as text  # noqa: PLC0415

    tokenizer = text.WhitespaceTokenizer()
    specs = [tf.TensorSpec([None], tf.string, "text")]
    tokens = tf.function(lambda text: {"tokens": tokenizer.tokenize(text).to_tensor("")}).get_concrete_function(*specs)
    tf.saved_model.save(tf.Module(), out, signatures=tokens)


@_model("TF-Text: `BertTokenizer` before an `Embedding`", refused=r"Op type not registered|has the op")
def tf_text_bert(tf: Any, out: str) -> None:
    import tensorflow_text as text  # noqa: PLC0415

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "sat", "dog"]
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(vocabulary, tf.range(len(vocabulary), dtype=tf.int64)), 1
    )
    module = tf.Module()
    module.tokenizer = text.BertTokenizer(table)
    module.vectors = tf.Variable(tf.random.stateless_normal([len(vocabulary) + 1, 4], [1, 2]))

    def embedded(text: Any) -> dict[str, Any]:
        ids = module.tokenizer.tokenize(text).merge_dims(-2, -1).to_tensor(0)
        return {"mean": tf.reduce_mean(tf.gather(module.vectors, ids), axis=1)}

    function = tf.function(embedded).get_concrete_function(tf.TensorSpec([None], tf.string, "text"))
    tf.saved_model.save(module, out, signatures=function)


_TEXT = "tensorflow_text/python/ops"
_SENTENCES = words("the cats sat", "a dog", "", "dogs  and\tcats")


@_model(
    "the same, with `op_libraries`",
    inputs={"text": _SENTENCES},
    libraries=(f"{_TEXT}/_whitespace_tokenizer_v2.so", f"{_TEXT}/_whitespace_tokenizer.so"),
)
def tf_text_tokens_with_library(tf: Any, out: str) -> None:
    tf_text_tokens(tf, out)


@_model(
    "the same, with `op_libraries`",
    inputs={"text": _SENTENCES},
    libraries=tuple(f"{_TEXT}/_{name}.so" for name in ("normalize_ops", "regex_split_ops", "wordpiece_tokenizer")),
)
def tf_text_bert_with_library(tf: Any, out: str) -> None:
    tf_text_bert(tf, out)


@_model(
    "YDF's own operators, with `op_libraries` (ydf-tf)",
    inputs={"a": uniform(), "b": uniform()},
    libraries=("ydf_tf/inference.so",),
)
def ydf_with_library(tf: Any, out: str) -> None:
    ydf_saved_model(tf, out)
