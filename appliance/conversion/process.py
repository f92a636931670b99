"""The process of a job: `converters.job`, beside what serves.

It has the key of the cache. Who runs models runs as the same user, so nobody may look into this process.
"""

from __future__ import annotations

from typing import NoReturn

from appliance.host.confinement import close_to_others
from appliance.host.processes import take_argument
from converters.child import yield_to_others
from converters.job import run
from converters.spec import Job


def main() -> NoReturn:
    """Run the `Job` that is this process's argument."""
    job = take_argument(Job)
    yield_to_others(job.spec.yielding)
    close_to_others()
    run(job)


if __name__ == "__main__":
    main()
