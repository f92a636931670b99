"""The process that everything else is a child of."""

from appliance.supervisor.server import Supervisor, check_start

__all__ = ["Supervisor", "check_start"]
