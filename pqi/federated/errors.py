"""What can go wrong between a client's update and the sum that the server decodes; every message says what to do.

::

    FederatedError
    ├── EncodingError    fields that cannot work together, an update of the wrong shape, or one with NaN or infinity
    ├── WrapError        the sum of the clients' codes (and of the noise) could leave the ring
    ├── SumRefused       a sum that was not made of encodings of this round: lengths, counts or weights contradict it
    ├── PrivacyError     noise, delta or a number of survivors for which no privacy statement holds
    └── MissingExtra     a package of the extra ``federated`` is not installed
"""

from __future__ import annotations


class FederatedError(Exception):
    """Root of the errors of ``pqi.federated``. Messages never contain a client's values."""


class EncodingError(FederatedError, ValueError):
    """A field or an update that cannot be encoded; the message names it, its value and its bound."""


class WrapError(FederatedError, ValueError):
    """Too many clients, too much noise or too few bits: the message names the sum's bound and the ring's."""


class SumRefused(FederatedError, ValueError):
    """The vector to decode is not a sum of this round's encodings; nothing of it is used."""


class PrivacyError(FederatedError, ValueError):
    """No privacy statement holds for these numbers; the message names the number and its bound."""


class MissingExtra(FederatedError, ImportError):
    """An optional package is needed here; the message names the extra that installs it."""
