"""The process that does a job's work: `converters.working`, given the reader of the requests that were recorded, and
what confines its children.

Both are passed in because `converters` knows nothing of serving.
"""

from __future__ import annotations

from appliance.conversion.confining import confine_job
from appliance.protocols.warmup_records import recorded_cases
from converters.working import main as work


def main() -> None:
    """Do the work that the job asks for."""
    work(recorded_cases, lambda spec: confine_job(spec.sandbox))


if __name__ == "__main__":
    main()
