"""Serialized tensorflow.Examples that a model can parse, learned from the errors about those that it cannot.

A signature says only that it takes strings. TensorFlow's parser names the first feature that is missing, with its type,
and, if the number of values is wrong, the shape (`tensorflow/core/util/example_proto_fast_parsing.cc`). So each error
tells of one required feature. Optional features are left out.
"""

from __future__ import annotations

import math
import re

import numpy as np

from appliance.protocols import protos

__all__ = ["LearnedExamples"]

_MISSING = re.compile(r"Feature: (.+?) \(data type: (float|int64|string)\) is required but could not be found")
_COUNT = re.compile(r"Key: (.+?), Index: \d+\.\s+Number of \w+ values != expected\.\s+[Vv]alues size: \d+ but "
                    r"output shape: \[([\d,\s]+)\]")  # fmt: skip
_MAX_FEATURES = 1000
_MAX_VALUES = 1 << 20  # of all features together
_WORDS = (b"", b"0", b"1", b"-1.5", b"a", b"alpha", b"Zz", b"\xc3\xa9", b"the quick brown fox")


class LearnedExamples:
    """The features that a model is known to require so far."""

    def __init__(self) -> None:
        self._features: dict[str, tuple[str, int]] = {}  # name → type and number of values

    def __bool__(self) -> bool:
        return bool(self._features)

    def learn(self, message: str) -> bool:
        """Learn from the message of an error; return whether it told something new, so that another try is worth it."""
        if missing := _MISSING.search(message):
            name, kind = missing.groups()
            if name in self._features or len(self._features) >= _MAX_FEATURES:
                return False
            self._features[name] = kind, 1
            return True
        if found := _COUNT.search(message):
            name, shape = found.groups()
            count = math.prod(int(size) for size in shape.split(","))
            known = self._features.get(name)
            others = sum(values for _, values in self._features.values())
            if known is None or known[1] == count or others + count > _MAX_VALUES:
                return False
            self._features[name] = known[0], count
            return True
        return False

    def example(self, seed: int) -> bytes:
        """Return a serialized Example with random values: floats in [0, 1), integers from 0 to 9, short strings."""
        random = np.random.Generator(np.random.PCG64(seed))
        message = protos.Example()
        for name, (kind, count) in sorted(self._features.items()):
            feature = message.features.feature[name]
            if kind == "float":
                feature.float_list.value.extend(random.random(count, np.float32).tolist())
            elif kind == "int64":
                feature.int64_list.value.extend(random.integers(10, size=count).tolist())
            else:
                feature.bytes_list.value.extend(_WORDS[i] for i in random.integers(len(_WORDS), size=count))
        return bytes(message.SerializeToString(deterministic=True))
