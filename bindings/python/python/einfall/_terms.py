"""What an equation says of shapes, for libraries that trace a call before there is data.

Lengths may be symbols: nothing here asks for more than arithmetic and comparison.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from einfall import _einfall

Axis = tuple[Any, ...]
Term = tuple[Axis, ...]


class Terms(NamedTuple):
    """The terms of an equation that has no ellipsis and names its output."""

    operands: tuple[Term, ...]
    output: Term

    def __str__(self) -> str:
        return ",".join(map(term_text, self.operands)) + "->" + term_text(self.output)

    @property
    def arguments(self) -> tuple[tuple[int, Term, tuple[tuple[int, str], ...]], ...]:
        """Position of each operand among the arguments, its term, and its tables with their labels."""
        found: list[tuple[int, Term, tuple[tuple[int, str], ...]]] = []
        at = 0
        for term in self.operands:
            lookups = [axis[1] for axis in term if axis[0] == "lookup"]
            found.append((at, term, tuple((at + 1 + number, labels) for number, labels in enumerate(lookups))))
            at += 1 + len(lookups)
        return tuple(found)

    @property
    def output_tables(self) -> tuple[tuple[int, str], ...]:
        """Positions of the output's tables among the arguments, with their labels."""
        at = len(self.operands) + sum(axis[0] == "lookup" for term in self.operands for axis in term)
        lookups = [axis[1] for axis in self.output if axis[0] == "lookup"]
        return tuple((at + number, labels) for number, labels in enumerate(lookups))

    @property
    def labels(self) -> set[str]:
        """Every label."""
        return {label for term in (*self.operands, self.output) for axis in term for label in axis_labels(axis)}


def axis_labels(axis: Axis) -> list[str]:
    """Labels of an axis, those in brackets included."""
    if axis[0] == "window":
        return [label for label, _ in axis[1]]
    return list(axis[1]) if len(axis) > 1 else []


def axis_text(axis: Axis) -> str:
    """An axis as the compiled part writes it, by which `sizes` names it."""
    if axis[0] == "label":
        return str(axis[1])
    if axis[0] == "ellipsis":
        return "..."
    if axis[0] == "lookup":
        return f"[{axis[1]}]"
    terms, offset = axis[1], axis[2]
    if not terms:
        return f"[{offset}]"
    text = "".join(f"{'-' if by < 0 else '+'}{abs(by) if abs(by) != 1 else ''}{label}" for label, by in terms)
    lone = len(terms) == 1 and terms[0][1] == 1
    return f"[{text.removeprefix('+')}{f'{offset:+d}' if offset or lone else ''}]"


def term_text(term: Term) -> str:
    """A term as it is written."""
    return "".join(map(axis_text, term))


def fresh(taken: Iterable[str], count: int) -> list[str]:
    """Letters that are not taken."""
    used, code = set(taken), ord("A")
    found: list[str] = []
    while len(found) < count:
        letter = chr(code)
        if letter.isalpha() and letter not in used:
            found.append(letter)
        code += 1
    return found


@lru_cache(4096)
def expand(equation: str, ranks: tuple[int, ...]) -> Terms:
    """The terms of an equation for arguments of these ranks: ellipses become labels, the output is written out."""
    operands, output, _ = _einfall._terms(equation)
    plain = Terms(operands, output)
    counts = []
    for at, term, _ in plain.arguments:
        rank = ranks[at] if at < len(ranks) else len(term)
        counts.append(rank - len(term) + 1 if ("ellipsis",) in term else 0)
    letters = fresh(plain.labels, max([0, *counts]))

    def replace(term: Term, count: int) -> Term:
        axes: list[Axis] = []
        for axis in term:
            if axis == ("ellipsis",):
                axes += [("label", letter) for letter in letters[len(letters) - count :]] if count > 0 else []
            else:
                axes.append(axis)
        return tuple(axes)

    return Terms(tuple(map(replace, plain.operands, counts)), replace(plain.output, len(letters)))


def lengths(terms: Terms, shapes: Sequence[Sequence[Any]], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The length of every label: from axes, tables, ``sizes``, then windows.

    An axis of length 1 goes along with a longer one. What disagrees is left to the call itself to say.
    """
    known: dict[str, Any] = {}

    def measure(label: str, length: Any) -> None:
        if label not in known or (_is_one(known[label]) and not _is_one(length)):
            known[label] = length

    for at, term, tables in terms.arguments:
        for axis, length in zip(term, shapes[at]):
            if axis[0] == "label":
                measure(axis[1], length)
        for table, labels in tables:
            for label, length in zip(labels, shapes[table]):
                measure(label, length)
    for table, labels in terms.output_tables:
        for label, length in zip(labels, shapes[table]):
            measure(label, length)
    for name, length in sizes.items():
        if not name.startswith("["):
            measure(name, length)
    windows = [
        (axis[1], axis[2], length)
        for at, term, _ in terms.arguments
        for axis, length in zip(term, shapes[at])
        if axis[0] == "window"
    ]
    while found := _from_windows(windows, known):
        known.update(found)
    return known


def _is_one(length: Any) -> bool:
    # A symbolic length is taken as not 1: torch and JAX specialise lengths of 1.
    return isinstance(length, int) and length == 1


def _from_windows(windows: list[tuple[Any, int, Any]], known: Mapping[str, Any]) -> dict[str, Any]:
    """Labels that only windows have get the largest length that stays inside: the "valid" convolution."""
    found: dict[str, Any] = {}
    for axes, offset, length in windows:
        unknown = [(label, by) for label, by in axes if label not in known]
        if len(unknown) != 1:
            continue
        label, by = unknown[0]
        least = most = offset
        for other, coefficient in axes:
            if other != label:
                reach = coefficient * (known[other] - 1)
                least, most = (least + reach, most) if coefficient < 0 else (least, most + reach)
        if by > 0 and least >= 0:
            room = length - 1 - most
            size = 0 if room < 0 else room // by + 1
            found[label] = min(found[label], size) if label in found else size
    return found


def output_shape(
    terms: Terms, shapes: Sequence[Sequence[Any]], sizes: Mapping[str, Any], shape: Sequence[Any] | None = None
) -> tuple[Any, ...]:
    """The shape of the result."""
    if shape is not None:
        return tuple(shape)
    known = lengths(terms, shapes, sizes)
    found = []
    for axis in terms.output:
        if axis[0] == "label":
            if axis[1] not in known:
                raise ValueError(f"nothing gives the label `{axis[1]}` a length\nhint: name it in `sizes`")
            found.append(known[axis[1]])
        else:
            text = axis_text(axis)
            same = [length for name, length in sizes.items() if name.startswith("[") and _same_bracket(name, axis)]
            if not same:
                raise ValueError(f"nothing gives the output axis `{text}` a length\nhint: name it in `sizes`")
            found.append(same[0])
    return tuple(found)


@lru_cache(1024)
def _same_bracket(name: str, axis: Axis) -> bool:
    # A window can be written in more than one way.
    return bool(_einfall._terms("->" + name)[1] == (axis,))


class Gradient(NamedTuple):
    """The einsum that gives the gradient for one operand."""

    equation: str
    #: Positions in the forward call's arguments, ``None`` for the gradient of the output.
    arguments: tuple[int | None, ...]
    #: Lengths of all labels.
    sizes: dict[str, Any]
    #: Shape of what the einsum gives.
    shape: tuple[Any, ...]
    #: Axes over which that has to be summed, because the operand was broadcast along them.
    summed: tuple[int, ...]


@lru_cache(4096)
def _gradient_terms(terms: Terms, operand: int) -> tuple[str, tuple[int | None, ...]]:
    equation = _einfall.gradient(str(terms), operand)
    arguments: list[int | None] = []
    for number, (at, _, tables) in enumerate(terms.arguments):
        if number == operand:
            arguments.append(None)
            arguments += [table for table, _ in terms.output_tables]
        else:
            arguments.append(at)
            arguments += [table for table, _ in tables]
    arguments += [table for table, _ in terms.arguments[operand][2]]
    return equation, tuple(arguments)


def gradient(
    terms: Terms, operand: int, shapes: Sequence[Sequence[Any]], sizes: Mapping[str, Any]
) -> Gradient:
    """The gradient for an operand, by its number among the operands."""
    equation, arguments = _gradient_terms(terms, operand)
    known = lengths(terms, shapes, sizes)
    at, term, _ = terms.arguments[operand]
    shape, summed = [], []
    for number, (axis, length) in enumerate(zip(term, shapes[at])):
        if axis[0] == "label":
            shape.append(known[axis[1]])
            if _is_one(length) and not _is_one(known[axis[1]]):
                summed.append(number)
        else:
            shape.append(length)
    return Gradient(equation, arguments, known, tuple(shape), tuple(summed))


def batch(
    terms: Terms, which: Sequence[bool], sizes: Mapping[str, Any], size: Any
) -> tuple[Terms, dict[str, Any]]:
    """The terms where the arguments that ``which`` marks have one more axis in front, and the lengths for them."""
    label = fresh(terms.labels, 1)[0]
    front: Axis = ("label", label)

    def with_tables(term: Term, tables: Iterable[tuple[int, str]]) -> list[Axis]:
        marks = iter(which[table] for table, _ in tables)
        return [("lookup", label + axis[1]) if axis[0] == "lookup" and next(marks) else axis for axis in term]

    operands = []
    for at, term, tables in terms.arguments:
        axes = with_tables(term, tables)
        operands.append(tuple([front, *axes] if which[at] else axes))
    output = with_tables(terms.output, terms.output_tables)
    # A bracket of the output may have another name now.
    renamed = {label: size}
    for name, length in sizes.items():
        if name.startswith("["):
            pairs = zip(terms.output, output)
            name = next((axis_text(new) for old, new in pairs if _same_bracket(name, old)), name)
        renamed[name] = length
    return Terms(tuple(operands), (front, *output)), renamed
