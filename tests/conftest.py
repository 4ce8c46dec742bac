"""Settings of every test."""

from __future__ import annotations

from hypothesis import settings

# The first example of a property may compile kernels or load them; no property is about time.
settings.register_profile("pqi", deadline=None)
settings.load_profile("pqi")
