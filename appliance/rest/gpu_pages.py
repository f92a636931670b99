"""GET /v1/gpu: what the supervisor knows of the GPUs, as JSON or as a table; and the same for metrics."""

from __future__ import annotations

import orjson

from appliance.core.errors import Code, ServingError
from appliance.gpu.values import GpuStatus, table
from appliance.inference.router import Router

__all__ = ["gpu_page", "gpu_status", "scraped_gpu_status"]

_SECONDS = 3.0
# A scrape does not wait for a driver that is slow: it shows what was known last.
_SCRAPE_SECONDS = 0.3
_ANSWER_SECONDS = 1.0  # of a supervisor that is busy


async def gpu_status(router: Router) -> GpuStatus:
    """The GPUs, or what was last known of them where the driver does not answer soon. Never raises."""
    try:
        return await _asked(router, _SECONDS)
    except ServingError as error:
        return GpuStatus(error=str(error))


async def scraped_gpu_status(router: Router) -> GpuStatus | None:
    """The same at once; None where nobody knows."""
    try:
        return await _asked(router, _SCRAPE_SECONDS)
    except ServingError:
        return None


async def _asked(router: Router, seconds: float) -> GpuStatus:
    return GpuStatus.from_json(await router.call("gpu", {"seconds": seconds}, seconds + _ANSWER_SECONDS))


def gpu_page(status: GpuStatus, wanted: str) -> tuple[bytes, str]:
    """The page in the format that is `wanted`, "json" or "text", and its type. Raises ServingError for another."""
    if wanted == "json":
        return orjson.dumps(status.to_json(), option=orjson.OPT_INDENT_2) + b"\n", "application/json"
    if wanted == "text":
        return table(status).encode(errors="replace"), "text/plain; charset=utf-8"
    raise ServingError(Code.INVALID_ARGUMENT, f"The format {wanted[:100]!r} is not known", "it is json or text")
