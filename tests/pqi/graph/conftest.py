"""Examples are found as fast as the machine allows: no test fails for being slow."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("pqi", deadline=None)
settings.load_profile("pqi")
