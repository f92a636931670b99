"""The process that everything else is a child of."""

from appliance.supervisor.server import Supervisor

__all__ = ["Supervisor"]
