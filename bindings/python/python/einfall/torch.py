"""einfall for torch: the operator ``torch.ops.einfall.einsum`` with everything that torch wants to know of it.

Tensors that need no gradient and are not traced never come here: ``einfall.einsum`` reads them itself. All others go
through torch's dispatcher, where the operator has kernels for the CPU and for NVIDIA GPUs, a shape function, gradients (einsums again, so
they can be derived any number of times), a rule for ``vmap`` and one for autocast.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch

import einfall
from einfall import _einfall, _terms

__all__ = ["patch"]

_SCHEMA = (
    "einsum(str equation, Tensor[] operands, str[] names, SymInt[] lengths, str bounds, str optimize, "
    "int? memory_limit, ScalarType? dtype, SymInt[]? shape) -> Tensor"
)

_library = torch.library.Library("einfall", "DEF")
_library.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def _operator(*arguments: Any) -> torch.Tensor:
    result: torch.Tensor = torch.ops.einfall.einsum.default(*arguments)
    return result


def _einsum(
    equation: str,
    operands: Sequence[torch.Tensor],
    *,
    sizes: Mapping[str, int] | None = None,
    bounds: str = "error",
    optimize: Any = None,
    memory_limit: int | None = None,
    dtype: Any = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``einfall.einsum`` through the dispatcher."""
    sizes = sizes or {}
    route = _operator if torch.compiler.is_compiling() else _route
    result = route(
        equation,
        list(operands),
        list(sizes.keys()),
        list(sizes.values()),
        bounds,
        _optimize_text(optimize),
        memory_limit,
        _dtype(dtype),
        None,
    )
    if out is None:
        return result
    if any(operand.requires_grad for operand in operands) and torch.is_grad_enabled():
        raise RuntimeError("gradients do not go through `out`")
    if out.shape != result.shape:
        raise ValueError(f"`out` has shape {list(out.shape)} but the result has shape {list(result.shape)}")
    return out.copy_(result)


def _optimize_text(optimize: Any) -> str:
    """As JSON, by means that torch's tracer can follow."""
    if optimize is None:
        return ""
    if isinstance(optimize, str):
        return f'"{optimize}"'
    if isinstance(optimize, (list, tuple)):
        return "[" + ", ".join([_optimize_text(one) for one in optimize]) + "]"
    return str(optimize).lower()


_NAMES = {
    "bool": torch.bool,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "c64": torch.complex64,
    "c128": torch.complex128,
}


def _dtype(dtype: Any) -> torch.dtype | None:
    return (_NAMES.get(dtype) or getattr(torch, dtype)) if isinstance(dtype, str) else dtype


def _kernel(
    equation: str,
    operands: Sequence[torch.Tensor],
    names: Sequence[str],
    lengths: Sequence[int],
    bounds: str,
    optimize: str,
    memory_limit: int | None,
    dtype: torch.dtype | None,
    shape: Sequence[int] | None,
) -> torch.Tensor:
    result: torch.Tensor = _einfall._torch_kernel(
        equation,
        list(operands),
        dict(zip(names, lengths)),
        bounds,
        json.loads(optimize) if optimize else None,
        memory_limit,
        dtype,
        shape,
    )
    return result


def _expanded(equation: str, operands: Sequence[torch.Tensor]) -> _terms.Terms:
    return _terms.expand(equation, tuple(operand.dim() for operand in operands))


def _fake(
    equation: str,
    operands: Sequence[torch.Tensor],
    names: Sequence[str],
    lengths: Sequence[Any],
    bounds: str,
    optimize: str,
    memory_limit: int | None,
    dtype: torch.dtype | None,
    shape: Sequence[Any] | None,
) -> torch.Tensor:
    terms = _expanded(equation, operands)
    sizes = dict(zip(names, lengths))
    result = _terms.output_shape(terms, [operand.shape for operand in operands], sizes, shape)
    if dtype is None:
        dtype = _promoted([operands[at].dtype for at, _, _ in terms.arguments])
    return operands[0].new_empty(result, dtype=dtype)


def _promoted(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    equation, operands, names, lengths, bounds, optimize, memory_limit, _, shape = inputs
    ctx.save_for_backward(*operands)
    ctx.equation, ctx.sizes = equation, dict(zip(names, lengths))
    ctx.rest = bounds, memory_limit
    # torch takes an empty list for one of tensors, and wants a list back.
    ctx.nothing = [] if len(names) == 0 else None, [] if shape is not None and len(shape) == 0 else None


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    grads = _gradients(ctx.equation, ctx.saved_tensors, ctx.sizes, ctx.rest, ctx.needs_input_grad[1], grad, _operator)
    names, shape = ctx.nothing
    return None, grads, names, names, None, None, None, None, shape


def _gradients(
    equation: str,
    operands: Sequence[torch.Tensor],
    sizes: Mapping[str, Any],
    rest: tuple[str, int | None],
    needed: Sequence[bool],
    grad: torch.Tensor,
    operator: Callable[..., torch.Tensor],
) -> list[torch.Tensor | None]:
    """The gradient for every operand that needs one."""
    terms = _expanded(equation, operands)
    shapes = [operand.shape for operand in operands]
    tables = {table for _, _, tables in (*terms.arguments, (0, (), terms.output_tables)) for table, _ in tables}
    grads: list[torch.Tensor | None] = [None] * len(operands)
    for number, (at, _, _) in enumerate(terms.arguments):
        operand = operands[at]
        if not needed[at] or not (operand.is_floating_point() or operand.is_complex()):
            continue
        call = _terms.gradient(terms, number, shapes, sizes)
        arguments = []
        for one in call.arguments:
            if one is None:
                arguments.append(grad)
            elif one not in tables and operands[one].is_complex():
                arguments.append(operands[one].conj())
            else:
                arguments.append(operands[one])
        names, lengths = list(call.sizes.keys()), list(call.sizes.values())
        bounds, memory_limit = rest
        result = operator(
            call.equation, arguments, names, lengths, bounds, "", memory_limit, None, list(call.shape)
        )
        if call.summed:
            result = result.sum(call.summed, keepdim=True)
        if result.is_complex() and not operand.is_complex():
            result = result.real
        grads[at] = result.to(operand.dtype)
    return grads


def _vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[torch.Tensor, int]:
    arguments = _batched(info.batch_size, in_dims[1], *inputs)
    return _operator(*arguments), 0


def _batched(size: Any, dims: Sequence[int | None], *inputs: Any) -> tuple[Any, ...]:
    """The call that does a whole batch: operands that have its axis get a label more."""
    equation, operands, names, lengths, bounds, optimize, memory_limit, dtype, shape = inputs
    which = [dim is not None for dim in dims]
    moved = [operand if dim is None else operand.movedim(dim, 0) for operand, dim in zip(operands, dims)]
    before = _terms.expand(equation, tuple(operand.dim() - mark for operand, mark in zip(moved, which)))
    terms, sizes = _terms.batch(before, which, dict(zip(names, lengths)), size)
    shape = None if shape is None else [size, *shape]
    lengths = list(sizes.values())
    return str(terms), moved, list(sizes.keys()), lengths, bounds, optimize, memory_limit, dtype, shape


class _Transformed(torch.autograd.Function):
    """The operator under ``torch.func``, which does not see the gradients that operators register."""

    @staticmethod
    def forward(settings: tuple[Any, ...], *operands: torch.Tensor) -> torch.Tensor:
        equation, *rest = settings
        # Every transformation has been taken off by now.
        return _operator(equation, list(operands), *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        settings, *operands = inputs
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)
        ctx.settings = settings

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore
        equation, names, lengths, bounds, _, memory_limit, _, _ = ctx.settings
        sizes, rest = dict(zip(names, lengths)), (bounds, memory_limit)
        needed = ctx.needs_input_grad[1:]
        return None, *_gradients(equation, ctx.saved_tensors, sizes, rest, needed, grad, _route)

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: torch.Tensor | None) -> torch.Tensor:  # pyright: ignore
        equation, *rest = ctx.settings
        operands = ctx.saved_tensors
        total = None
        for at, tangent in enumerate(tangents):
            if tangent is not None:
                moved = [*operands[:at], tangent, *operands[at + 1 :]]
                part = _route(equation, moved, *rest)
                total = part if total is None else total + part
        if total is None:
            raise RuntimeError("no operand has a tangent")
        return total

    @staticmethod
    def vmap(  # pyright: ignore
        info: Any, in_dims: Any, settings: tuple[Any, ...], *operands: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        equation, *rest = settings
        dims = [None if dim is None else dim for dim in in_dims[1:]]
        return _route(*_batched(info.batch_size, dims, equation, operands, *rest)), 0


def _route(equation: str, operands: Sequence[torch.Tensor], *rest: Any) -> torch.Tensor:
    """The operator, or what stands for it under ``torch.func`` and in forward mode."""
    stack = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore
    if stack is None and torch.autograd.forward_ad._current_level < 0:
        return _operator(equation, list(operands), *rest)
    apply: Callable[..., torch.Tensor] = _Transformed.apply
    return apply((equation, *rest), *operands)


def _autocast(equation: str, operands: Sequence[torch.Tensor], *rest: Any) -> torch.Tensor:
    terms = _expanded(equation, operands)
    device = "cuda" if operands[0].is_cuda else "cpu"
    dtype = torch.get_autocast_dtype(device)
    cast = list(operands)
    for at, _, _ in terms.arguments:
        if cast[at].is_floating_point() and cast[at].dtype != torch.float64:
            cast[at] = cast[at].to(dtype)
    key = torch._C.DispatchKey.AutocastCUDA if device == "cuda" else torch._C.DispatchKey.AutocastCPU
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        return _operator(equation, cast, *rest)


for _key in ("CPU", "CUDA"):
    _library.impl("einsum", _kernel, _key)
    _library.impl("einsum", _autocast, f"Autocast{_key}")
torch.library.register_fake("einfall::einsum", _fake, lib=_library)
torch.library.register_autograd("einfall::einsum", _backward, setup_context=_setup_context, lib=_library)
torch.library.register_vmap("einfall::einsum", _vmap, lib=_library)


def _traced(*arguments: Any, **options: Any) -> Any:
    """``einfall.einsum`` as torch's tracer sees it."""
    for name in ("order", "casting"):
        options.pop(name, None)
    equation, operands = arguments[0], list(arguments[1:])
    if not isinstance(equation, str):
        equation, operands = _interleaved(arguments)
    return _einsum(equation, _arrays(operands), **options)


def _arrays(operands: Sequence[Any]) -> list[Any]:
    """Tensors in place of tables, which keep what hangs on them."""
    return [operand.array if isinstance(operand, einfall.Table) else operand for operand in operands]


def _traced_plan(*arguments: Any, **options: Any) -> Any:
    """``einfall.plan`` as torch's tracer sees it: a graph has nothing to prepare."""
    equation, given = arguments[0], list(arguments[1:])
    if not isinstance(equation, str):
        equation, given = _interleaved(arguments)
    shapes = [tuple(one) if isinstance(one, (tuple, list)) else tuple(one.shape) for one in _arrays(given)]

    def planned(*operands: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        operands = tuple(_arrays(operands))
        found = [tuple(operand.shape) for operand in operands]
        if found != shapes:
            raise ValueError(f"operands have the shapes {found} but the plan was made for {shapes}")
        return _einsum(equation, operands, out=out, **options)

    return planned


def _interleaved(arguments: Sequence[Any]) -> tuple[str, list[Any]]:
    """The sublist form as text, for lists of integers and Ellipsis."""

    def text(items: Any) -> str:
        letters = []
        for item in items:
            if item is Ellipsis:
                letters.append("...")
            elif isinstance(item, (list, tuple)):
                letters.append("[" + text(item) + "]")
            else:
                letters.append(chr(65 + item) if item < 26 else chr(71 + item))
        return "".join(letters)

    terms: list[str] = []
    operands: list[Any] = []
    output = ""
    at = 0
    while at < len(arguments):
        if isinstance(arguments[at], (list, tuple)):
            output = "->" + text(arguments[at])
            operands += arguments[at + 1 :]
            break
        operands.append(arguments[at])
        items = arguments[at + 1]
        terms.append(text(items))
        tables = sum(isinstance(item, (list, tuple)) for item in items)
        operands += arguments[at + 2 : at + 2 + tables]
        at += 2 + tables
    return ",".join(terms) + output, operands


def _register_tracing() -> None:
    """Tells ``torch.compile`` what stands behind the compiled functions."""
    substitute = torch._dynamo.decorators.substitute_in_graph
    substitute(einfall.einsum, skip_signature_check=True)(_traced)
    substitute(einfall.plan, skip_signature_check=True)(_traced_plan)


@contextlib.contextmanager
def patch() -> Iterator[None]:
    """Routes ``torch.einsum`` here while it is active.

    >>> import torch
    >>> import einfall.torch
    >>> with einfall.torch.patch():
    ...     torch.einsum("ij,jk->ik", torch.eye(2), torch.ones(2, 2))
    tensor([[1., 1.],
            [1., 1.]])
    """
    functional = torch.functional
    saved = torch.einsum, functional.einsum

    def einsum(*arguments: Any) -> torch.Tensor:
        # torch also takes all operands as one list.
        if len(arguments) == 2 and isinstance(arguments[1], (list, tuple)) and isinstance(arguments[0], str):
            arguments = (arguments[0], *arguments[1])
        result: torch.Tensor = einfall.einsum(*arguments)
        return result

    torch.einsum = functional.einsum = einsum
    try:
        yield
    finally:
        torch.einsum, functional.einsum = saved
