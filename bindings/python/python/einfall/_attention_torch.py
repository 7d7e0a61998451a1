"""Attention for torch: the operators ``einfall::attend`` and ``einfall::attend_backward``, and attention made of einsums.

Calls that record gradients or are traced come here. Derivatives of first order are kernels, from the saved log-sum-exp.
Derivatives of the backward call, and all that ``torch.func`` and forward mode ask for, are those of attention made of
einsums: they store scores, but no selected keys.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch

import einfall
import einfall.torch
from einfall import _attention_steps, _attention_terms, _einfall

_library = einfall.torch._library
_OPTIONS = "str[] names, SymInt[] lengths, float? scale, str bounds, bool causal"
_library.define(
    f"attend(str equation, Tensor[] operands, {_OPTIONS}) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,)
)
_library.define(
    f"attend_backward(str equation, Tensor[] operands, Tensor out, Tensor lse, Tensor grad, bool[] needed, {_OPTIONS})"
    " -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _attend(
    equation: str,
    operands: Sequence[torch.Tensor],
    sizes: Mapping[str, int],
    scale: float | None,
    bounds: str,
    causal: bool,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``einfall.attend`` through the dispatcher."""
    arguments = _attention_terms.once(equation, operands)
    rest = scale if scale is None else float(scale), bounds, causal
    if not torch.compiler.is_compiling() and _transformed():
        out, lse = _composed(equation, arguments, sizes, *rest)
    else:
        out, lse = torch.ops.einfall.attend(equation, arguments, list(sizes.keys()), list(sizes.values()), *rest)
    return out, lse if return_lse else None


def _transformed() -> bool:
    stack = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore
    return stack is not None or torch.autograd.forward_ad._current_level >= 0


def _kernel(
    equation: str,
    operands: Sequence[torch.Tensor],
    names: Sequence[str],
    lengths: Sequence[int],
    scale: float | None,
    bounds: str,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = dict(zip(names, lengths))
    out, lse = _einfall._torch_attend(equation, list(operands), sizes, scale, bounds, causal)
    return out, lse


def _fake(
    equation: str, operands: Sequence[torch.Tensor], names: Sequence[str], lengths: Sequence[Any], *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    _attention_steps.check(equation, operands)
    out, lse = _attention_terms.shapes(equation, operands, dict(zip(names, lengths)))
    wide = torch.float64 if operands[0].dtype == torch.float64 else torch.float32
    return operands[0].new_empty(out), operands[0].new_empty(lse, dtype=wide)


def _backward_kernel(
    equation: str,
    operands: Sequence[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    needed: Sequence[bool],
    names: Sequence[str],
    lengths: Sequence[int],
    scale: float | None,
    bounds: str,
    causal: bool,
) -> list[torch.Tensor]:
    sizes, numbers = dict(zip(names, lengths)), _differentiable(equation, operands, needed)
    saved = [one.contiguous() for one in (out, lse, grad.to(out.dtype))]
    wanted = _attention_terms.wanted(equation, numbers)
    found: list[torch.Tensor] = _einfall._torch_attend_backward(
        equation, list(operands), saved, wanted, sizes, scale, bounds, causal
    )
    return found


def _backward_fake(
    equation: str,
    operands: Sequence[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    needed: Sequence[bool],
    *rest: Any,
) -> list[torch.Tensor]:
    return [operands[at].new_empty(operands[at].shape) for at in _differentiable(equation, operands, needed)]


def _differentiable(equation: str, operands: Sequence[Any], needed: Sequence[bool]) -> list[int]:
    """Positions of the operands whose gradients are wanted."""
    return [at for at in _attention_terms.differentiable(equation, len(operands)) if needed[at]]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    equation, operands, names, lengths, *rest = inputs
    ctx.save_for_backward(*operands, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.call = equation, names, lengths, rest
    # torch takes an empty list for one of tensors, and wants a list back.
    ctx.nothing = [] if len(names) == 0 else None


def _backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[Any, ...]:
    equation, names, lengths, rest = ctx.call
    *operands, out, lse = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[1])
    grads: list[torch.Tensor | None] = [None] * len(operands)
    found = torch.ops.einfall.attend_backward(
        equation, operands, out, lse, grad, needed, list(names), list(lengths), *rest
    )
    for at, one in zip(_differentiable(equation, operands, needed), found):
        grads[at] = one
    return None, grads, ctx.nothing, ctx.nothing, None, None, None


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    equation, operands, out, lse, grad, needed, names, lengths, *rest = inputs
    ctx.save_for_backward(*operands, grad)
    ctx.call = equation, needed, dict(zip(names, lengths)), rest
    ctx.nothing = [] if len(names) == 0 else None, [] if len(needed) == 0 else None


def _second(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    """The gradient of the gradients, as functions of the operands and of the output's gradient."""
    equation, needed, sizes, rest = ctx.call
    *operands, grad = ctx.saved_tensors
    again = torch.is_grad_enabled()
    inputs = [one if again and one.requires_grad else one.detach() for one in (*operands, grad)]
    with torch.enable_grad():
        for one in inputs:
            if one.is_floating_point() and not one.requires_grad:
                one.requires_grad_()
        out, _ = _composed(equation, inputs[:-1], sizes, *rest)
        wanted = _differentiable(equation, operands, needed)
        first = torch.autograd.grad(out, [inputs[at] for at in wanted], inputs[-1], create_graph=True)
        pairs = [(one, other) for one, other in zip(first, grads) if other is not None]
        floating = [at for at, one in enumerate(inputs) if one.is_floating_point()]
        second = torch.autograd.grad(
            [one for one, _ in pairs],
            [inputs[at] for at in floating],
            [other for _, other in pairs],
            create_graph=again,
            allow_unused=True,
        )
    found: list[torch.Tensor | None] = [None] * len(inputs)
    for at, one in zip(floating, second):
        found[at] = one
    names, none = ctx.nothing
    return None, found[:-1], None, None, found[-1], none, names, names, None, None, None


def _autocast(equation: str, operands: Sequence[torch.Tensor], *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    device = "cuda" if operands[0].is_cuda else "cpu"
    dtype = torch.get_autocast_dtype(device)
    cast = [one.to(dtype) if one.is_floating_point() and one.dtype != torch.float64 else one for one in operands]
    key = torch._C.DispatchKey.AutocastCUDA if device == "cuda" else torch._C.DispatchKey.AutocastCPU
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        out, lse = torch.ops.einfall.attend(equation, cast, *rest)
    return out, lse


def _composed(
    equation: str, operands: Sequence[torch.Tensor], sizes: Mapping[str, int], *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention made of einsums, which may be derived and transformed in any way."""
    place = {"device": operands[0].device}
    library = _attention_steps.Library(torch, torch.Tensor.detach, torch.Tensor.to, place)
    settings = _attention_steps.Settings(equation, tuple(sizes.items()), *rest)
    return _attention_steps.forward(library, settings, operands)


for _key in ("CPU", "CUDA"):
    _library.impl("attend", _kernel, _key)
    _library.impl("attend_backward", _backward_kernel, _key)
    _library.impl("attend", _autocast, f"Autocast{_key}")
torch.library.register_fake("einfall::attend", _fake, lib=_library)
torch.library.register_fake("einfall::attend_backward", _backward_fake, lib=_library)
torch.library.register_autograd("einfall::attend", _backward, setup_context=_setup_context, lib=_library)
torch.library.register_autograd("einfall::attend_backward", _second, setup_context=_setup_second, lib=_library)


def _register_tracing() -> None:
    """Tells ``torch.compile`` what stands behind the compiled function."""
    torch._dynamo.decorators.substitute_in_graph(_einfall._attend, skip_signature_check=True)(_attend)
