"""What can go wrong in a protocol, and whose fault it is.

::

    ProtocolError
    ├── Misuse             I called this wrongly: a bug on this side, nothing was sent
    ├── BadParameters      the numbers asked for cannot work; raised before anything runs
    ├── PeerMisbehaved     what another party sent breaks the protocol; its words are not trusted further
    ├── BelowThreshold     too few clients are left for a sum that hides each of them; nothing was learnt
    ├── NoiseExhausted     a ciphertext has decayed; no answer rather than a wrong one
    └── MaterialExhausted  the one-time material is used up; ask the dealer for more
"""


class ProtocolError(Exception):
    """Root of every error that the cryptography raises. Messages never contain a secret."""


class Misuse(ProtocolError):
    """The caller broke this library's contract: wrong shape, wrong ring, a step run twice."""


class BadParameters(ProtocolError):
    """Parameters that cannot give a correct and secure run; the message names each one, its value and its bound."""


class PeerMisbehaved(ProtocolError):
    """Another party sent something that the protocol does not allow (length, kind or order of a message)."""


class BelowThreshold(ProtocolError):
    """Too few clients are left for a sum that hides each of them; the run ends, and nothing was learnt."""


class NoiseExhausted(ProtocolError):
    """A ciphertext has no noise budget left: what it decrypts to means nothing, and no answer is given."""


class MaterialExhausted(ProtocolError):
    """No dealt material is left for the items asked for; nothing was consumed."""
