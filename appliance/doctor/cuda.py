"""The process in which `dropserve doctor` tries CUDA with ONNX Runtime: it prints why that fails, or nothing.

NVIDIA's libraries are large: they may be slow, hang in a driver, or crash their process.
"""

from __future__ import annotations

import os
import sys

_PROVIDER = "libonnxruntime_providers_cuda.so"


def main() -> None:
    """Print why ONNX Runtime cannot use CUDA, or nothing, and exit."""
    import onnxruntime  # noqa: PLC0415 - only this process may load its libraries

    from backends.onnx_session import why_no_cuda  # noqa: PLC0415

    provider = os.path.join(os.path.dirname(onnxruntime.__file__), "capi", _PROVIDER)
    missing = "" if os.path.exists(provider) else f"{_PROVIDER} is not installed"
    print(why_no_cuda("cuda") or missing, flush=True)
    sys.stderr.flush()
    os._exit(0)  # skip the libraries' own shutdown


if __name__ == "__main__":
    main()
