"""Private inference on quantized neural networks: exact to the bit.

::

    model = pqi.quantize(net, calibration=x)      # torch module -> exact integer model
    with pqi.local(model) as service:             # every role a process of its own, on this machine
        answer = service.predict(x)               # equals model.predict(x), bit for bit

Names are imported when first used: ``import pqi`` costs nothing and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqi.graph.errors import (
        CalibrationWarning,
        GraphError,
        InputError,
        ModelFileError,
        PqiGraphError,
        QuantizationError,
        RangeError,
        SaturationWarning,
        UnsupportedOperator,
    )
    from pqi.graph.model import IntegerModel
    from pqi.graph.polynomial import PolynomialModel
    from pqi.graph.store import load
    from pqi.net.errors import NetError
    from pqi.program import Program, compile  # noqa: A004 (the field's word)
    from pqi.program.errors import ProgramError
    from pqi.quant.api import quantize
    from pqi.quant.polynomial.api import to_polynomial
    from pqi.quant.quantizer import Quantizer
    from pqi.quant.scheme import Recipe, Scheme
    from pqi.quant.train.api import finetune
    from pqi.quant.train.loop import Schedule
    from pqi.quant.train.wrapping import Wrapping, wraparound
    from pqi.session.client import Answer, Client
    from pqi.session.errors import BundleError, QueryFailed, ServiceFailed, SessionError
    from pqi.session.local import local
    from pqi.session.owner import make_keys, split
    from pqi.tuning.api import tune
    from protocols.errors import ProtocolError

    __version__: str

_WHERE = {
    "Answer": "pqi.session.client",
    "BundleError": "pqi.session.errors",
    "CalibrationWarning": "pqi.graph.errors",
    "Client": "pqi.session.client",
    "GraphError": "pqi.graph.errors",
    "InputError": "pqi.graph.errors",
    "IntegerModel": "pqi.graph.model",
    "ModelFileError": "pqi.graph.errors",
    "NetError": "pqi.net.errors",
    "PolynomialModel": "pqi.graph.polynomial",
    "PqiGraphError": "pqi.graph.errors",
    "Program": "pqi.program",
    "ProgramError": "pqi.program.errors",
    "ProtocolError": "protocols.errors",
    "QuantizationError": "pqi.graph.errors",
    "Quantizer": "pqi.quant.quantizer",
    "QueryFailed": "pqi.session.errors",
    "RangeError": "pqi.graph.errors",
    "Recipe": "pqi.quant.scheme",
    "SaturationWarning": "pqi.graph.errors",
    "Schedule": "pqi.quant.train.loop",
    "Scheme": "pqi.quant.scheme",
    "ServiceFailed": "pqi.session.errors",
    "SessionError": "pqi.session.errors",
    "UnsupportedOperator": "pqi.graph.errors",
    "Wrapping": "pqi.quant.train.wrapping",
    "compile": "pqi.program",
    "finetune": "pqi.quant.train.api",
    "load": "pqi.graph.store",
    "local": "pqi.session.local",
    "make_keys": "pqi.session.owner",
    "quantize": "pqi.quant.api",
    "split": "pqi.session.owner",
    "to_polynomial": "pqi.quant.polynomial.api",
    "tune": "pqi.tuning.api",
    "wraparound": "pqi.quant.train.wrapping",
}

__all__ = [
    "Answer",
    "BundleError",
    "CalibrationWarning",
    "Client",
    "GraphError",
    "InputError",
    "IntegerModel",
    "ModelFileError",
    "NetError",
    "PolynomialModel",
    "PqiGraphError",
    "Program",
    "ProgramError",
    "ProtocolError",
    "QuantizationError",
    "Quantizer",
    "QueryFailed",
    "RangeError",
    "Recipe",
    "SaturationWarning",
    "Schedule",
    "Scheme",
    "ServiceFailed",
    "SessionError",
    "UnsupportedOperator",
    "Wrapping",
    "__version__",
    "compile",
    "finetune",
    "load",
    "local",
    "make_keys",
    "quantize",
    "split",
    "to_polynomial",
    "tune",
    "wraparound",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names are {', '.join(__all__)}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("private-quantized-inference")
    except PackageNotFoundError:
        return "0+source"  # a source tree that was never installed has no version
