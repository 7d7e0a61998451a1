"""Attention whose keys are looked up, slid over, or all of them: the calls, on arrays of any library.

*In*: arrays. *Out*: arrays of the same library. The usual shapes are written as an equation here; the compiled part runs
it, or hands it to what knows torch's or JAX's transformations.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, Mapping, NamedTuple, Sequence

from einfall import _einfall
from einfall._report import Report
from einfall._table import Table

_Window = int | Sequence[int]


def attention(
    query: Any,
    key: Any,
    value: Any,
    table: Any = None,
    *,
    window: _Window | None = None,
    dilation: _Window = 1,
    scale: float | None = None,
    bias: Any = None,
    bounds: Literal["error", "skip"] = "skip",
    causal: bool = False,
    return_lse: bool = False,
) -> Any:
    """Softmax attention of every query to keys of its own, selected by a table or a window, or to all keys.

    ``softmax(scale * query·key + bias)·value``, where what is selected is read where it lies: neither selected keys, nor
    scores, nor probabilities are stored, so memory is that of the result.

    * ``query``: ``(b, h, q, d)``. ``key``: ``(b, g, n, d)``. ``value``: ``(b, g, n, e)``. All of one type, float16,
      bfloat16, float32 or float64; h is a multiple of g, and query head i reads head ``i // (h // g)`` of the keys.
    * ``table``: integers ``(b|1, h|g|1, q, k)``, also ``(h|g|1, q, k)`` or ``(q, k)``: positions of the k keys of each
      query. -1 pads a short list: what it points to is never read. Heads that share a table share its loads. Lists of
      different lengths are ``einfall.Table(indices, offsets=offsets)``, read as they lie.
    * ``window``: in place of a table, the number of keys along each axis: one integer, or one for each of the up to three
      axes of ``query (b, h, *axes, d)``, ``key (b, g, *axes, d)``. It is centred at the query; with ``causal`` it ends
      there. Positions outside are left out. ``dilation`` is the distance from one key of a window to the next.
    * ``scale``: by default ``1 / sqrt(d)``.
    * ``bias``: ``(b|1, h|1, q|1, k|1)``, or for windows ``(b|1, h|1, *axes, *window)``, each axis of them or 1: added to
      the scores. For lists of different lengths ``(entries,)`` or ``(h, entries)``, one for each index.
    * ``bounds``: ``"skip"`` leaves out table values outside of the keys, ``"error"`` raises ``TableError``.
    * ``causal``: leaves out keys after the query: query i sees the keys 0 to i, as in torch.
    * ``return_lse``: also return the logarithm (base e) of the sum of exponentials, ``(b, h, q)``, float32, or float64
      for float64. No gradient goes through it.

    Returns ``(b, h, q, e)``, of the type of the query. A query without keys gets 0, and ``-inf``. In torch and JAX it has
    gradients for query, key, value and bias.

    Raises ``ValueError`` for shapes and element types, ``TypeError`` for tables that hold no integers and for mixed
    libraries, ``TableError`` for table values.

    Cost: arithmetic of ``b·h·q·k·(d + e)`` multiply-adds, memory of the result; :func:`explain_attention` says how.

    Examples
    --------
    Two queries, of which the second has one key only, so that it gets the value of that:

    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.normal(size=(1, 1, n, 4)) for n in (2, 5, 5))
    >>> out, lse = einfall.attention(q, k, v, np.array([[0, 3], [2, -1]]), return_lse=True)
    >>> out.shape, lse.shape
    ((1, 1, 2, 4), (1, 1, 2))
    >>> bool(np.allclose(out[0, 0, 1], v[0, 0, 2]))
    True

    Each pixel of an image looks at the 3 by 3 pixels around it, those at the edge at fewer:

    >>> x = rng.normal(size=(1, 2, 6, 7, 4))
    >>> einfall.attention(x, x, x, window=3).shape
    (1, 2, 6, 7, 4)
    """
    query, key, value, (table, offsets) = _array(query), _array(key), _array(value), _lists(table)
    bias = None if bias is None else _array(bias)
    call, operands = _usual(query, key, value, table, offsets, bias, window, dilation, causal)
    out, lse = _einfall._attend(
        call.equation, operands, dict(call.sizes), scale, bounds, causal and not call.windowed, return_lse
    )
    out = _reshaped(out, call.out)
    return (out, _reshaped(lse, call.out and call.out[:-1])) if return_lse else out


def attend(
    equation: str,
    *operands: Any,
    sizes: Mapping[str, int] | None = None,
    scale: float | None = None,
    bounds: Literal["error", "skip"] = "skip",
    causal: bool = False,
    return_lse: bool = False,
) -> Any:
    """Softmax attention by an equation, ``"bhqd, bh[bhqk]d, bh[bhqk]e -> bhqe"``: the general form of :func:`attention`.

    The operands are query, key, value, and a bias over labels of the scores if there is a fourth term. The softmax runs
    over the labels that key or value have (with their tables and windows), and neither query nor output. Keys and values
    stand at the same positions, so their brackets read the same; a table is given once, after the key, or after both.

    ``sizes`` gives lengths that no operand gives, such as those of windows; the rest is as for :func:`attention`. The
    logarithm of the sum of exponentials has the labels of the output that key or query have.

    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.normal(size=(n, 4)) for n in (2, 5, 5))
    >>> table = np.array([[0, 3], [2, -1]])
    >>> out = einfall.attend("qd,[qk]d,[qk]e->qe", q, k, table, v)
    >>> bool(np.allclose(out[1], v[2]))
    True
    """
    arrays = [operand if isinstance(operand, Table) else _array(operand) for operand in operands]
    out, lse = _einfall._attend(equation, arrays, dict(sizes or {}), scale, bounds, causal, return_lse)
    return (out, lse) if return_lse else out


def explain_attention(*arguments: Any, dtype: Any = None, **options: Any) -> Report:
    """Why attention costs what it costs: every kernel that was asked, and what it would take.

    Takes the arguments of :func:`attention`, or of :func:`attend` where the first is an equation. Nothing is computed, so
    shapes may stand in place of arrays (of type ``dtype``, by default float32; tables int64).

    >>> shape = (2, 8, 1000, 64)
    >>> report = einfall.explain_attention(shape, shape, shape, (2, 1, 1000, 100))
    >>> report.to_dict()["equation"], report.to_dict()["shape"]
    ('bhqd,bh[bqk]d,bh[bqk]e->bhqe', (2, 8, 1000, 64))
    """
    if arguments and isinstance(arguments[0], str):
        return _explain_equation(*arguments, dtype=dtype, **options)
    return _explain_usual(*arguments, dtype=dtype, **options)


def _explain_equation(
    equation: str,
    *operands: Any,
    sizes: Mapping[str, int] | None = None,
    scale: float | None = None,
    bounds: str = "skip",
    causal: bool = False,
    return_lse: bool = False,
    dtype: Any = None,
) -> Report:
    given = [one.array if isinstance(one, Table) else one for one in operands]
    return Report(*_einfall._explain_attend(equation, given, dict(sizes or {}), scale, bounds, causal, dtype))


def _explain_usual(
    query: Any,
    key: Any,
    value: Any,
    table: Any = None,
    *,
    window: _Window | None = None,
    dilation: _Window = 1,
    scale: float | None = None,
    bias: Any = None,
    bounds: str = "skip",
    causal: bool = False,
    return_lse: bool = False,
    dtype: Any = None,
) -> Report:
    table, offsets = _lists(table) if isinstance(table, Table) else (table, None)
    arguments = (query, key, value, table, offsets, bias)
    given: list[Any] = [None if one is None else _Described.of(one) for one in arguments]
    call, operands = _usual(given[0], given[1], given[2], given[3], given[4], given[5], window, dilation, causal)
    arrays = [one.array if one.array is not None else one.shape for one in operands]
    masked = causal and not call.windowed
    return Report(*_einfall._explain_attend(call.equation, arrays, dict(call.sizes), scale, bounds, masked, dtype))


class _Described:
    """An array or a shape in its place, as far as writing an equation goes."""

    def __init__(self, shape: tuple[Any, ...], array: Any) -> None:
        self.shape, self.array = shape, array

    @classmethod
    def of(cls, given: Any) -> _Described:
        """What may stand in place of an array."""
        plain = isinstance(given, (tuple, list))
        return cls(tuple(given) if plain else _shape(given, "an operand"), None if plain else given)

    def reshape(self, shape: tuple[Any, ...]) -> _Described:
        """As arrays have it."""
        return _Described(shape, None if self.array is None else self.array.reshape(shape))


def _usual(
    query: Any,
    key: Any,
    value: Any,
    table: Any,
    offsets: Any,
    bias: Any,
    window: _Window | None,
    dilation: _Window,
    causal: bool,
) -> tuple[_Call, list[Any]]:
    """A call of :func:`attention` as an equation, and its operands."""
    call = _write(
        _shape(query, "query"),
        _shape(key, "key"),
        _shape(value, "value"),
        None if table is None else _shape(table, "table"),
        None if offsets is None else _shape(offsets, "offsets"),
        None if bias is None else _shape(bias, "bias"),
        window,
        dilation,
        causal,
    )
    operands = [_reshaped(query, call.query), key]
    if table is not None:
        operands.append(table if offsets is not None else _relabelled(table, call.table))
    operands.append(value)
    if bias is not None:
        operands.append(_reshaped(bias, call.bias))
    if offsets is not None:
        operands.append(_relabelled(offsets, call.table))
    return call, operands


class _Call(NamedTuple):
    """A call of the usual shapes as an equation, with the shapes that its operands have there, where they are others."""

    equation: str
    sizes: tuple[tuple[str, int], ...]
    query: tuple[Any, ...] | None
    #: Of the table, or of the offsets where there are any.
    table: tuple[Any, ...] | None
    bias: tuple[Any, ...] | None
    out: tuple[Any, ...] | None
    windowed: bool


def _write(
    query: tuple[Any, ...],
    key: tuple[Any, ...],
    value: tuple[Any, ...],
    table: tuple[Any, ...] | None,
    offsets: tuple[Any, ...] | None,
    bias: tuple[Any, ...] | None,
    window: _Window | None,
    dilation: _Window,
    causal: bool,
) -> _Call:
    """Writes the equation; lengths may be symbols."""
    if window is not None and table is not None:
        raise ValueError("`table` and `window` are both given\nhint: a window is a table that is not stored")
    axes = len(query) - 3 if window is not None else 1
    if window is None and dilation != 1:
        raise ValueError("`dilation` is given without `window`")
    if not 1 <= axes <= 3 or len(query) != axes + 3:
        wanted = "(b, h, q, d)" if window is None else "(b, h, *axes, d) with one to three axes"
        raise ValueError(f"query has the shape {_text(query)}, but {wanted} is wanted")
    for name, shape, last in (("key", key, "d"), ("value", value, "e")):
        if len(shape) != axes + 3:
            wanted = f"(b, g, n, {last})" if window is None else f"(b, g, *axes, {last})"
            raise ValueError(f"{name} has the shape {_text(shape)}, but {wanted} is wanted as query is {_text(query)}")
        if shape[0] != query[0]:
            raise ValueError(f"label `b` is {query[0]} in query but {shape[0]} in {name}")
    if key[-1] != query[-1]:
        raise ValueError(f"label `d` is {query[-1]} in query but {key[-1]} in key")
    if key[1:-1] != value[1:-1]:
        raise ValueError(f"key is {_text(key)} but value {_text(value)}: all but the last axis must be the same")
    if window is not None and key[2:-1] != query[2:-1]:
        raise ValueError(f"the axes of query are {_text(query[2:-1])} but those of key {_text(key[2:-1])}")
    batch, heads, groups = query[0], query[1], key[1]
    repeat = _repeat(heads, groups)
    grouped = repeat != 1
    head = "gr" if grouped else "h"
    kv = "g" if grouped else "h"

    places = "xyz"[:axes] if window is not None else "q"
    sizes: tuple[tuple[str, int], ...] = ()
    table_shape: tuple[Any, ...] | None = None
    lists = ""
    if offsets is not None:
        lists, table_shape = _offsets(offsets, batch, heads, groups, repeat, query[2])
        positions, keys = "[k]", "k"
    elif table is not None:
        table_labels, table_shape = _table(table, batch, heads, groups, repeat, query[2])
        positions, keys = f"[{table_labels}]", "k"
    elif window is not None:
        lens, steps = _each("window", window, axes), _each("dilation", dilation, axes)
        keys, positions = "uvw"[:axes], ""
        for place, label, length, step in zip(places, keys, lens, steps):
            before = step * (length - 1 if causal else length // 2)
            positions += f"[{place}+{step if step != 1 else ''}{label}-{before}]"
        sizes = tuple(zip(keys, lens))
    else:
        positions, keys = "n", "n"

    equation = f"b{head}{places}d,b{kv}{positions}d,b{kv}{positions}e"
    bias_shape = None
    if bias is not None:
        widths = [key[2]] if table is None else [table[-1]]
        if window is not None:
            widths = [one for _, one in sizes]
        if offsets is not None:
            bias = (1,) * (3 - len(bias)) + bias[:-1] + (1,) + bias[-1:]
        bias_labels, bias_shape = _bias(bias, batch, heads, groups, repeat, places, query[2:-1], keys, widths)
        equation += f",{bias_labels}"
    equation += f"->b{head}{places}e" + (f"|{lists}" if lists else "")
    if not grouped:
        return _Call(equation, sizes, None, table_shape, bias_shape, None, window is not None)
    split = (batch, groups, repeat, *query[2:])
    return _Call(equation, sizes, split, table_shape, bias_shape, (*query[:-1], value[-1]), window is not None)


def _repeat(heads: Any, groups: Any) -> Any:
    """How many heads of the query read one of the keys."""
    if heads == groups:
        return 1
    if groups == 0 or heads % groups != 0:
        raise ValueError(f"query has {heads} heads but key {groups}: the first must be a multiple of the second")
    return heads // groups


def _table(
    shape: tuple[Any, ...], batch: Any, heads: Any, groups: Any, repeat: Any, queries: Any
) -> tuple[str, tuple[Any, ...]]:
    """The labels of a table, and its shape for them."""
    wanted = f"(b|1, h|g|1, q, k) with b={batch}, h={heads}, g={groups}, q={queries}, also without the first or first two"
    if not 2 <= len(shape) <= 4 or shape[-2] != queries:
        raise ValueError(f"table has the shape {_text(shape)}, but {wanted} is wanted")
    labels, lens = _leading("table", shape[:-2], batch, heads, groups, repeat, wanted, True)
    return labels + "qk", (*lens, *shape[-2:])


def _offsets(
    shape: tuple[Any, ...], batch: Any, heads: Any, groups: Any, repeat: Any, queries: Any
) -> tuple[str, tuple[Any, ...]]:
    """The labels of offsets, and their shape for them."""
    wanted = (
        f"(b|1, h|g|1, q + 1) with b={batch}, h={heads}, g={groups}, q={queries}, also without the first or first two"
    )
    if not 1 <= len(shape) <= 3 or shape[-1] != queries + 1:
        raise ValueError(f"offsets have the shape {_text(shape)}, but {wanted} are wanted")
    labels, lens = _leading("offsets", shape[:-1], batch, heads, groups, repeat, wanted, True)
    return labels + "q", (*lens, shape[-1])


def _leading(
    name: str, shape: tuple[Any, ...], batch: Any, heads: Any, groups: Any, repeat: Any, wanted: str, by_group: bool
) -> tuple[str, tuple[Any, ...]]:
    """Labels and lengths of the axes for batch and head, of which those of length 1 are dropped."""
    shape = (1,) * (2 - len(shape)) + shape
    labels = ""
    lens: tuple[Any, ...] = ()
    if shape[0] == batch and batch != 1:
        labels, lens = "b", (batch,)
    elif shape[0] != 1:
        raise ValueError(f"{name} has {shape[0]} in its axis b, but {wanted} is wanted")
    if shape[1] == heads and heads != 1:
        labels, lens = labels + ("h" if repeat == 1 else "gr"), (*lens, *((heads,) if repeat == 1 else (groups, repeat)))
    elif by_group and shape[1] == groups and groups != 1:
        labels, lens = labels + "g", (*lens, groups)
    elif shape[1] != 1:
        raise ValueError(f"{name} has {shape[1]} in its axis h, but {wanted} is wanted")
    return labels, lens


def _bias(
    shape: tuple[Any, ...],
    batch: Any,
    heads: Any,
    groups: Any,
    repeat: Any,
    places: str,
    queries: Sequence[Any],
    keys: str,
    lens: Sequence[Any],
) -> tuple[str, tuple[Any, ...]]:
    """The labels of a bias, and its shape for them: axes of length 1 are dropped."""
    pairs = list(zip(places + keys, [*queries, *lens]))
    described = ", ".join(f"{label}={length}" for label, length in pairs)
    wanted = f"(b|1, h|1, {', '.join(places + keys)}) with b={batch}, h={heads}, {described}, or 1,"
    if len(shape) != 2 + len(pairs):
        raise ValueError(f"bias has the shape {_text(shape)}, but {wanted} is wanted")
    labels, kept = _leading("bias", shape[:2], batch, heads, groups, repeat, wanted, False)
    for (label, length), found in zip(pairs, shape[2:]):
        if found == length and (length != 1 or label in keys):
            labels, kept = labels + label, (*kept, found)
        elif found != 1:
            raise ValueError(f"bias has {found} in its axis {label}, but {wanted} is wanted")
    return labels, kept


def _each(name: str, given: _Window, axes: int) -> tuple[int, ...]:
    """One positive integer for each axis."""
    found: tuple[Any, ...] = tuple(given) if isinstance(given, (tuple, list)) else (given,) * axes
    if len(found) != axes:
        raise ValueError(f"`{name}` has {len(found)} entries for {axes} axes")
    for one in found:
        if isinstance(one, (bool, float, str)):
            raise TypeError(f"`{name}` is {one!r}, not an integer or a tuple of integers")
        if one < 1:
            raise ValueError(f"`{name}` is {one}, but it must be at least 1")
    return tuple(int(one) for one in found)


def _shape(array: Any, name: str) -> tuple[Any, ...]:
    shape = getattr(array, "shape", None)
    if shape is None:
        raise TypeError(f"{name} is no array of NumPy, torch, JAX or CuPy")
    return tuple(shape)


def _text(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _reshaped(array: Any, shape: tuple[Any, ...] | None) -> Any:
    return array if shape is None or tuple(array.shape) == shape else array.reshape(shape)


def _relabelled(table: Any, shape: tuple[Any, ...] | None) -> Any:
    """The same with other axes; what hangs on it stays there."""
    found = _reshaped(table, shape)
    if found is not table and hasattr(table, "_einfall_kept"):
        found._einfall_kept = table._einfall_kept
    return found


def _lists(table: Any) -> tuple[Any, Any]:
    """The array of a table, and where lists of different lengths begin."""
    if isinstance(table, Table):
        return table.array, table.offsets
    return (None if table is None else _array(table)), None


def _array(a: Any) -> Any:
    """Lists and numbers as arrays, if NumPy is there."""
    if hasattr(a, "shape"):
        return a
    numpy = sys.modules.get("numpy")
    return a if numpy is None else numpy.asarray(a)
