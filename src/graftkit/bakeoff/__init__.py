"""Which way of adapting?

Runs the arms under one time budget, the better half going on each time, and asks test of the recommended one alone.
"""

from graftkit.bakeoff.contest import bakeoff

__all__ = ["bakeoff"]
