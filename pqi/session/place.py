"""On which device a role computes: found, or refused with what there is, before anything of the role begins."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pqi.session.errors import SessionError
from pqi.session.roles import DEALER, SERVER_A, SERVER_B
from protocols import KEYED, devices
from protocols import get as get_protocol
from protocols.errors import BadParameters

_ROLES = (SERVER_A, SERVER_B, DEALER)


def place_of(name: str, protocol: str) -> torch.device:
    """The device called ``name`` for a role of ``protocol``. Raises SessionError if it is not there, or not for it."""
    try:
        device = devices.find(name)
    except BadParameters as error:
        raise SessionError(str(error)) from None
    offered = ("cpu",) if protocol in KEYED else get_protocol(protocol).device_kinds
    if device.type not in offered:
        raise SessionError(f"device {name!r}: protocol {protocol!r} computes on {', '.join(offered)} only")
    return device


def places_of(device: str | Mapping[str, str], protocol: str) -> dict[str, str]:
    """The device of every role of a deployment that is not on the processor: one name for all, or {role: name}.

    Raises SessionError for a role that computes nothing, and as :func:`place_of`.
    """
    named = dict.fromkeys(_ROLES, device) if isinstance(device, str) else dict(device)
    if strangers := sorted(set(named) - set(_ROLES)):
        raise SessionError(f"device of {strangers[0]!r}: devices are for {', '.join(_ROLES)}; the client needs none")
    return {role: name for role, name in named.items() if place_of(name, protocol).type != "cpu"}
