"""The values of metrics that a client names, for the answer of TensorFlow Serving's reload."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from appliance.metrics.catalogue import METRICS, Type
from appliance.metrics.file import MetricsFileError, collect
from appliance.metrics.text import read_series, with_sums

__all__ = ["metric_values"]

logger = logging.getLogger(__name__)

_SINGLE = frozenset(metric.name for metric in METRICS if metric.type is not Type.HISTOGRAM)


def metric_values(directory: str, names: Iterable[str]) -> dict[str, int]:
    """Return the sum of each metric over its labels, from the files in `directory`.

    Histograms and unknown metrics are 0, as in TensorFlow Serving. Its own names (`/tensorflow/core/graph_runs`) have
    slashes where its page has colons. If the files cannot be read, this is logged and the result is empty, because the
    reload matters more.
    """
    try:
        samples = with_sums(read_series(collect(directory).series))
    except (OSError, MetricsFileError) as error:
        logger.warning("a reload does not tell how metrics grew: %s", error)
        return {}
    values: dict[str, int] = {}
    for name in names:
        known = name.replace("/", ":")
        series = samples.get(known, {}).values() if known in _SINGLE else ()
        values[name] = round(sum(value for (value,) in series))
    return values
