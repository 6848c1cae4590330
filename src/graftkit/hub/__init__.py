"""How is it shared? `share(run, config)` checks a finished run's model and pushes it: see `push`."""

from graftkit.hub.config import HubConfig
from graftkit.hub.push import check_ready, push, share

__all__ = ["HubConfig", "check_ready", "push", "share"]
