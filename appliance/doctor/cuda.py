"""The process that `dropserve doctor` starts to see whether ONNX Runtime can use CUDA: it prints why not, or nothing.

The libraries are NVIDIA's and large: they may be slow, hang in a driver, or take their process down.
"""

from __future__ import annotations

import os
import sys

_PROVIDER = "libonnxruntime_providers_cuda.so"


def main() -> None:
    import onnxruntime  # noqa: PLC0415 - only this process may have its libraries

    from backends.onnx_session import why_no_cuda  # noqa: PLC0415

    provider = os.path.join(os.path.dirname(onnxruntime.__file__), "capi", _PROVIDER)
    missing = "" if os.path.exists(provider) else f"{_PROVIDER} is not installed"
    print(why_no_cuda("cuda") or missing, flush=True)
    sys.stderr.flush()
    os._exit(0)  # without the libraries' own ends


if __name__ == "__main__":
    main()
