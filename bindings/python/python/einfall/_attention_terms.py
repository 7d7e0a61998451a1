"""What an attend-equation says of shapes and labels, for libraries that trace and transform calls.

Arguments are query, key, tables of the key, value, and a bias where there is one; the value reads the key's tables again.
Lengths may be symbols. Lists of different lengths are written ``equation|labels``: the table has one axis, and offsets, whose
axes have these labels, come last.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Mapping, NamedTuple, Sequence

from einfall import _terms
from einfall._terms import Terms, axis_labels, axis_text


class Roles(NamedTuple):
    """The labels of an attention."""

    #: Of the log-sum-exp: those of the output that scores have, in its order.
    rows: tuple[str, ...]
    #: Those that the softmax runs over.
    keys: tuple[str, ...]


def lookups(equation: str) -> int:
    """Tables of the key, by means that tracers can follow."""
    terms = equation.partition("->")[0].split(",")
    if len(terms) < 3:
        return 0
    inside = [part.partition("]")[0].replace(" ", "") for part in terms[1].split("[")[1:]]
    return len([text for text in inside if text.isalpha()])


def wanted(equation: str, numbers: Sequence[int]) -> list[bool]:
    """Whether arguments with these numbers are query, key, value and bias."""
    tables = lookups(equation)
    return [at in numbers for at in (0, 1, 2 + tables, 3 + tables)]


def offsets(equation: str) -> str:
    """The labels of the offsets, if there are any."""
    return equation.partition("|")[2]


def plain(equation: str, arguments: Sequence[Any]) -> tuple[str, list[Any]]:
    """Equation and arguments without the offsets."""
    text, _, labels = equation.partition("|")
    return text, list(arguments[:-1] if labels else arguments)


def differentiable(equation: str, count: int) -> list[int]:
    """Positions of the arguments that are no integers."""
    tables = lookups(equation)
    return [at for at in range(count - (offsets(equation) != "")) if not 2 <= at < 2 + tables]


def padded(equation: str, arguments: Sequence[Any], module: Any, place: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The same lists, filled up with -1 to one length, which is read from the offsets."""
    text, given = plain(equation, arguments)
    labels = offsets(equation)
    if not labels:
        return text, given
    starts, ends = arguments[-1][..., :-1, None], arguments[-1][..., 1:, None]
    lens = ends - starts
    most = int(lens.max()) if 0 not in lens.shape else 0
    slots = module.arange(max(most, 0), **place)
    # A bad offset points to the last entry, not outside.
    places = module.clip(starts + slots, 0, max(given[2].shape[0] - 1, 0))
    inside = slots < lens

    found = given[2][places] if given[2].shape[0] > 0 else places
    given[2] = module.where(inside, found, -module.ones_like(found))
    operands = text.partition("->")[0].split(",")
    entry = operands[1].partition("[")[2].partition("]")[0]
    operands[1:3] = [one.replace(f"[{entry}]", f"[{labels}{entry}]") for one in operands[1:3]]
    if len(operands) > 3:
        given[4] = given[4][..., places]
        operands[3] = operands[3].removesuffix(entry) + labels + entry
    return ",".join(operands) + "->" + text.partition("->")[2], given


def once(equation: str, operands: Sequence[Any]) -> list[Any]:
    """The arguments with each table given once."""
    equation, _, labels = equation.partition("|")
    last = list(operands[-1:]) if labels else []
    operands = operands[: len(operands) - len(last)]
    count = len(equation.partition("->")[0].split(","))
    if count not in (3, 4):
        raise ValueError(f"attention takes query, key, value and a bias, but `{equation}` has {count} operands")
    if "->" not in equation:
        raise ValueError(f"`{equation}` names no output\nhint: the softmax runs over labels that the output lacks")
    tables = lookups(equation)
    wanted = count + tables
    operands = list(operands)
    if tables > 0 and len(operands) == wanted + tables:
        for one, other in zip(operands[2 : 2 + tables], operands[3 + tables : 3 + 2 * tables]):
            if not _is_same(one, other):
                raise ValueError("the tables of key and value are not the same array\nhint: give the table once")
        operands = operands[: 3 + tables] + operands[3 + 2 * tables :]
    if len(operands) != wanted:
        raise ValueError(f"the equation takes {wanted} operands and tables but {len(operands)} were given")
    return operands + last


def _is_same(one: Any, other: Any) -> bool:
    """Whether two arrays are the same memory, as far as can be told."""
    if one is other:
        return True
    if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
        return False
    where = getattr(one, "__array_interface__", None), getattr(other, "__array_interface__", None)
    return where[0] is not None and where[1] is not None and where[0]["data"] == where[1]["data"]


def twice(equation: str, arguments: Sequence[Any]) -> list[Any]:
    """The arguments as einsum would want them: the tables after key and value."""
    tables = lookups(equation)
    arguments = list(arguments)
    return [*arguments[: 3 + tables], *arguments[2 : 2 + tables], *arguments[3 + tables :]]


def terms_of(equation: str, arguments: Sequence[Any]) -> Terms:
    """The terms for arguments with a shape each, tables given once."""
    return _terms.expand(equation, tuple(len(argument.shape) for argument in twice(equation, arguments)))


def _labels(term: _terms.Term) -> dict[str, None]:
    return dict.fromkeys(label for axis in term for label in axis_labels(axis))


@lru_cache(1024)
def roles(terms: Terms) -> Roles:
    """Which label does what."""
    query, key, value = (_labels(term) for term in terms.operands[:3])
    output = _labels(terms.output)
    scores = {**query, **key, **(_labels(terms.operands[3]) if len(terms.operands) > 3 else {})}
    keys = [label for label in {**key, **value} if label not in query and label not in output and label in value]
    brackets = [[axis for axis in term if axis[0] in ("lookup", "window")] for term in terms.operands[1:3]]
    if brackets[0] != brackets[1]:
        raise ValueError(f"key and value stand at different positions in `{terms}`\nhint: their brackets must be the same")
    if not keys:
        raise ValueError(f"no label of `{terms}` is in key and value, and neither in query nor output")
    if any(axis[0] != "label" for term in (terms.operands[0], *terms.operands[3:], terms.output) for axis in term):
        raise ValueError(f"in `{terms}` a bracket stands elsewhere than in key and value")
    stray = [label for label in output if label not in query and label not in key and label not in value]
    stray += [label for label in value if label not in output and label not in keys and label not in query]
    if stray:
        raise ValueError(f"label `{stray[0]}` has no role in the attention `{terms}`")
    return Roles(tuple(label for label in output if label in scores), tuple(keys))


def shapes(
    equation: str, arguments: Sequence[Any], sizes: Mapping[str, Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The shapes of the output and of the log-sum-exp."""
    equation, arguments = plain(equation, arguments)
    terms = terms_of(equation, arguments)
    known = _terms.lengths(terms, [one.shape for one in twice(equation, arguments)], sizes)
    missing = [label for label in {axis[1] for axis in terms.output} if label not in known]
    if missing:
        raise ValueError(f"nothing gives the label `{missing[0]}` a length\nhint: name it in `sizes`")
    return tuple(known[axis[1]] for axis in terms.output), tuple(known[label] for label in roles(terms).rows)


class Steps(NamedTuple):
    """Attention as einsums."""

    #: Query and key to scores.
    scores: str
    #: A position on the axes of the key that are looked up, to labels of the scores: one equation for each such axis.
    positions: tuple[tuple[int, str, int], ...]
    #: Probabilities and value to output.
    values: str
    #: Labels of the bias that scores have.
    bias: str
    #: Labels of the scores: rows, then keys.
    labels: str


@lru_cache(1024)
def steps(terms: Terms) -> Steps:
    """The einsums that an attention is made of."""
    found = roles(terms)
    labels = "".join((*found.rows, *found.keys))
    query, key, value = terms.operands[:3]
    positions = []
    table = 0
    for number, axis in enumerate(key):
        if axis[0] in ("lookup", "window"):
            own = "".join(label for label in labels if label in axis_labels(axis))
            positions.append((number, f"{axis_text(axis)}->{own}", table if axis[0] == "lookup" else -1))
            table += axis[0] == "lookup"
    return Steps(
        f"{_terms.term_text(query)},{_terms.term_text(key)}->{labels}",
        tuple(positions),
        f"{labels},{_terms.term_text(value)}->{_terms.term_text(terms.output)}",
        "".join(label for label in labels if len(terms.operands) > 3 and label in _labels(terms.operands[3])),
        labels,
    )


def default_scale(terms: Terms, lens: Mapping[str, Any]) -> float:
    """One over the square root of the number of products that a score sums."""
    query, key = (_labels(term) for term in terms.operands[:2])
    output, value = _labels(terms.output), _labels(terms.operands[2])
    depth = 1.0
    for label in query:
        if label in key and label not in output and label not in value:
            depth *= lens[label]
    return 1.0 / math.sqrt(depth) if depth > 0 else 1.0


def causal(terms: Terms) -> tuple[str, int]:
    """The label by which queries are counted, and the axis of the key whose positions are compared with it."""
    rows, keys = roles(terms)
    axes = [number for number, axis in enumerate(terms.operands[1]) if set(axis_labels(axis)) & set(keys)]
    query = [label for axis in terms.operands[0] for label in axis_labels(axis) if label in rows]
    if len(axes) != 1 or not query:
        raise ValueError("`causal` needs one axis of keys\nhint: a window that ends at the query is causal by itself")
    return query[-1], axes[0]
