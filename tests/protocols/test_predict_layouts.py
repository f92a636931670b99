"""PredictRequests that are laid out as one before."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from appliance.core.errors import ServingError
from appliance.protocols import protos
from appliance.protocols.predict_layouts import PredictLayouts
from appliance.protocols.predict_messages import open_predict_request
from appliance.protocols.tensor_protos import encoded_tensor
from tests.support.official_protos import samples

SAMPLES = samples()


def request(model: str = "m", outputs: tuple[str, ...] = (), content: bool = True, **inputs: np.ndarray) -> bytes:
    message = protos.PredictRequest()
    message.model_spec.name = model
    message.output_filter.extend(outputs)
    for name, array in inputs.items():
        message.inputs[name].MergeFromString(b"".join(encoded_tensor(array, content)))
    return bytes(message.SerializeToString())


def opened(envelope: Any) -> tuple[Any, ...]:
    arrays = {
        name: (array.dtype, array.shape, array.tolist() if array.dtype == object else array.tobytes())
        for name, array in envelope.arrays().items()
    }
    return envelope.spec, envelope.signature_name, set(envelope.names), envelope.output_filter, arrays


def reads_the_same(*requests: bytes) -> None:
    """Each is read as if it were the first."""
    layouts = PredictLayouts()
    for data in requests:
        assert opened(layouts.open(data)) == opened(open_predict_request(data))


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("dtype", SAMPLES)
def test_other_elements_are_read_of_every_dtype(dtype: str, content: bool) -> None:
    array = SAMPLES[dtype]
    first, second = request(x=array, content=content), request(x=array[::-1].copy(), content=content)
    reads_the_same(first, second, first, second)


def test_several_inputs_and_outputs_keep_their_places() -> None:
    def of(seed: int) -> bytes:
        numbers = np.random.default_rng(seed)
        a, b = numbers.random((3, 2), np.float32), numbers.integers(-9, 9, 4, np.int64)
        return request(outputs=("y", "z"), a=a, b=b)

    reads_the_same(*map(of, range(4)))


def test_equally_long_requests_that_differ_elsewhere_are_told_apart() -> None:
    x = np.arange(6, dtype=np.float32)
    reads_the_same(
        request(x=x.reshape(2, 3)),
        request(x=x.reshape(3, 2)),
        request(z=x.reshape(3, 2)),
        request(x=x.view(np.int32).reshape(2, 3)),
        request(x=x.reshape(2, 3), model="n"),
        request(x=x.reshape(2, 3), outputs=("y",)),
        request(x=x.reshape(2, 3), outputs=("z",)),
        request(x=x.reshape(2, 3)),
    )


def test_an_empty_array_a_repeated_element_and_a_shorter_shape_are_read_anew() -> None:
    repeated = protos.PredictRequest()
    repeated.model_spec.name = "m"
    repeated.inputs["x"].dtype = 1
    repeated.inputs["x"].tensor_shape.dim.add(size=4)
    repeated.inputs["x"].float_val.extend([1.0, 2.0])
    shorter = protos.PredictRequest()
    shorter.CopyFrom(repeated)
    shorter.inputs["x"].tensor_shape.dim[0].size = 1
    empty = request(x=np.zeros((0, 3), np.float32))
    for data in (repeated.SerializeToString(), shorter.SerializeToString(), empty):
        reads_the_same(data, data)


def test_an_element_that_looks_like_a_field_changes_nothing() -> None:
    plain = np.zeros(4, np.uint8)
    odd = np.frombuffer(struct.pack("BBBB", 0x0A, 0x02, 0x12, 0x22), np.uint8)
    reads_the_same(request(x=plain), request(x=odd), request(x=plain))


def test_what_is_wrong_with_a_request_is_told_each_time() -> None:
    layouts = PredictLayouts()
    bad = request(x=np.array([True, False]))
    bad = bad[:-1] + b"\x07"
    for data in (request(x=np.array([True, True])), bad, bad):
        envelope = layouts.open(data)
        if data is bad:
            with pytest.raises(ServingError, match="neither 0 nor 1"):
                envelope.arrays()
    for data in (b"", b"\x0a", request(model=""), b"\xff\xff"):
        for _ in range(2):
            with pytest.raises(ServingError):
                layouts.open(data)


def test_arrays_are_views_of_their_own_request_and_many_layouts_pass() -> None:
    layouts = PredictLayouts()
    for size in range(1, 600):
        x = np.full(size, size, np.float32)
        data = request(x=x)
        for _ in range(2):
            array = layouts.open(data).arrays()["x"]
            assert np.shares_memory(array, np.frombuffer(data, np.uint8))
            assert (array == x).all()
