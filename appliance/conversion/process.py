"""The process of a job: `converters.job`, given the reader of the requests that were recorded for the version.

The reader is passed in because `converters` knows nothing of serving.
"""

from __future__ import annotations

from typing import NoReturn

from appliance.conversion.confining import confine_job
from appliance.host.processes import take_argument
from appliance.protocols.warmup_records import recorded_cases
from converters.child import yield_to_others
from converters.job import run
from converters.spec import JobSpec


def main() -> NoReturn:
    """Run the job whose `JobSpec` is this process's argument, beside what serves."""
    spec = take_argument(JobSpec)
    yield_to_others(spec.yielding)
    confine_job(spec.sandbox)
    run(spec, recorded_cases)


if __name__ == "__main__":
    main()
