"""The examples of a request, as they are handed to a model."""

from __future__ import annotations

import pytest

from appliance.core.errors import ServingError
from appliance.protocols import protos
from appliance.protocols.example_inputs import examples_of


def example(**features: float) -> bytes:
    message = protos.Example()
    for name, value in features.items():
        message.features.feature[name].float_list.value.append(value)
    return bytes(message.SerializeToString())


def test_examples_are_taken_as_they_are() -> None:
    message = protos.SerializedInput()
    message.example_list.examples.extend([example(x=1), b"", example(y=2)])
    assert examples_of(message).array().tolist() == [example(x=1), b"", example(y=2)]


def test_a_context_is_in_every_example_and_yields_to_it() -> None:
    message = protos.SerializedInput()
    message.example_list_with_context.context.append(example(x=1, c=5))
    message.example_list_with_context.examples.extend([example(x=2), b""])
    read = [protos.Example.FromString(data).features.feature for data in examples_of(message).array()]
    assert [features["c"].float_list.value[:] for features in read] == [[5], [5]]
    assert [features["x"].float_list.value[:] for features in read] == [[2], [1]]


@pytest.mark.parametrize("kind", ["", "example_list", "example_list_with_context"])
def test_no_examples_are_refused(kind: str) -> None:
    message = protos.SerializedInput()
    if kind:
        getattr(message, kind).SetInParent()
    with pytest.raises(ServingError, match=r"^Input is empty\."):
        examples_of(message).check(1 << 20)


def test_a_context_that_multiplies_the_request_is_refused() -> None:
    message = protos.SerializedInput()
    message.example_list_with_context.context.append(bytes(1 << 20))
    message.example_list_with_context.examples.extend([b""] * 100)
    with pytest.raises(ServingError, match="repeated in 100 examples takes 104,857,600 bytes"):
        examples_of(message).check(64 << 20)
