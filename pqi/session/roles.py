"""The names of the roles and how they map to the parties of a protocol."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.rounds import PartyId

SERVER_A = "server_a"
SERVER_B = "server_b"
DEALER = "dealer"
CLIENT = "client"

SERVERS: dict[PartyId, str] = {PartyId.P0: SERVER_A, PartyId.P1: SERVER_B}
PARTIES: dict[str, PartyId] = {role: party for party, role in SERVERS.items()}


def roles_of(parties: Sequence[PartyId], needs_dealer: bool) -> tuple[str, ...]:
    """Every role that a program needs, in the order in which they are started (who dials comes after who listens)."""
    servers = tuple(SERVERS[party] for party in sorted(parties, reverse=True))
    return (*servers, *((DEALER,) if needs_dealer else ()), CLIENT)
