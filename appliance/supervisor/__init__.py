"""The root process: every other process is its child."""

from appliance.supervisor.server import Supervisor
from appliance.supervisor.start_checks import check_start

__all__ = ["Supervisor", "check_start"]
