"""In which precision PyTorch computes: what the float64 rungs decide about every place that asks for another one.

Models of transformers, and ours, name a precision here and there on purpose: norms, rotary tables and softmax are cast
to float32, constants are made in the default type. One rule decides about all of these places, for the oracle and for
the exact port alike: *what is float32 becomes float64*. A cast to float32 only protects a half-precision run; in
float64 it would throw away what the rung is there to see. What is left as it is:

- Integers, booleans and half-precision tensors. The checkpoint's own values come in exactly.
- The bucket of a relative position (T5, ``models/layers/relative_bias.py``). Its logarithm is rounded in float32 by the
  original's own formula, and the bucket is an integer: no distance below 128 falls into another one in float64.
- Gemma's embedding scale, the root of the width, which the original rounds to the type that it computes in. That type
  is float64 here, so neither side rounds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

Precision = Literal["float32", "float64"]


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """A context in which PyTorch makes tensors in ``precision`` unless told otherwise: tables, masks, caches."""
    import torch

    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, precision))
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def everything_float64() -> AbstractContextManager[Any]:
    """A context in which float32 casts and factory calls give float64.

    ``model.double()`` alone is not an oracle: transformers casts to float32 inside norms, rotary tables and softmax,
    which leaves a relative error of 1e-7. Here every operator that is asked for float32, or makes it by default, is
    asked for float64 instead.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    makers = (torch.tensor, torch.as_tensor, torch.asarray)

    class Float64Constants(TorchFunctionMode):
        """Numbers of Python become tensors before an operator sees them: a list of LongRoPE factors, say."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if function in makers and kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
            return function(*args, **kwargs)

    class Float64Everywhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
            return function(*args, **kwargs)

    @contextmanager
    def context() -> Iterator[None]:
        with computing_in("float64"), Float64Constants(), Float64Everywhere():  # type: ignore[no-untyped-call]
            yield

    return context()
