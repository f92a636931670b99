"""The process of a job: `converters.job`, given the reader of the requests that were recorded for the version.

It is passed in because `converters` knows nothing of serving.
"""

from __future__ import annotations

from appliance.protocols.warmup_records import recorded_cases
from converters.job import run

if __name__ == "__main__":
    run(recorded_cases)
