"""The process of a job: `converters.job`, told of the requests that were recorded for the version.

`converters` knows nothing of serving, so it is given what reads them.
"""

from __future__ import annotations

from appliance.protocols.warmup_records import recorded_cases
from converters.job import run

if __name__ == "__main__":
    run(recorded_cases)
