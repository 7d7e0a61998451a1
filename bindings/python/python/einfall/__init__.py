"""Einsum at the speed of the hardware, whose axes can be looked up through a table or slid over a window.

    >>> import numpy as np
    >>> import einfall
    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> keys = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> table = np.array([[2, 0], [1, 1]])  # each query looks at 2 of the 3 keys
    >>> einfall.einsum("qd,[qk]d->qk", queries, keys, table)
    array([[5., 1.],
           [4., 4.]])

Arrays of NumPy, torch and JAX go in, and the same kind comes out. Nothing is imported that has not been imported before.
"""

import json as _json
import os as _os
import sys as _sys
from typing import Any as _Any
from typing import Mapping as _Mapping
from typing import NamedTuple as _NamedTuple
from typing import Sequence as _Sequence

from einfall import _einfall, _hooks
from einfall._attention import attend, attention, explain_attention
from einfall._einfall import Plan, TableError, cache_clear, einsum, gradient, machine, plan
from einfall._report import BenchReport, Report
from einfall._table import Table
from einfall._topk import topk_keys

__version__ = _einfall.__version__

__all__ = [
    "BenchReport",
    "CacheInfo",
    "Plan",
    "Report",
    "Table",
    "TableError",
    "attend",
    "attention",
    "bench_dense",
    "bench_keys",
    "bench_lookups",
    "cache_clear",
    "cache_info",
    "contract_path",
    "einsum",
    "explain",
    "explain_attention",
    "gradient",
    "machine",
    "plan",
    "tensordot",
    "topk_keys",
    "transpose",
]


class CacheInfo(_NamedTuple):
    """How often a plan was found, how often it had to be made, how many are kept at most, and how many are."""

    hits: int
    misses: int
    maxsize: int
    currsize: int


def cache_info() -> CacheInfo:
    """Statistics of the plans that are kept.

    >>> einfall.cache_clear()
    >>> for _ in range(3):
    ...     _ = einfall.einsum("i,i", np.ones(3), np.ones(3))
    >>> einfall.cache_info()[:2]
    (2, 1)
    """
    return CacheInfo(*_einfall._cache_info())


def explain(*arguments: _Any, **options: _Any) -> Report:
    """Why a call costs what it costs: every step, every kernel that was asked, and what it would take.

    Takes the arguments of :func:`plan`. Nothing is computed, so shapes may stand in place of arrays.

    >>> report = einfall.explain("bik,bkj->bij", (64, 128, 256), (64, 256, 512))
    >>> report.to_dict()["shape"]
    (64, 128, 512)
    """
    return Report(*plan(*arguments, **options)._report())


def contract_path(*arguments: _Any, **options: _Any) -> tuple[list[tuple[int, ...]], Report]:
    """The order in which operands are contracted, in the form of ``numpy.einsum_path`` and opt_einsum, and a report.

    >>> path, report = einfall.contract_path("ij,jk,kl->il", (50, 2), (2, 50), (50, 3))
    >>> path
    [(1, 2), (0, 1)]
    """
    report = explain(*arguments, **options)
    return list(report.to_dict()["path"]), report


def bench_keys(
    *,
    sizes: _Mapping[str, int] | None = None,
    k: _Sequence[int] = (),
    op: str | _Sequence[str] = (),
    case: str | _Sequence[str] = (),
    dtype: str = "f32",
    table_dtype: str = "i64",
    device: str = "cpu",
    threads: int | None = None,
    repeats: int | None = None,
    budget: float | None = None,
    peers: bool = False,
    seed: int = 1,
    quick: bool = False,
) -> BenchReport:
    """Times queries that look at k keys each, as ``einfall bench keys`` does, and writes no files.

    * ``sizes``: lengths of b, h, q, n and d.
    * ``k``: numbers of keys. ``op``: scores, values, attention. ``case``: separate-stored, separate-expanded,
      separate-lookup, shared, all, window. All but the last, where none is given.
    * ``device``: ``"cpu"``, or an NVIDIA GPU, ``"cuda"`` or ``"cuda:1"``: scores and values, by replays of CUDA graphs.
    * ``repeats``, ``budget``: most calls of an engine on a problem, and the seconds that they may take.
    * ``peers``: time torch, NumPy and opt_einsum too. They run in this interpreter, on the same arrays.
    * ``quick``: small lengths and few calls.

    Raises ``ValueError`` for what makes no sense, ``RuntimeError`` where a result of einfall is wrong.

    >>> report = einfall.bench_keys(quick=True, k=[3], op="scores", case=["shared", "separate-lookup"])
    >>> sorted((row["case"], row["engine"], row["ok"]) for row in report.rows)
    [('separate-lookup', 'einfall', True), ('shared', 'einfall', True)]
    """
    words = [f"--dtype={dtype}", f"--table-dtype={table_dtype}", f"--device={device}", f"--seed={seed}"]
    words += [f"--size={name}={length}" for name, length in (sizes or {}).items()]
    words += [f"--k={length}" for length in k]
    for name, given in (("op", op), ("case", case)):
        words += [f"--{name}={one}" for one in ([given] if isinstance(given, str) else given)]
    limits = {"threads": threads, "repeats": repeats, "budget": budget}
    words += [f"--{name}={value}" for name, value in limits.items() if value is not None]
    words += [word for word, wanted in (("--peers", peers), ("--quick", quick), ("--json", True)) if wanted]
    document, text, lines, pictures = _einfall._bench_keys(words)
    table: list[list[_Any]] = [list(_einfall._BENCH_HEADER)]
    table += [[op, case, k, *cells] for op, case, k, cells in lines]
    return BenchReport(text, _json.loads(document), table, pictures)


def bench_dense(only: str | _Sequence[str] = (), **options: _Any) -> BenchReport:
    """Times einsums of dense arrays, case by case, as ``einfall bench dense`` does, and writes no files.

    * ``only``: names of cases or sections; all of them where none is given.
    * ``dtype``: element types to run cases of f32 and bf16 in; each its own where none is given.
    * ``table_dtype``, ``device``, ``threads``, ``repeats``, ``budget``, ``peers``, ``seed``, ``quick``: as for
      ``bench_keys``. ``no_compile``: leaves out peers that compile, which take long.

    Raises ``ValueError`` for what makes no sense, ``RuntimeError`` where a result of einfall is wrong.

    >>> report = einfall.bench_dense(["matmul", "trace"], quick=True)
    >>> [(row["name"], row["engine"], row["ok"]) for row in report.rows]
    [('matmul', 'einfall', True), ('trace', 'einfall', True)]
    """
    return _bench_suite("dense", only, **options)


def bench_lookups(only: str | _Sequence[str] = (), **options: _Any) -> BenchReport:
    """Times contractions whose keys are looked up, as ``einfall bench lookups`` does, and writes no files.

    Options are those of ``bench_dense``.

    >>> report = einfall.bench_lookups("moe", quick=True)
    >>> [(row["name"], row["equation"], row["ok"]) for row in report.rows]
    [('moe', 'td,[t]df->tf', True)]
    """
    return _bench_suite("lookups", only, **options)


def _bench_suite(
    suite: str,
    only: str | _Sequence[str],
    *,
    dtype: str | _Sequence[str] = (),
    table_dtype: str = "i64",
    device: str = "cpu",
    threads: int | None = None,
    repeats: int | None = None,
    budget: float | None = None,
    peers: bool = False,
    no_compile: bool = False,
    seed: int = 1,
    quick: bool = False,
) -> BenchReport:
    words = [f"--table-dtype={table_dtype}", f"--device={device}", f"--seed={seed}"]
    for name, given in (("only", only), ("dtype", dtype)):
        words += [f"--{name}={one}" for one in ([given] if isinstance(given, str) else given)]
    limits = {"threads": threads, "repeats": repeats, "budget": budget}
    words += [f"--{name}={value}" for name, value in limits.items() if value is not None]
    flags = (("--peers", peers), ("--no-compile", no_compile), ("--quick", quick), ("--json", True))
    words += [word for word, wanted in flags if wanted]
    document, text, lines, pictures = _einfall._bench_suite(suite, words)
    table: list[list[_Any]] = [["case", *_einfall._BENCH_HEADER[3:]]]
    table += [[case, *cells] for case, cells in lines]
    return BenchReport(text, _json.loads(document), table, pictures)


def tensordot(a: _Any, b: _Any, axes: _Any = 2) -> _Any:
    """The tensor product of two arrays, summed over axes, as ``numpy.tensordot`` gives it.

    >>> einfall.tensordot(np.arange(6.0).reshape(2, 3), np.ones((3, 2)), axes=1)
    array([[ 3.,  3.],
           [12., 12.]])
    """
    a, b = _array(a), _array(b)
    a_rank, b_rank = len(a.shape), len(b.shape)
    if isinstance(axes, int):
        left, right = list(range(a_rank - axes, a_rank)), list(range(axes))
    else:
        left, right = ([one] if isinstance(one, int) else list(one) for one in axes)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} axes of `a` are summed with {len(right)} of `b`")
    first, second = list(range(a_rank)), list(range(a_rank, a_rank + b_rank))
    for one, other in zip(left, right):
        if a.shape[one] != b.shape[other]:
            raise ValueError(f"axis {one} of `a` is {a.shape[one]} but axis {other} of `b` is {b.shape[other]}")
        second[other] = first[one]
    summed = {first[one] for one in left}
    kept = [label for label in first + second if label not in summed]
    return einsum(a, first, b, second, kept)


def transpose(a: _Any, axes: _Any = None) -> _Any:
    """The array with its axes in another order, as a view.

    >>> einfall.transpose(np.zeros((2, 3, 5)), (2, 0, 1)).shape
    (5, 2, 3)
    """
    a = _array(a)
    axes = tuple(range(len(a.shape)))[::-1] if axes is None else tuple(axes)
    return a.permute(axes) if hasattr(a, "permute") else a.transpose(axes)


def _array(a: _Any) -> _Any:
    """Lists and numbers as arrays, if NumPy is there."""
    numpy = _sys.modules.get("numpy")
    return a if hasattr(a, "shape") or numpy is None else numpy.asarray(a)


if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_einfall._forget_device)
_hooks.install()
