"""The compiled part of the package."""

from typing import Any, Literal, Mapping, Sequence, TypeAlias, TypeVar, final, overload

__version__: str

_Sizes: TypeAlias = Mapping[str, int] | None
_Bounds: TypeAlias = Literal["error", "skip"] | None
_Optimize: TypeAlias = bool | str | Sequence[Any] | None
_Array = TypeVar("_Array")

class TableError(IndexError):
    argument: int
    position: tuple[int, ...]
    value: int
    length: int

@overload
def einsum(
    equation: str,
    operand: _Array,
    /,
    *operands: Any,
    out: _Array | None = None,
    sizes: _Sizes = None,
    bounds: _Bounds = None,
    optimize: _Optimize = None,
    memory_limit: int | None = None,
    dtype: Any = None,
    order: str | None = None,
    casting: str | None = None,
) -> _Array: ...
@overload
def einsum(
    operand: _Array,
    labels: Sequence[Any],
    /,
    *operands: Any,
    out: _Array | None = None,
    sizes: _Sizes = None,
    bounds: _Bounds = None,
    optimize: _Optimize = None,
    memory_limit: int | None = None,
    dtype: Any = None,
    order: str | None = None,
    casting: str | None = None,
) -> _Array: ...
def plan(
    equation: Any,
    /,
    *operands: Any,
    sizes: _Sizes = None,
    bounds: _Bounds = None,
    optimize: _Optimize = None,
    memory_limit: int | None = None,
    dtype: Any = None,
) -> Plan: ...
def gradient(equation: str, operand: int) -> str: ...
def machine() -> dict[str, Any]: ...
def cache_clear() -> None: ...
@final
class Plan:
    def __call__(self, *operands: Any, out: Any = None) -> Any: ...
    @property
    def equation(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    def _report(self) -> tuple[str, dict[str, Any]]: ...

def _cache_info() -> tuple[int, int, int, int]: ...
def _forget_device() -> None: ...
_BENCH_HEADER: list[str]

def _bench_suite(
    suite: str, arguments: Sequence[str]
) -> tuple[str, str, list[tuple[str, list[str]]], list[str]]: ...
def _bench_keys(arguments: Sequence[str]) -> tuple[str, str, list[tuple[str, str, int, list[str]]], list[str]]: ...
def _main(arguments: Sequence[str]) -> int: ...
def _terms(equation: str) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...], bool]: ...
@final
class _Kept:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...

def _register_table(table: type) -> None: ...
def _xla_target(target: str, platform: str) -> Any: ...
def _check_gpu(ordinal: int) -> None: ...
def _torch_kernel(
    equation: str,
    operands: list[Any],
    sizes: dict[str, int],
    bounds: str,
    optimize: Any,
    memory_limit: int | None,
    dtype: Any,
    shape: Sequence[int] | None,
) -> Any: ...
def _attend(
    equation: str,
    operands: Sequence[Any],
    sizes: Mapping[str, int],
    scale: float | None,
    bounds: str,
    causal: bool,
    return_lse: bool,
) -> tuple[Any, Any]: ...
def _torch_attend(
    equation: str, operands: list[Any], sizes: Mapping[str, int], scale: float | None, bounds: str, causal: bool
) -> tuple[Any, Any]: ...
def _torch_attend_backward(
    equation: str,
    operands: list[Any],
    saved: list[Any],
    wanted: list[bool],
    sizes: Mapping[str, int],
    scale: float | None,
    bounds: str,
    causal: bool,
) -> list[Any]: ...
def _numpy_attend_backward(
    equation: str,
    operands: list[Any],
    saved: list[Any],
    wanted: list[bool],
    sizes: Mapping[str, int],
    scale: float | None,
    bounds: str,
    causal: bool,
) -> list[Any]: ...
def _explain_attend(
    equation: str,
    operands: Sequence[Any],
    sizes: Mapping[str, int],
    scale: float | None,
    bounds: str,
    causal: bool,
    dtype: Any,
) -> tuple[str, dict[str, Any]]: ...
