"""Secure sums in Flower: a mod for clients, an app for helpers, a strategy around the server's own."""

from __future__ import annotations

from pqi.federated.flower.mod import PrivateUpdates, helper_app, private_updates
from pqi.federated.flower.policy import PlanRefused, Policy
from pqi.federated.flower.record import RoundRecord
from pqi.federated.flower.strategy import Private

__all__ = ["PlanRefused", "Policy", "Private", "PrivateUpdates", "RoundRecord", "helper_app", "private_updates"]
