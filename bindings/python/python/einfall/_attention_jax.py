"""Attention for JAX: two primitives, which XLA calls as a foreign function, joined by a rule for derivatives.

The first derivative is a kernel, from the saved log-sum-exp; derivatives of that are those of attention made of einsums.
"""

from __future__ import annotations

import json
from functools import lru_cache, partial
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.dlpack import from_dlpack
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import einfall.jax
from einfall import _attention_steps, _attention_terms, _einfall
from einfall._attention_steps import Settings

_forward = Primitive("einfall_attend")
_forward.multiple_results = True
_reverse = Primitive("einfall_attend_backward")
_reverse.multiple_results = True


def _attend(
    equation: str,
    operands: Sequence[Any],
    sizes: Mapping[str, int],
    scale: float | None,
    bounds: str,
    causal: bool,
    return_lse: bool,
) -> tuple[Any, Any]:
    """``einfall.attend`` on arrays of JAX, some of which may be traced."""
    arguments = [jnp.asarray(one) for one in _attention_terms.once(equation, operands)]
    _attention_steps.check(equation, arguments)
    scale = None if scale is None else float(scale)
    settings = Settings(equation, tuple(sorted(sizes.items())), scale, bounds, causal)
    out, lse = _derived(settings, *arguments)
    return out, jax.lax.stop_gradient(lse) if return_lse else None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _derived(settings: Settings, *operands: Any) -> tuple[Any, Any]:
    out, lse = _forward.bind(*operands, settings=settings)
    return out, lse


def _saved(settings: Settings, *operands: Any) -> tuple[Any, Any]:
    out, lse = _forward.bind(*operands, settings=settings)
    return (out, lse), (operands, out, lse)


def _pulled(settings: Settings, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    operands, out, lse = saved
    found = list(_again(settings, out, lse, cotangents[0], *operands))
    numbers = _attention_terms.differentiable(settings.equation, len(operands))
    return tuple(found.pop(0) if at in numbers else None for at in range(len(operands)))


_derived.defvjp(_saved, _pulled)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _again(settings: Settings, out: Any, lse: Any, grad: Any, *operands: Any) -> tuple[Any, ...]:
    """The gradients, which may be derived once more."""
    return tuple(_reverse.bind(*operands, out, lse, grad, settings=settings))


@_again.defjvp
def _second(settings: Settings, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    # As functions of operands and cotangent alone: the output and its log-sum-exp follow from them.
    _, _, grad, *operands = primals
    numbers = _attention_terms.differentiable(settings.equation, len(operands))

    def gradients(grad: Any, *leaves: Any) -> tuple[Any, ...]:
        def output(*leaves: Any) -> Any:
            given = list(operands)
            for at, leaf in zip(numbers, leaves):
                given[at] = leaf
            return _composed(settings, given)

        _, pull = jax.vjp(output, *leaves)
        return tuple(pull(grad))

    leaves = [operands[at] for at in numbers]
    moved = [tangents[3 + at] for at in numbers]
    found = jax.jvp(gradients, (grad, *leaves), (tangents[2], *moved))
    return found[0], found[1]


def _moved(primals: Sequence[Any], tangents: Sequence[Any], *, settings: Settings) -> tuple[Any, Any]:
    """The forward call's derivative, where that of its gradients is asked for."""
    numbers = [at for at in _attention_terms.differentiable(settings.equation, len(primals)) if type(tangents[at]) is not ad.Zero]

    def output(*leaves: Any) -> Any:
        given = list(primals)
        for at, leaf in zip(numbers, leaves):
            given[at] = leaf
        return _composed(settings, given)

    out, lse = _forward.bind(*primals, settings=settings)
    _, tangent = jax.jvp(output, [primals[at] for at in numbers], [tangents[at] for at in numbers])
    return [out, lse], [tangent, jnp.zeros_like(lse)]


def _composed(settings: Settings, operands: Sequence[Any]) -> Any:
    """Attention made of einsums, which may be derived and transformed in any way."""
    return _attention_steps.forward(_LIBRARY, settings, operands)[0]


_LIBRARY = _attention_steps.Library(jnp, jax.lax.stop_gradient, lambda array, dtype: array.astype(dtype), {})


# How the primitives run.


def _results(operands: Sequence[Any], settings: Settings) -> list[jax.ShapeDtypeStruct]:
    out, lse = _attention_terms.shapes(settings.equation, operands, dict(settings.sizes))
    wide = jnp.float64 if operands[0].dtype == jnp.float64 else jnp.float32
    return [jax.ShapeDtypeStruct(out, operands[0].dtype), jax.ShapeDtypeStruct(lse, wide)]


def _gradients(arguments: Sequence[Any], settings: Settings) -> list[jax.ShapeDtypeStruct]:
    operands = arguments[:-3]
    numbers = _attention_terms.differentiable(settings.equation, len(operands))
    return [jax.ShapeDtypeStruct(operands[at].shape, operands[at].dtype) for at in numbers]


def _forward_on_host(arguments: Sequence[Any], settings: Settings) -> list[Any]:
    arrays = [np.asarray(one) for one in arguments]
    out, lse = _einfall._attend(settings.equation, arrays, *_options(settings), True)
    return [out, lse]


def _reverse_on_host(arguments: Sequence[Any], settings: Settings) -> list[Any]:
    arrays = [np.asarray(one) for one in arguments]
    operands, saved = arrays[:-3], [np.ascontiguousarray(one) for one in arrays[-3:]]
    wanted = _attention_terms.wanted(settings.equation, _attention_terms.differentiable(settings.equation, len(operands)))
    found: list[Any] = _einfall._numpy_attend_backward(settings.equation, operands, saved, wanted, *_options(settings))
    return found


def _options(settings: Settings) -> tuple[dict[str, int], float | None, str, bool]:
    return dict(settings.sizes), settings.scale, settings.bounds, settings.causal


def _shared(array: np.ndarray[Any, Any]) -> Any:
    """An array of JAX with the memory of one of NumPy, where both can."""
    if array.size == 0 or array.dtype == bool or array.dtype.isbuiltin != 1:
        return jnp.asarray(array)
    return from_dlpack(array)


def _call(settings: Settings, wanted: list[bool] | None) -> str:
    """The settings as one text, so that programs may be kept and loaded by another process."""
    sizes, scale, bounds, causal = _options(settings)
    call = {"equation": settings.equation, "sizes": sizes, "scale": scale, "bounds": bounds, "causal": causal}
    return json.dumps({**call, "wanted": wanted})


def _forward_call(arguments: Sequence[Any], settings: Settings) -> str:
    return _call(settings, None)


def _reverse_call(arguments: Sequence[Any], settings: Settings) -> str:
    numbers = _attention_terms.differentiable(settings.equation, len(arguments) - 3)
    return _call(settings, _attention_terms.wanted(settings.equation, numbers))


_TARGET = "einfall_attend"


def _register(primitive: Primitive, results: Any, on_host: Any, call: Any) -> None:
    @lru_cache(maxsize=4096)
    def jitted(settings: Settings) -> Any:
        return jax.jit(lambda *arguments: primitive.bind(*arguments, settings=settings))

    def run(*arguments: Any, settings: Settings) -> list[Any]:
        if einfall.jax.on_gpu(arguments):
            found: list[Any] = jitted(settings)(*arguments)
            return found
        return [_shared(one) for one in on_host(arguments, settings)]

    def abstract(*arguments: Any, settings: Settings) -> list[ShapedArray]:
        return [ShapedArray(one.shape, one.dtype) for one in results(arguments, settings)]

    def foreign(*arguments: Any, settings: Settings) -> Any:
        made: Any = jax.ffi.ffi_call(_TARGET, results(arguments, settings))
        return made(*arguments, call=call(arguments, settings))

    def called_back(*arguments: Any, settings: Settings) -> Any:
        return jax.pure_callback(lambda *given: on_host(given, settings), results(arguments, settings), *arguments)

    def batched(arguments: Sequence[Any], dims: Sequence[Any], *, settings: Settings) -> tuple[Any, Any]:
        # One after the other: a batch of attentions is seldom worth another plan.
        moved = [one if dim is None else jnp.moveaxis(one, dim, 0) for one, dim in zip(arguments, dims)]

        def one(given: Sequence[Any]) -> Any:
            rest = iter(given)
            full = [kept if dim is None else next(rest) for kept, dim in zip(moved, dims)]
            return primitive.bind(*full, settings=settings)

        found = jax.lax.map(one, [array for array, dim in zip(moved, dims) if dim is not None])
        return found, [0] * len(found)

    primitive.def_impl(run)
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batched
    if not hasattr(jax, "ffi"):
        mlir.register_lowering(primitive, mlir.lower_fun(called_back, multiple_results=True))
        return
    for platform in ("cpu", "cuda"):
        mlir.register_lowering(primitive, mlir.lower_fun(foreign, multiple_results=True), platform=platform)


if hasattr(jax, "ffi"):
    for _platform in ("cpu", "cuda"):
        _handler = _einfall._xla_target(_TARGET, _platform)
        jax.ffi.register_ffi_target(_TARGET, _handler, platform="cpu" if _platform == "cpu" else "CUDA")
ad.primitive_jvps[_forward] = _moved
_register(_forward, _results, _forward_on_host, _forward_call)
_register(_reverse, _gradients, _reverse_on_host, _reverse_call)
