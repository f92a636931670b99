"""The process that verifies one folder's signature: it reads what others have written, and is lost if that is fatal.

It writes one JSON line to its standard output: `{"signer": text}`, or `{"refused": text, "missing": …}`.
"""

from __future__ import annotations

import datetime as dt
import json

from appliance.core.errors import ConfigError
from appliance.host.processes import set_name, take_argument
from appliance.signing.errors import SignatureError
from appliance.signing.model import verify_model
from appliance.signing.task import VerifyTask
from appliance.signing.trust import read_trust

__all__ = ["main"]


def main() -> None:
    """Verify what the `VerifyTask` that is this process's argument names."""
    task = take_argument(VerifyTask)
    set_name("ds-verify")
    line: dict[str, str | bool]
    try:
        line = {"signer": verify_model(task.path, read_trust(task.keys), dt.datetime.now(dt.UTC))}
    except SignatureError as error:
        line = {"refused": str(error), "missing": error.is_missing}
    except ConfigError as error:
        line = {"refused": f"model_signing_keys: {error}", "missing": False}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
