"""From any torch module to the float graph, through ``torch.export``."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from pqi.graph import aten_linear, aten_shape
from pqi.graph.errors import GraphError, PqiGraphError, Unsupported, UnsupportedOperator
from pqi.graph.floating import Entry, FloatGraph
from pqi.graph.importing import HANDLERS, Call, Comparison, Handler, Importer, Refusal, Value, long_place, operator_name

__all__ = ["aten_linear", "aten_shape", "capture"]

_SMOOTH = (
    "smooth activations have no exact integer form here yet: use relu, relu6, hardtanh, clamp or sign, and fine-tune "
    "(pqi.to_polynomial replaces them by squares, for protocols bfv and ckks); at the very end of a network leave it "
    "out and apply it to the decoded answer"
)
_ADVICE = {
    **dict.fromkeys(
        ("gelu", "silu", "sigmoid", "tanh", "elu", "mish", "softplus", "hardswish", "hardsigmoid"), _SMOOTH
    ),
    **dict.fromkeys(("leaky_relu", "prelu", "selu", "celu", "rrelu"), "use relu, relu6 or clamp, and fine-tune"),
    **dict.fromkeys(
        ("pow", "square"), "powers of values are for pqi.to_polynomial (protocols bfv and ckks), squares only"
    ),
    **dict.fromkeys(
        ("softmax", "log_softmax", "_softmax", "_log_softmax", "argmax"),
        "leave it out and apply it to the decoded answer: the client does that on its own",
    ),
    **dict.fromkeys(
        ("layer_norm", "group_norm", "instance_norm", "rms_norm"), "use batch norm, which becomes constants"
    ),
    **dict.fromkeys(("conv1d", "conv3d", "conv_transpose2d"), "use conv2d; reshape (N, C, L) to (N, C, 1, L)"),
    **dict.fromkeys(
        ("bmm", "baddbmm", "einsum", "scaled_dot_product_attention"), "only products with constants are supported"
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh"), "recurrent layers are not supported"),
    **dict.fromkeys(
        ("rand", "randn", "bernoulli", "rand_like", "randn_like"), "a network must be deterministic at inference"
    ),
}
_DEFAULT_ADVICE = (
    "express it with Linear, Conv2d, BatchNorm, ReLU, ReLU6, clamp, sign, max and average pooling, addition, "
    "concatenation and reshaping, or move it before or after the private part"
)


def capture(
    net: nn.Module | ExportedProgram, example: Tensor, handlers: Mapping[str, Handler] = MappingProxyType({})
) -> FloatGraph:
    """The float graph of ``net`` in evaluation mode.

    net: a module, or a program that was already exported. example: a batch (N >= 1) of the kind the network takes;
    only its shape and dtype matter. handlers: of operators that the caller has a form for, beyond or instead of the
    usual ones. The batch axis is free. The module is not changed.
    Raises UnsupportedOperator with every operator that has no integer form, its place and what to do.
    """
    program = net if isinstance(net, ExportedProgram) else _export(net, example)
    program = _without_mutation(program)
    constants = _constants(program)
    users = list(program.graph_signature.user_inputs)
    if len(users) != 1 or len(program.graph_signature.user_outputs) != 1:
        raise GraphError(
            f"the network has {len(users)} inputs and {len(program.graph_signature.user_outputs)} outputs: one each is "
            "supported. Wrap it in a module that takes one tensor and returns one."
        )
    return _import(program.graph_module.graph, constants, str(users[0]), {**HANDLERS, **handlers})


def _export(net: nn.Module, example: Tensor) -> ExportedProgram:
    if not isinstance(net, nn.Module):
        raise GraphError(f"the network is a {type(net).__name__}: a torch.nn.Module or an ExportedProgram is needed")
    batch = torch.cat([example[:1], example[:1]])
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own notices about its own internals
            try:
                return export(net, (batch,), dynamic_shapes=({0: Dim("batch")},), strict=False)
            except Exception as dynamic:  # the exporter has no common error class
                try:  # a network that fixes its batch size on the way still has a graph for one batch
                    return export(net, (batch,), strict=False)
                except Exception:
                    raise GraphError(
                        f"torch.export cannot trace this network on an input of shape {tuple(batch.shape)}: {dynamic}"
                    ) from dynamic
    finally:
        for module, mode in modes.items():
            module.training = mode


def _without_mutation(program: ExportedProgram) -> ExportedProgram:
    """The program with in-place operators made functional, where a mutated value is read again."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        changed = node.args[0] if schema is not None and schema.is_mutable and node.args else None
        if isinstance(changed, fx.Node) and (len(changed.users) > 1 or changed.op == "placeholder"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                functional: ExportedProgram = program.run_decompositions({})
            return functional
    return program


def _constants(program: ExportedProgram) -> dict[str, Tensor]:
    """Placeholder name -> tensor, for parameters, buffers and tensors written in the code."""
    signature = program.graph_signature
    names: Mapping[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    found = {}
    for placeholder, target in names.items():
        tensor = program.state_dict.get(target, program.constants.get(target))
        if isinstance(tensor, Tensor):
            found[placeholder] = tensor.detach().cpu()
    return found


def _import(
    graph: fx.Graph, constants: Mapping[str, Tensor], user_input: str, handlers: Mapping[str, Handler]
) -> FloatGraph:
    entry = next(n for n in graph.nodes if n.op == "placeholder" and n.name == user_input)
    seen = entry.meta["val"]
    importer = Importer(batch=str(seen.shape[0]))
    if seen.ndim < 2:
        raise GraphError(
            f"the network's input has shape {tuple(seen.shape)}: a batch axis and at least one more are needed"
        )
    importer.meaning[entry] = importer.add(Entry(tuple(int(n) for n in seen.shape[1:])), (), "input", "")
    result: Any = None
    for node in graph.nodes:
        if node.op == "placeholder":
            importer.meaning.setdefault(node, constants.get(node.name))
        elif node.op == "call_function":
            importer.meaning[node] = _translate(importer, node, handlers)
        elif node.op == "output":
            result = importer.meaning[node.args[0][-1]]
    if importer.refused:
        raise UnsupportedOperator(importer.refused)
    if isinstance(result, (list, tuple)) and len(result) == 1:
        result = result[0]
    if not isinstance(result, Value):
        raise GraphError("the network's output does not depend on its input, or is not a tensor of numbers")
    floats = FloatGraph(importer.nodes, result.name)
    floats.refresh()
    return floats


def _translate(importer: Importer, node: fx.Node, handlers: Mapping[str, Handler]) -> Any:
    """What one fx node stands for; a refusal is noted, and import goes on to find the others."""
    if not _is_tensor_valued(node):
        return None
    args, kwargs = _resolve(importer, node.args), _resolve(importer, dict(node.kwargs))
    if _mentions(args, _Doubtful) or _mentions(kwargs, _Doubtful):
        return _Doubtful()  # it reads something refused: telling of it again would be noise
    name = operator_name(node)
    try:
        if not _mentions(args, (Value, Comparison)) and not _mentions(kwargs, (Value, Comparison)):
            return _fold(node, args, kwargs)
        if node.target is operator.getitem:
            return _item(node, args[0], args[1])
        if name not in handlers:
            raise Refusal(_ADVICE.get(name, _DEFAULT_ADVICE))
        return handlers[name](Call(importer, node, _bind(node, args, kwargs)))
    except (Refusal, PqiGraphError) as refusal:
        shown = str(node.target).replace("<built-in function ", "").rstrip(">")
        importer.refused.append(Unsupported(shown, long_place(node), str(refusal)))
        return _Doubtful()


def _item(node: fx.Node, parts: Any, index: int) -> Any:
    """One of several results; those that have no integer form (such as the places of maxima) may only stay unused."""
    if index < len(parts):
        return parts[index]
    if node.users:
        raise Refusal("it uses a second result (such as the indices of a maximum): only the first one is supported")
    return None


class _Doubtful:
    """Stands for the result of a refused call."""


def _resolve(importer: Importer, value: Any) -> Any:
    """An fx argument with every node replaced by what it stands for."""
    if isinstance(value, fx.Node):
        return importer.meaning.get(value)
    if isinstance(value, (list, tuple)):
        return [_resolve(importer, v) for v in value]
    if isinstance(value, dict):
        return {k: _resolve(importer, v) for k, v in value.items()}
    return value


def _mentions(value: Any, kind: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_mentions(v, kind) for v in value)
    if isinstance(value, dict):
        return any(_mentions(v, kind) for v in value.values())
    return isinstance(value, kind)


def _is_tensor_valued(node: fx.Node) -> bool:
    seen = node.meta.get("val")
    return isinstance(seen, Tensor) or (isinstance(seen, (list, tuple)) and any(isinstance(v, Tensor) for v in seen))


def _fold(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """A call on constants alone is computed now."""
    if not callable(node.target) or (_mentions(args, type(None)) and "empty" in str(node.target)):
        raise Refusal(_DEFAULT_ADVICE)
    try:
        with torch.no_grad():
            return node.target(*args, **kwargs)
    except (TypeError, RuntimeError) as error:
        raise Refusal(f"it makes a tensor whose size depends on the batch or that is not constant ({error})") from error


def _bind(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the operator's schema, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(args):
            bound[argument.name] = args[index]
        else:
            bound[argument.name] = kwargs.get(argument.name, argument.default_value)
    return bound
