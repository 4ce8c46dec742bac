"""Federated learning with sums that hide each client: encoding, noise, and what carries them.

::

    encoding = Encoding(clip=1.0, mechanism=DistributedDiscreteGaussian(noise_multiplier=1.0))
    codec = encoding.codec(length=layout.length, clients=50, threshold=40)   # checked; the same at all parties
    values = codec.encode(layout.flatten(update)).values                     # a client's, into a secure sum
    decoded = codec.decode(total, included)                                  # the server's: the mean, never a summand
    record = Accountant(delta=1e-5).spend(codec)                             # (epsilon, delta) so far

An encoding makes ring vectors of updates and proves that their sum cannot wrap; ``protocols.get_sum`` sums them; the
server decodes the sum. In Flower it takes two lines::

    app = ClientApp(mods=[pqi.federated.private_updates()])             # a client; its train function stays as it is
    strategy = pqi.federated.Private(FedAvg(), aggregator="pairwise")   # the server; strategy.start(...) as before

Names are imported when first used, those of Flower (Python 3.11, the extra ``federated``) among them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqi.federated.codec import Codec, DecodedSum, Encoded
    from pqi.federated.coins import Coins
    from pqi.federated.encoding import Encoding
    from pqi.federated.errors import (
        EncodingError,
        FederatedError,
        MissingExtra,
        PrivacyError,
        SumRefused,
        WrapError,
    )
    from pqi.federated.flower.mod import helper_app, private_updates
    from pqi.federated.flower.policy import PlanRefused
    from pqi.federated.flower.record import RoundRecord
    from pqi.federated.flower.strategy import Private
    from pqi.federated.layout import Layout
    from pqi.federated.privacy.accounting import Accountant, Spent
    from pqi.federated.privacy.discrete_gaussian import DistributedDiscreteGaussian
    from pqi.federated.privacy.mechanism import Mechanism
    from pqi.federated.privacy.skellam import Skellam

_WHERE = {
    "Accountant": "pqi.federated.privacy.accounting",
    "Codec": "pqi.federated.codec",
    "Coins": "pqi.federated.coins",
    "DecodedSum": "pqi.federated.codec",
    "DistributedDiscreteGaussian": "pqi.federated.privacy.discrete_gaussian",
    "Encoded": "pqi.federated.codec",
    "Encoding": "pqi.federated.encoding",
    "EncodingError": "pqi.federated.errors",
    "FederatedError": "pqi.federated.errors",
    "Layout": "pqi.federated.layout",
    "Mechanism": "pqi.federated.privacy.mechanism",
    "MissingExtra": "pqi.federated.errors",
    "PlanRefused": "pqi.federated.flower.policy",
    "PrivacyError": "pqi.federated.errors",
    "Private": "pqi.federated.flower.strategy",
    "RoundRecord": "pqi.federated.flower.record",
    "Skellam": "pqi.federated.privacy.skellam",
    "Spent": "pqi.federated.privacy.accounting",
    "SumRefused": "pqi.federated.errors",
    "WrapError": "pqi.federated.errors",
    "helper_app": "pqi.federated.flower.mod",
    "private_updates": "pqi.federated.flower.mod",
}

__all__ = [
    "Accountant",
    "Codec",
    "Coins",
    "DecodedSum",
    "DistributedDiscreteGaussian",
    "Encoded",
    "Encoding",
    "EncodingError",
    "FederatedError",
    "Layout",
    "Mechanism",
    "MissingExtra",
    "PlanRefused",
    "PrivacyError",
    "Private",
    "RoundRecord",
    "Skellam",
    "Spent",
    "SumRefused",
    "WrapError",
    "helper_app",
    "private_updates",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names are {', '.join(__all__)}")
    try:
        value = getattr(import_module(_WHERE[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "flwr":
            raise
        from pqi.federated.errors import MissingExtra

        raise MissingExtra(
            f"pqi.federated.{name} needs Flower: pip install 'private-quantized-inference[federated]', on Python 3.11 "
            f"or later"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
