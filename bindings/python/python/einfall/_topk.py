"""The best keys of each query."""

from __future__ import annotations

import sys
from typing import Any

from einfall import _einfall

#: Scores that are stored at a time.
_MOST_SCORES = 1 << 22


def topk_keys(query: Any, key: Any, count: int, *, causal: bool = False) -> Any:
    """A table of the ``count`` keys with the largest products with each query, best first, for :func:`attention`.

    ``query`` is ``(b, h, q, d)``, ``key`` ``(b, g, n, d)``, h a multiple of g; the table is ``(b, h, q, count)``, int32,
    or int64 where positions need it, in the library of the arrays. Where there are fewer keys, and with ``causal`` fewer
    that are not after the query (query i sees the keys 0 to i), -1 fills up. No gradient goes through it.

    Cost: all products, a part of the queries at a time: ``b·h·q·n·d`` multiply-adds, at most some 16 MB of scores.

    >>> key = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]).reshape(1, 1, 3, 2)
    >>> einfall.topk_keys(key, key, 2)
    array([[[[2, 0],
             [2, 1],
             [2, 0]]]], dtype=int32)
    """
    if len(query.shape) != 4 or len(key.shape) != 4:
        raise ValueError(f"query and key are {tuple(query.shape)} and {tuple(key.shape)}, not (b, h, q, d), (b, g, n, d)")
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"`count` is {count!r}, not an integer")
    if count < 0:
        raise ValueError(f"`count` is {count}, but it must be at least 0")
    batch, heads, queries, depth = query.shape
    groups, keys = key.shape[1:3]
    if groups == 0 or heads % groups != 0:
        raise ValueError(f"query has {heads} heads but key {groups}: the first must be a multiple of the second")
    if hasattr(query, "detach"):
        query, key = query.detach(), key.detach()
    split = query.reshape((batch, groups, heads // groups, queries, depth))
    part = max(1, _MOST_SCORES // max(1, batch * heads * keys))
    found = []
    for start in range(0, queries, part):
        some = split[:, :, :, start : start + part]
        scores = _einfall.einsum("bgrqd,bgnd->bgrqn", some, key)
        scores = scores.reshape((batch, heads, some.shape[3], keys))
        found.append(_best(scores, min(count, keys), start if causal else None))
    return _joined(found, query, (batch, heads, queries), min(count, keys), count)


def _best(scores: Any, count: int, last: int | None) -> Any:
    """Positions of the largest scores; those after ``last`` (of the first query) are -1."""
    library, place = _library(scores)
    dtype = library.int32 if scores.shape[-1] < 1 << 31 else library.int64
    most = None
    if last is not None:
        most = library.arange(last, last + scores.shape[2], **place)[:, None]
        behind = library.arange(scores.shape[-1], **place) > most
        scores = library.where(behind, -library.inf, scores)
    if library.__name__ == "torch":
        best = scores.topk(count).indices
    elif library.__name__ == "jax.numpy":
        best = sys.modules["jax"].lax.top_k(scores, count)[1]
    elif count == 0:
        best = library.zeros((*scores.shape[:-1], 0), dtype=dtype)
    else:
        best = library.sort(library.argpartition(-scores, count - 1, -1)[..., :count], -1)
        order = library.argsort(-library.take_along_axis(scores, best, -1), -1, kind="stable")
        best = library.take_along_axis(best, order, -1)
    best = best if most is None else library.where(best > most, -1, best)
    return best.to(dtype) if library.__name__ == "torch" else best.astype(dtype)


def _joined(parts: list[Any], query: Any, shape: tuple[int, ...], found: int, count: int) -> Any:
    """The parts in one array, filled up with -1."""
    library, place = _library(query)
    parts = parts or [library.zeros((*shape, found), dtype=library.int32, **place)]
    fill = library.full((*shape, count - found), -1, dtype=parts[0].dtype, **place)
    table = parts[0] if len(parts) == 1 else library.concatenate(parts, 2)
    return table if count == found else library.concatenate([table, fill], 3)


def _library(array: Any) -> tuple[Any, dict[str, Any]]:
    """The library whose functions take the array, and where it is."""
    if hasattr(array, "detach"):
        return sys.modules["torch"], {"device": array.device}
    module = type(array).__module__.partition(".")[0]
    return sys.modules["jax.numpy" if module in ("jax", "jaxlib") else module], {}
