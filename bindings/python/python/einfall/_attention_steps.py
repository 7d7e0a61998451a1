"""Attention as einsums: what stands in for its kernels where there are none, and where they are derived or transformed.

Scores are stored, selected keys are not. Nothing but functions that every library has is used, so derivatives of any order
and transformations are those of the library and of ``einfall.einsum``.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import einfall
from einfall import _attention_terms, _terms


class Settings(NamedTuple):
    """A call, without its operands."""

    equation: str
    sizes: tuple[tuple[str, Any], ...]
    scale: float | None
    bounds: str
    causal: bool


class Library(NamedTuple):
    """What is asked of a library: its module, and functions that do not have one name everywhere."""

    module: Any
    #: The array as a constant to derivatives.
    constant: Callable[[Any], Any]
    #: To another type.
    cast: Callable[[Any, Any], Any]
    #: The device, as keyword arguments for what makes arrays.
    place: Mapping[str, Any]


def _einsum(text: str, arguments: Sequence[Any], sizes: Mapping[str, Any], bounds: Any) -> Any:
    first, *rest = arguments
    return einfall.einsum(text, first, *rest, sizes=sizes, bounds=bounds)


class _Parts:
    """Operands of a call, what the equation says of them, and the scores."""

    def __init__(self, library: Library, settings: Settings, operands: Sequence[Any]) -> None:
        self.library, self.settings = library, settings
        tables = _attention_terms.lookups(settings.equation)
        narrow = ("float16", "bfloat16")
        # Scores are not rounded to half types.
        wide = [
            library.cast(one, library.module.float32) if str(one.dtype).removeprefix("torch.") in narrow else one
            for one in operands
        ]
        self.query, self.key, self.value, self.bias = wide[0], wide[1], wide[2 + tables], wide[3 + tables :]
        self.tables = wide[2 : 2 + tables]
        self.terms = _attention_terms.terms_of(settings.equation, operands)
        shapes = [one.shape for one in _attention_terms.twice(settings.equation, operands)]
        self.known = _terms.lengths(self.terms, shapes, dict(settings.sizes))
        self.steps = _attention_terms.steps(self.terms)
        self.rows = len(_attention_terms.roles(self.terms).rows)
        scale = settings.scale
        self.scale = _attention_terms.default_scale(self.terms, self.known) if scale is None else scale

    def einsum(self, text: str, *arguments: Any) -> Any:
        sizes = {label: length for label, length in self.known.items() if label in text}
        return _einsum(text, arguments, sizes, self.settings.bounds)

    def spread(self, array: Any, labels: str) -> Any:
        """With an axis of length 1 for every label of the scores that it lacks."""
        lens = dict(zip(labels, array.shape))
        return array.reshape([lens.get(label, 1) for label in self.steps.labels])

    def selected(self, axis: int, array: Any) -> Any:
        """What the array holds at the places on an axis of the key that scores stand for."""
        for number, text, at in self.steps.positions:
            if number == axis:
                found = self.einsum(text, array, *(self.tables[at : at + 1] if at >= 0 else []))
                return self.spread(found, text.partition("->")[2])
        return self.spread(array, self.terms.operands[1][axis][1])

    def valid(self) -> Any:
        """Whether a score has a key; axes may have length 1."""
        module, place = self.library.module, self.library.place
        found = module.ones([1] * len(self.steps.labels), dtype=bool, **place)
        for axis, _, _ in self.steps.positions:
            found = found & (self.selected(axis, module.ones(self.key.shape[axis], dtype=module.int32, **place)) > 0)
        if self.settings.causal:
            label, axis = _attention_terms.causal(self.terms)
            keys = self.selected(axis, module.arange(self.key.shape[axis], **place))
            found = found & (keys <= self.spread(module.arange(self.known[label], **place), label))
        return found

    def weights(self) -> tuple[Any, Any]:
        """Probabilities, and the log-sum-exp."""
        module = self.library.module
        scores = self.einsum(self.steps.scores, self.query, self.key, *self.tables) * self.scale
        for bias in self.bias:
            ordered = self.einsum(f"{_terms.term_text(self.terms.operands[3])}->{self.steps.bias}", bias)
            scores = scores + self.spread(ordered, self.steps.bias)
        shape, kept = scores.shape, list(scores.shape[: self.rows])
        if 0 in shape[self.rows :]:
            return scores, module.full(kept, -module.inf, dtype=scores.dtype, **self.library.place)
        scores = module.where(self.valid(), scores, -module.inf).reshape([*kept, math.prod(shape[self.rows :])])
        most = self.library.constant(module.amax(scores, -1))
        some = most != -module.inf
        most = module.where(some, most, 0.0)
        weights = module.exp(scores - most[..., None])
        total = module.where(some, weights.sum(-1), 1.0)
        lse = module.where(some, module.log(total) + most, -module.inf)
        return (weights / total[..., None]).reshape(shape), lse


def forward(library: Library, settings: Settings, operands: Sequence[Any]) -> tuple[Any, Any]:
    """The result and its log-sum-exp."""
    check(settings.equation, operands)
    text, operands = _attention_terms.padded(settings.equation, operands, library.module, library.place)
    parts = _Parts(library, settings._replace(equation=text), operands)
    weights, lse = parts.weights()
    out = parts.einsum(parts.steps.values, weights, parts.value, *parts.tables)
    return library.cast(out, operands[0].dtype), library.constant(lse)


def _attend(
    equation: str,
    operands: Sequence[Any],
    sizes: Mapping[str, int],
    scale: float | None,
    bounds: str,
    causal: bool,
    return_lse: bool,
) -> tuple[Any, Any]:
    """``einfall.attend`` on arrays of NumPy and CuPy."""
    operands = _attention_terms.once(equation, operands)
    library = of_arrays(operands)
    operands = [library.module.asarray(one) for one in operands]
    out, lse = forward(library, Settings(equation, tuple(sizes.items()), scale, bounds, causal), operands)
    return out, lse if return_lse else None


def of_arrays(operands: Sequence[Any]) -> Library:
    """NumPy, or CuPy where an operand is its array."""
    names = {type(one).__module__.partition(".")[0] for one in operands}
    module = sys.modules["cupy" if "cupy" in names else "numpy"]
    return Library(module, lambda array: array, lambda array, dtype: array.astype(dtype, copy=False), {})


def check(equation: str, operands: Sequence[Any]) -> None:
    """Refuses types that attention is not there for."""
    if _attention_terms.offsets(equation):
        name = str(operands[-1].dtype).removeprefix("torch.")
        if "int" not in name:
            raise TypeError(f"offsets are of type {name}, not of integers")
    equation, operands = _attention_terms.plain(equation, operands)
    tables = range(2, 2 + _attention_terms.lookups(equation))
    names = [str(one.dtype).removeprefix("torch.") for one in operands]
    for at, name in enumerate(names):
        if at in tables and "int" not in name:
            raise TypeError(f"argument {at} is a table of type {name}, not of integers")
        if at not in tables and name not in ("float16", "bfloat16", "float32", "float64"):
            raise TypeError(f"argument {at} is of type {name}, not of float16, bfloat16, float32 or float64")
        if at not in tables and name != names[0]:
            raise TypeError(f"argument 0 is of type {names[0]} but argument {at} of type {name}: all must be of one type")
