"""Renders metrics as text, in Prometheus's format 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format. There are two dialects: ours,
and that of TensorFlow Serving's `util/prometheus_exporter.cc`, which has no HELP, braces even without labels, and
bounds of six digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import orjson

from appliance.metrics import catalogue
from appliance.metrics.catalogue import METRICS, Metric, Page, Type

__all__ = [
    "CONTENT_TYPE",
    "TENSORFLOW_SERVING_CONTENT_TYPE",
    "Samples",
    "read_series",
    "render",
    "render_tensorflow",
    "with_sums",
]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TENSORFLOW_SERVING_CONTENT_TYPE = "text/plain"

# Metric → labels → values.
Samples = dict[str, dict[tuple[str, ...], tuple[float, ...]]]

_BY_NAME = {metric.name: metric for metric in METRICS}


def read_series(series: Mapping[bytes, tuple[float, ...]]) -> Samples:
    """Return the values that processes wrote, by metric and labels.

    Records that do not fit a metric are left out: a worker runs an untrusted model, which may write anything.
    """
    samples: Samples = {}
    for key, values in series.items():
        try:
            name, *labels = orjson.loads(key)
            metric = _BY_NAME[name]
        except (ValueError, LookupError, TypeError):
            continue
        if (
            len(labels) == len(metric.labels)
            and len(values) == metric.values
            and all(isinstance(label, str) for label in labels)
        ):
            samples.setdefault(name, {})[tuple(labels)] = values
    return samples


def render(samples: Samples) -> str:
    """Return the page /metrics."""
    lines: list[str] = []
    for metric in _of_page(Page.OWN):
        lines.append(f"# HELP {metric.name} {_escaped_help(metric.help)}")
        lines.append(f"# TYPE {metric.name} {metric.type.value}")
        for labels, values in sorted(samples.get(metric.name, {}).items()):
            shown = _labels(metric, labels)
            if metric.type is Type.HISTOGRAM:
                _histogram(lines, metric.name, shown, values, [_number(bound) for bound in metric.bounds])
            else:
                lines.append(f"{metric.name}{{{shown}}} {_number(values[0])}" if shown else _bare(metric, values))
    return "\n".join(lines) + "\n"


def render_tensorflow(samples: Samples) -> str:
    """Return TensorFlow Serving's page, which a monitoring_config_file turns on."""
    samples = with_sums(samples)
    lines: list[str] = []
    for metric in sorted(_of_page(Page.TENSORFLOW_SERVING), key=lambda metric: metric.name):
        lines.append(f"# TYPE {metric.name} {metric.type.value}")
        for labels, values in sorted(samples.get(metric.name, {}).items()):
            shown = _labels(metric, labels)
            if metric.type is Type.HISTOGRAM:
                _histogram(lines, metric.name, shown, values, [f"{bound:g}" for bound in metric.bounds])
            else:
                lines.append(f"{metric.name}{{{shown}}} {_number(values[0])}")
    return "\n".join(lines) + "\n"


def with_sums(samples: Samples) -> Samples:
    """Return `samples`, with the metrics of TensorFlow Serving that are sums of others."""
    requests: dict[tuple[str, ...], tuple[float, ...]] = {}
    for (_, model, method, code), (count,) in samples.get(catalogue.REQUESTS.name, {}).items():
        if method in catalogue.API:
            requests[model, code] = (requests.get((model, code), (0.0,))[0] + count,)
    runs = samples.get(catalogue.TF_RUNTIME_LATENCY.name, {}).values()
    sums: Samples = {catalogue.TF_REQUESTS.name: requests}
    if runs:
        sums[catalogue.TF_GRAPH_RUNS.name] = {(): (sum(sum(values[:-1]) for values in runs),)}
        sums[catalogue.TF_GRAPH_RUN_TIME.name] = {(): (sum(values[-1] for values in runs),)}
    return {**samples, **sums}


def _of_page(page: Page) -> list[Metric]:
    return [metric for metric in METRICS if metric.page is page]


def _bare(metric: Metric, values: tuple[float, ...]) -> str:
    return f"{metric.name} {_number(values[0])}"


def _histogram(lines: list[str], name: str, labels: str, values: tuple[float, ...], bounds: list[str]) -> None:
    total = 0.0
    start = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    for bound, count in zip([*bounds, "+Inf"], values, strict=False):  # the last value is the sum
        total += count
        lines.append(f'{start}le="{bound}"}} {_number(total)}')
    lines.append(f"{name}_sum{{{labels}}} {_number(values[-1])}")
    lines.append(f"{name}_count{{{labels}}} {_number(total)}")


def _labels(metric: Metric, values: tuple[str, ...]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(metric.labels, values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
