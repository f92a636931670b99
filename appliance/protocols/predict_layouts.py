"""Remembers how PredictRequests are laid out: most differ from one before only in the elements of their tensors.

A request of the same size whose other bytes, all tags, sizes and names among them, are those of a known request needs
no reading: its elements lie at the same places.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from appliance.protocols.predict_messages import PredictEnvelope, open_predict_request
from appliance.protocols.tensor_protos import Elements

__all__ = ["PredictLayouts"]

_MAX_LAYOUTS = 256
_MAX_BYTES = 2048  # of a request beside its elements: clients choose them
_MAX_INPUTS = 32
_MODEL_SPEC = 0x0A  # the tag of PredictRequest's first field


class _Layout(NamedTuple):
    """Where a request's elements lie, by the input's name, and the bytes between them, by where they begin."""

    elements: dict[str, Elements]
    fixed: tuple[tuple[int, bytes], ...]
    envelope: PredictEnvelope


class _Recognised(PredictEnvelope):
    """A PredictRequest that is laid out as one before."""

    __slots__ = ("_data", "_elements")

    def __init__(self, data: bytes, layout: _Layout) -> None:
        known = layout.envelope
        self.spec = known.spec
        self.signature_name = known.signature_name
        self.output_filter = known.output_filter
        self.names = known.names
        self._data = data
        self._elements = layout.elements

    def arrays(self, grow: Callable[[int], object] = lambda _: None) -> dict[str, np.ndarray]:
        data = self._data
        return {
            name: np.frombuffer(data, dtype, size, start).reshape(shape)
            for name, (dtype, shape, start, size) in self._elements.items()
        }


class PredictLayouts:
    """The layouts of the requests that were opened last. For one thread."""

    def __init__(self) -> None:
        # By size and ModelSpec. The one that was remembered first comes first.
        self._layouts: OrderedDict[tuple[int, bytes], _Layout] = OrderedDict()

    def open(self, data: bytes) -> PredictEnvelope:
        """Return what `open_predict_request` returns, and raise what it raises."""
        key = _key_of(data)
        if key is None:
            return open_predict_request(data)
        layout = self._layouts.get(key)
        if layout is not None:
            for start, fixed in layout.fixed:
                if not data.startswith(fixed, start):
                    break
            else:
                return _Recognised(data, layout)
        envelope = open_predict_request(data)
        found = _layout_of(data, envelope)
        if found is not None:
            if layout is None and len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.popitem(last=False)
            self._layouts[key] = found
        return envelope


def _key_of(data: bytes) -> tuple[int, bytes] | None:
    """Return the size and the ModelSpec of a request that begins with a short one; None for others."""
    if len(data) < 2 or data[0] != _MODEL_SPEC or data[1] >= 0x80:
        return None
    return len(data), data[: 2 + data[1]]


def _layout_of(data: bytes, envelope: PredictEnvelope) -> _Layout | None:
    """Return the layout of the request `data`; None if its arrays are not just views of it, or it has too much else."""
    if len(envelope.names) > _MAX_INPUTS:
        return None
    elements = envelope.elements_in(data)
    if elements is None or len(data) - sum(found.nbytes for found in elements.values()) > _MAX_BYTES:
        return None
    fixed = []
    position = 0
    for found in sorted(elements.values(), key=lambda one: one.start):
        fixed.append((position, data[position : found.start]))
        position = found.start + found.nbytes
    if position < len(data):
        fixed.append((position, data[position:]))
    known = PredictEnvelope(envelope.spec, envelope.signature_name, {}, envelope.output_filter, 0)
    known.names = elements.keys()  # and not the request's bytes, which live only as long as it does
    return _Layout(elements, tuple(fixed), known)
