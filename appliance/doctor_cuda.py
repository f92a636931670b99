"""The process that `dropserve doctor` starts to see whether ONNX Runtime can use CUDA: it prints why not, or nothing.

The libraries are NVIDIA's and large: they may be slow, hang in a driver, or take their process down.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    from backends.onnx_backend import why_no_cuda  # noqa: PLC0415 - only this process may have its libraries

    print(why_no_cuda("cuda") or "", flush=True)
    sys.stderr.flush()
    os._exit(0)  # without the libraries' own ends


if __name__ == "__main__":
    main()
