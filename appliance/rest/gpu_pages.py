"""GET /v1/gpu: the supervisor's view of the GPUs, as JSON or as a table; and the same for metrics."""

from __future__ import annotations

import msgspec

from appliance.core.errors import Code, ServingError
from appliance.gpu.values import GpuStatus, table
from appliance.inference.router import Router
from appliance.rest.documents import json_document

__all__ = ["gpu_page", "gpu_status", "scraped_gpu_status"]

_SECONDS = 3.0
# A scrape does not wait for a slow driver: it shows the last known values.
_SCRAPE_SECONDS = 0.3
_ANSWER_SECONDS = 1.0  # extra time for a busy supervisor


async def gpu_status(router: Router) -> GpuStatus:
    """Return the GPUs' status, or the last known status if the driver is slow.

    Never raise: an error is in the result.
    """
    try:
        return await _asked(router, _SECONDS)
    except ServingError as error:
        return GpuStatus(error=str(error))


async def scraped_gpu_status(router: Router) -> GpuStatus | None:
    """Return the same after at most 0.3 s of waiting for the driver; None if the supervisor does not answer."""
    try:
        return await _asked(router, _SCRAPE_SECONDS)
    except ServingError:
        return None


async def _asked(router: Router, seconds: float) -> GpuStatus:
    status = await router.call("gpu", {"seconds": seconds}, seconds + _ANSWER_SECONDS)
    return msgspec.convert(status, GpuStatus)


def gpu_page(status: GpuStatus, wanted: str) -> tuple[bytes, str]:
    """Return the page in the format `wanted`, "json" or "text", and its content type. Raise ServingError for others."""
    if wanted == "json":
        return json_document(status), "application/json"
    if wanted == "text":
        return table(status).encode(errors="replace"), "text/plain; charset=utf-8"
    raise ServingError(Code.INVALID_ARGUMENT, f"The format {wanted[:100]!r} is not known", "it is json or text")
