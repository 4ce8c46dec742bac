"""Settings of every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Read when ray and Flower are imported, which any test may be the first to do.
for name, value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(name, value)

# The first example of a property may compile kernels or load them; no property is about time.
settings.register_profile("pqi", deadline=None)
settings.load_profile("pqi")
