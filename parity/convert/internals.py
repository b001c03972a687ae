"""The internals of the pinned converter that composing needs, all in this file; a test holds them to what is expected.

``lower`` takes one stage from PyTorch to a ``.tflite`` graph of its own whose weights are inputs, so that the graph is
the same for every layer: in the converter they are constants without contents, which nothing can look into, and become
arguments of the function when everything is in the runtime's operators.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from litert_converter.mlir import ir, passmanager
from litert_converter.mlir._mlir_libs import converter_api_ext
from litert_converter.mlir.dialects import arith, func
from litert_torch._convert import core
from litert_torch._convert.litert_converter import LazyModelExporter
from litert_torch._convert.signature import Signature
from litert_torch.backend import export, export_utils, inline_consts
from litert_torch.backend.jax_bridge._wrap import JaxBridgeLoweringCache
from litert_torch.backend.lowerings.context import LoweringContext
from torch import Tensor, nn

import parity.convert.lowerings  # noqa: F401  (teaches the converter this project's operators)
from parity.convert.timings import Timings
from parity.errors import RungError

#: Marks an input of a lowered graph that is a weight.
WEIGHT = "weight:"
_NAME = "stage"
#: Stands in for the contents of every weight, whatever its size: the converter never reads them.
_NOTHING = memoryview(bytearray(16))
#: What stands in a printed module for contents that are too large to print.
_ELIDED = "__elided__"


@dataclass(frozen=True)
class Lowered:
    """A graph with one signature, as a file's bytes; ``outputs`` are samples of what it makes, without contents.

    Its inputs are those of the module and, under ``WEIGHT`` and their names, the parameters that it reads.
    """

    content: bytes
    outputs: Mapping[str, Tensor]


class Lowering:
    """Lowers modules, one after the other, in one context of the converter."""

    def __init__(self, timings: Timings) -> None:
        self._context = export_utils.create_ir_context()
        self._operators = _Operators(self._context)
        self._timings = timings

    def lower(self, module: nn.Module, inputs: dict[str, Tensor]) -> Lowered:
        """``module(**inputs)`` returns named outputs; ``inputs`` are samples, of which only shape and dtype matter.

        Raises:
            RungError: the converter gave something else than this project knows how to take apart.
        """
        signature = Signature(_NAME, module.eval(), (), inputs)
        with self._timings.spent("tracing"):
            program = core._run_convert_passes(core.export_torch_signature(signature, run_decompositions=False))  # noqa: SLF001
        outputs = {
            name: torch.empty(made.shape, dtype=made.dtype, device="meta")
            for name, made in zip(_output_names(program), _made(program), strict=True)
        }
        with self._timings.spent("lowering"):
            lowered = export.exported_program_to_mlir(
                program,
                ir_context=self._context,
                lowering_context_plugins=[JaxBridgeLoweringCache(_OperatorsOfModule(self._operators))],
                inline_constants=False,
            )
            with self._context, ir.Location.unknown():
                weights = self._fix_constants(lowered, dict(module.named_parameters(remove_duplicate=False)))
        with self._timings.spent("the converter's passes"):
            converter_api_ext.set_signature(
                lowered.module.operation,
                signature_name=_NAME,
                input_names=signature.flat_arg_names,
                output_names=list(outputs),
            )
            merged = converter_api_ext.merge_modules([lowered.module])
            with self._context, ir.Location.unknown():
                converter_api_ext.run_convert_to_tfl_passes(merged, passmanager.PassManager(), _configuration())
                _weights_to_arguments(merged, weights)
            return Lowered(LazyModelExporter(module=merged).to_bytes(), outputs)

    def _fix_constants(self, lowered: Any, parameters: Mapping[str, Tensor]) -> dict[str | None, str]:
        """Arguments of the function that no caller gives become constants: parameters empty, all else as it is.

        Returns the parameters' names by those that the converter has given to their contents.
        """
        weights: dict[str | None, str] = {}
        copies: list[Tensor] = []
        function = _functions(lowered.module)["main"]
        given = [each.input_spec.is_user_input for each in lowered.input_signature]
        context = LoweringContext(self._context, lowered.module)
        context.add_plugin(inline_consts.InlineConstsContext())
        with ir.InsertionPoint.at_block_begin(function.entry_block):
            for argument, each in zip(list(function.arguments), lowered.input_signature, strict=True):
                name = each.input_spec.name
                if each.input_spec.is_user_input:
                    continue
                if name in parameters:
                    empty = ir.DenseResourceElementsAttr.get_from_buffer(_NOTHING, name, argument.type)
                    weights[_resource(empty)] = name
                    constant = arith.ConstantOp(argument.type, empty).results[0]
                else:
                    # Copied, for infinities are replaced in place; kept, for an address stands for what is there.
                    copies.append(lowered.state_dict[name].clone())
                    constant = inline_consts.tensor_lowering_placeholder_lowering(context, copies[-1])
                argument.replace_all_uses_with(constant)
        for place in reversed([place for place, by_caller in enumerate(given) if not by_caller]):
            function.entry_block.erase_argument(place)
        _retype(function)
        return weights


class _Operators:
    """Operators as the converter has lowered them by way of JAX, each with what it was given, for all modules.

    The converter remembers them for one module; half of its time would go to lowering again what another had as well.
    """

    def __init__(self, context: ir.Context) -> None:
        with context, ir.Location.unknown():
            self.module = ir.Module.create()
        self.functions: dict[Hashable, Any] = {}


class _OperatorsOfModule:
    """The functions of a module under construction, which the converter asks for by what an operator is given."""

    def __init__(self, operators: _Operators) -> None:
        self._operators = operators
        self._functions: dict[Hashable, Any] = {}

    def get(self, given: Hashable, default: Any = None) -> Any:
        """The function, copied into the module if only another has it yet."""
        key = _exactly(given)
        if key not in self._functions and key in self._operators.functions:
            module = _module_under_construction()
            self._functions[key] = _copied(self._operators.functions[key], module.regions[0].blocks[0])
        return self._functions.get(key, default)

    def __setitem__(self, given: Hashable, function: Any) -> None:
        key = _exactly(given)
        self._functions[key] = function
        self._operators.functions[key] = _copied(function, self._operators.module.body)


def _exactly(given: Hashable) -> Hashable:
    """Equal only for what is also written alike, as ``1`` and ``1.0`` are not, nor ``0.0`` and ``-0.0``."""
    return given, repr(given)


def _copied(function: Any, block: Any) -> Any:
    with ir.InsertionPoint.at_block_begin(block):
        return function.clone()


def _module_under_construction() -> Any:
    operation = ir.InsertionPoint.current.block.owner
    while operation.name != "builtin.module":
        operation = operation.parent
    return operation


def _configuration() -> Any:
    """As the converter's own way has it."""
    config = converter_api_ext.ConvertToTFLConfig()
    config.model_origin_framework = "PYTORCH"
    config.unsafe_fuse_dynamic_shaped_broadcast = True
    config.canonicalizing_inf_as_min_max_float = False
    config.enable_x64 = False
    return config


def _weights_to_arguments(module: Any, weights: Mapping[str | None, str]) -> None:
    """Every constant without contents becomes an argument of the signature's function, named as a weight."""
    function = _functions(module)[_NAME]
    block = function.entry_block
    attributes = list(function.arg_attrs)
    names = []
    for operation in list(block.operations):
        if operation.operation.name != "arith.constant":
            continue
        value = operation.operation.attributes["value"]
        if (resource := _resource(value)) is None:
            continue
        name = WEIGHT + weights[resource]
        argument = block.add_argument(operation.operation.results[0].type, ir.Location.unknown())
        operation.operation.results[0].replace_all_uses_with(argument)
        operation.operation.erase()
        path = ir.ArrayAttr.get([ir.StringAttr.get(name)])
        attributes.append(ir.DictAttr.get({"tf_saved_model.index_path": path}))
        names.append(name)
    _retype(function)
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(attributes)
    entry = ir.DictAttr(function.attributes["tf.entry_function"])
    inputs = ",".join(filter(None, [ir.StringAttr(entry["inputs"]).value, *names]))
    function.attributes["tf.entry_function"] = ir.DictAttr.get(
        {"inputs": ir.StringAttr.get(inputs), "outputs": entry["outputs"]}
    )
    module.operation.verify()
    text = module.operation.get_asm(large_elements_limit=1).partition("{-#")[0]
    if hidden := re.search(rf"dense_resource<(?!{_ELIDED})[^\n]*", text):
        raise RungError(
            f"the converter hides a weight where it cannot be given: {hidden[0][:200]}; convert with --plain"
        )


def _resource(value: Any) -> str | None:
    """The name of a constant without contents, which prints as ``dense_resource<name> : type``."""
    try:
        text = str(ir.DenseResourceElementsAttr(value))
    except ValueError:  # another kind of constant
        return None
    return text[text.index("<") + 1 : text.index(">")].strip('"')


def _retype(function: Any) -> None:
    """The function's type again, from the arguments that it has now."""
    made = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value).results
    taken = [argument.type for argument in function.entry_block.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(taken, list(made)))


def _functions(module: Any) -> dict[str, Any]:
    found = (operation for operation in module.body.operations if isinstance(operation, func.FuncOp))
    return {ir.StringAttr(function.attributes["sym_name"]).value: function for function in found}


def _output_names(program: Any) -> list[str]:
    spec = program.call_spec.out_spec
    names: list[str] = export_utils.flat_dict_names(export_utils.get_children(spec), spec.context)
    return names


def _made(program: Any) -> list[Tensor]:
    """Samples of what the program gives back."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    return [node.meta["val"] for node in output.args[0]]
