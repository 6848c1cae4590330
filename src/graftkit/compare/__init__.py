"""Is this run better than that one?

Reads what runs said of the same test rows, and nothing else: it needs no model, and works on runs made last month, on
pulled ones, and on the folders of `graft evaluate`. The first is the reference; the others are held against it.
"""

from graftkit.compare.page import compare

__all__ = ["compare"]
