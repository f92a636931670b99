"""The process that verifies what a form has answered: `converters.verifying`, beside what serves."""

from __future__ import annotations

from typing import NoReturn

from appliance.conversion.confining import confine_job
from appliance.host.processes import take_argument
from converters.child import yield_to_others
from converters.verifying import VerifyingSpec, run


def main() -> NoReturn:
    """Verify what the `VerifyingSpec` that is this process's argument asks for."""
    spec = take_argument(VerifyingSpec)
    yield_to_others(yielding=True)
    confine_job(spec.job.sandbox)
    run(spec)


if __name__ == "__main__":
    main()
