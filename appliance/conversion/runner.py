"""The process that runs a converted form for a job: `converters.runner`, which confines itself before it loads the
form."""

from __future__ import annotations

import os

import msgspec

from appliance.conversion.confining import ENVIRONMENT, confine_child
from backends.registry import prepare
from converters import runner
from converters.child import Access


def main() -> None:
    """Serve the job that has started this process, confined as its environment says."""
    mode, _, access = os.environ.pop(ENVIRONMENT).partition(" ")

    def enter() -> None:
        prepare("onnx")
        confine_child(msgspec.json.decode(access, type=Access), mode)

    runner.main(enter)


if __name__ == "__main__":
    main()
