"""einfall for JAX: eager arrays of the CPU are read where they lie; all others become a primitive of JAX.

The primitive knows its shape, its derivatives (it is linear in every operand, and its transpose is an einsum again), its
batches, and how it is compiled: as a foreign function that XLA calls with pointers, and on a GPU with its stream, so that
nothing is copied and nothing waits. So ``jit``, ``grad``, ``jvp``, ``vmap`` and what is made of them work, to any order.
Where JAX has no foreign functions yet, the CPU is called back through Python.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.dlpack import from_dlpack
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from einfall import _einfall, _terms

__all__: list[str] = []

_primitive = Primitive("einfall_einsum")


def _einsum(
    equation: str,
    operands: Sequence[Any],
    *,
    sizes: Mapping[str, int] | None = None,
    bounds: str = "error",
    optimize: Any = None,
    memory_limit: int | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """``einfall.einsum`` on arrays of JAX, some of which may be traced."""
    if out is not None:
        raise TypeError("arrays of JAX cannot be written, so `out` is not taken")
    arrays = [jnp.asarray(operand) for operand in operands]
    result = _primitive.bind(
        *arrays,
        equation=equation,
        sizes=tuple(sorted((sizes or {}).items())),
        bounds=bounds,
        optimize="" if optimize is None else json.dumps(optimize),
        memory_limit=memory_limit,
        dtype=dtype,
        shape=None,
    )
    return result


_SHORT = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "c64": "complex64"}
_LONG = {"c128": "complex128", "bool": "bool"}


def _named(dtype: str) -> Any:
    """A dtype for its short name; integers are spelled `i32` or `u8`."""
    name = _SHORT.get(dtype) or _LONG.get(dtype) or dtype.replace("i", "int").replace("u", "uint")
    return jnp.dtype(name)


def _expanded(equation: str, operands: Sequence[Any]) -> _terms.Terms:
    return _terms.expand(equation, tuple(len(operand.shape) for operand in operands))


def _result(operands: Sequence[Any], params: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    terms = _expanded(params["equation"], operands)
    shapes = [operand.shape for operand in operands]
    shape = _terms.output_shape(terms, shapes, dict(params["sizes"]), params["shape"])
    if params["dtype"] is not None:
        return jax.ShapeDtypeStruct(shape, _named(params["dtype"]))
    return jax.ShapeDtypeStruct(shape, jnp.result_type(*[operands[at].dtype for at, _, _ in terms.arguments]))


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    """An empty array that starts at a cache line, as XLA wants it to take it over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    aligned: np.ndarray[Any, Any] = memory[start : start + size].view(dtype).reshape(shape)
    return aligned


def _on_host(operands: Sequence[Any], result: jax.ShapeDtypeStruct, params: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    arrays = [np.asarray(operand) for operand in operands]
    out = _aligned(result.shape, np.dtype(result.dtype))
    _einfall.einsum(
        params["equation"],
        *arrays,
        out=out,
        sizes=dict(params["sizes"]),
        bounds=params["bounds"],
        optimize=json.loads(params["optimize"]) if params["optimize"] else None,
        memory_limit=params["memory_limit"],
        dtype=params["dtype"],
        casting="same_kind",
    )
    return out


def on_gpu(operands: Sequence[Any]) -> bool:
    """Whether arrays are on a GPU; raises what a call there found that has passed."""
    for number, operand in enumerate(operands):
        # Constants of traced code may be arrays of NumPy.
        device = next(iter(operand.devices())) if isinstance(operand, jax.Array) else None
        if device is None or device.platform == "cpu":
            continue
        if device.platform not in _GPUS:
            raise NotImplementedError(
                f"operand {number} is on `{device.platform}`: only the CPU and NVIDIA GPUs are supported\n"
                "hint: move it with `jax.device_put(x, jax.devices('cpu')[0])`"
            )
        # Here an exception can say what it is.
        _einfall._check_gpu(device.local_hardware_id)
        return True
    return False


def _impl(*operands: Any, **params: Any) -> Any:
    if on_gpu(operands):
        return _jitted(tuple(sorted(params.items())))(*operands)
    result = _result(operands, params)
    out = _on_host(operands, result, params)
    if out.size == 0 or out.dtype == bool or out.dtype.isbuiltin != 1:
        return jnp.asarray(out)
    return from_dlpack(out)


# What JAX calls NVIDIA GPUs; AMD's have the name `gpu` too, but another platform version.
_GPUS = ("gpu", "cuda")


@functools.lru_cache(maxsize=4096)
def _jitted(params: tuple[tuple[str, Any], ...]) -> Any:
    """The primitive alone, compiled: how arrays of a GPU are run that nobody traces."""
    return jax.jit(lambda *operands: _primitive.bind(*operands, **dict(params)))


def _abstract(*operands: Any, **params: Any) -> Any:
    result = _result(operands, params)
    return ShapedArray(result.shape, result.dtype)


def _foreign(*operands: Any, **params: Any) -> Any:
    """The foreign function. Its settings are one text, so that programs may be kept and loaded by another process."""
    call = {
        "equation": params["equation"],
        "sizes": dict(params["sizes"]),
        "bounds": params["bounds"],
        "optimize": json.loads(params["optimize"]) if params["optimize"] else None,
        "memory_limit": params["memory_limit"],
    }
    return jax.ffi.ffi_call(_TARGET, _result(operands, params))(*operands, call=json.dumps(call))


def _called_back(*operands: Any, **params: Any) -> Any:
    result = _result(operands, params)

    def call(*arrays: Any) -> Any:
        return _on_host(arrays, result, params)

    return jax.pure_callback(call, result, *operands)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    value = _primitive.bind(*primals, **params)
    total = None
    for at, tangent in enumerate(tangents):
        if type(tangent) is ad.Zero or tangent.dtype == jax.dtypes.float0:
            continue
        part = _primitive.bind(*primals[:at], tangent, *primals[at + 1 :], **params)
        total = part if total is None else total + part
    return value, jnp.zeros_like(value) if total is None else total


def _transpose(cotangent: Any, *operands: Any, **params: Any) -> list[Any]:
    shapes = [operand.aval.shape if ad.is_undefined_primal(operand) else operand.shape for operand in operands]
    terms = _terms.expand(params["equation"], tuple(map(len, shapes)))
    found: list[Any] = [None] * len(operands)
    for number, (at, _, _) in enumerate(terms.arguments):
        if not ad.is_undefined_primal(operands[at]):
            continue
        aval = operands[at].aval
        if type(cotangent) is ad.Zero:
            found[at] = ad.Zero(aval)
            continue
        call = _terms.gradient(terms, number, shapes, dict(params["sizes"]))
        arguments = [cotangent if one is None else operands[one] for one in call.arguments]
        result = _primitive.bind(
            *arguments,
            equation=call.equation,
            sizes=tuple(sorted(call.sizes.items())),
            bounds=params["bounds"],
            optimize="",
            memory_limit=params["memory_limit"],
            dtype=None,
            shape=call.shape,
        )
        if call.summed:
            result = result.sum(call.summed, keepdims=True)
        if jnp.iscomplexobj(result) and not jnp.issubdtype(aval.dtype, jnp.complexfloating):
            result = result.real
        found[at] = result.astype(aval.dtype)
    return found


def _batched(operands: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[Any, int]:
    which = [dim is not None for dim in dims]
    size = next(operand.shape[dim] for operand, dim, mark in zip(operands, dims, which) if mark)
    moved = [jnp.moveaxis(operand, dim, 0) if mark else operand for operand, dim, mark in zip(operands, dims, which)]
    before = _terms.expand(params["equation"], tuple(len(x.shape) - mark for x, mark in zip(moved, which)))
    terms, sizes = _terms.batch(before, which, dict(params["sizes"]), size)
    shape = None if params["shape"] is None else (size, *params["shape"])
    params = {**params, "equation": str(terms), "sizes": tuple(sorted(sizes.items())), "shape": shape}
    return _primitive.bind(*moved, **params), 0


_primitive.def_impl(_impl)
_primitive.def_abstract_eval(_abstract)
ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batched

_TARGET = "einfall_einsum"


def _register() -> None:
    """Tells XLA how the primitive is compiled."""
    if not hasattr(jax, "ffi"):
        mlir.register_lowering(_primitive, mlir.lower_fun(_called_back, multiple_results=False))
        return
    for platform in ("cpu", "cuda"):
        target = _einfall._xla_target(_TARGET, platform)
        jax.ffi.register_ffi_target(_TARGET, target, platform="cpu" if platform == "cpu" else "CUDA")
        lowering = mlir.lower_fun(_foreign, multiple_results=False)
        mlir.register_lowering(_primitive, lowering, platform=platform)


_register()
