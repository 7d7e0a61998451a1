"""Random equations with lookups, windows and scatters, and what they must give, from plain loops over every label."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass

import numpy as np


@dataclass
class Problem:
    """A call: shapes of the operands, tables in their places, sizes, and the bounds policy."""

    equation: str
    shapes: list[tuple[int, ...]]
    #: Arguments in order: the number of an operand, or a table.
    arguments: list[int | np.ndarray]
    sizes: dict[str, int]
    bounds: str
    labels: dict[str, int]
    output: tuple[int, ...]

    def operands(self, rng: random.Random, dtype: str = "float64") -> list[np.ndarray]:
        """Small integers, so that every sum is exact."""
        return [
            np.array([rng.randint(-4, 5) for _ in range(int(np.prod(shape)))], dtype).reshape(shape)
            for shape in self.shapes
        ]

    def fill(self, operands: list) -> list:
        """All arguments of the call, operands in their places."""
        return [operands[one] if isinstance(one, int) else one for one in self.arguments]


def random_problem(rng: random.Random, empty: bool = True) -> Problem:
    lengths = [1, 2, 3, 5] + ([0] if empty and rng.random() < 0.1 else [])
    labels = {label: rng.choice(lengths) for label in rng.sample("abcdeijk", rng.randint(1, 4))}
    names = list(labels)
    bounds = rng.choice(["error", "skip"])
    shapes: list[tuple[int, ...]] = []
    arguments: list[int | np.ndarray] = []
    sizes = dict(labels)
    used: set[str] = set()

    def lookup(length: int) -> tuple[str, np.ndarray]:
        subscripts = rng.sample(names, rng.randint(0 if length else 1, min(2, len(names))))
        shape = tuple(labels[label] for label in subscripts)
        low = -2 if bounds == "skip" else 0
        high = length + 1 if bounds == "skip" else length - 1
        count = int(np.prod(shape))
        kind = rng.choice([np.int32, np.int64])
        table = np.array([rng.randint(low, max(low, high)) for _ in range(count)], kind).reshape(shape)
        used.update(subscripts)
        return "[" + "".join(subscripts) + "]", table

    def window() -> str:
        subscripts = rng.sample(names, rng.randint(1, min(2, len(names))))
        used.update(subscripts)
        terms = "".join(f"{rng.choice(['+', '+', '+2', '-'])}{label}" for label in subscripts)
        offset = rng.randint(-2, 2)
        needed = offset or re.fullmatch(r"\+[a-z]", terms)
        return f"[{terms.removeprefix('+')}{f'{offset:+d}' if needed else ''}]"

    def term(scatter: bool) -> tuple[str, tuple[int, ...], list[np.ndarray]]:
        text, shape, tables = "", [], []
        for _ in range(rng.randint(1, 3)):
            kind = rng.random()
            if kind < 0.55 or (scatter and kind < 0.7):
                label = rng.choice(names)
                if scatter and label in text:
                    continue
                used.add(label)
                text, shape = text + label, [*shape, labels[label]]
            elif kind < 0.8:
                length = rng.choice([1, 2, 4, 6])
                bracket, table = lookup(length)
                if bracket in text:
                    continue
                text, shape = text + bracket, [*shape, length]
                tables.append(table)
            else:
                bracket = window()
                if bracket in text:
                    continue
                text, shape = text + bracket, [*shape, rng.choice([1, 3, 5])]
        return text, tuple(shape), tables

    texts = []
    for number in range(rng.randint(1, 3)):
        text, shape, tables = term(scatter=False)
        texts.append(text)
        shapes.append(shape)
        arguments += [number, *tables]
    before = len(used)
    text, output, tables = term(scatter=True)
    assert before <= len(used)
    arguments += tables
    for bracket, length in zip(re.findall(r"\[[^]]*\]|\w", text), output):
        if bracket.startswith("["):
            sizes[bracket] = length
    sizes = {name: length for name, length in sizes.items() if name.startswith("[") or name in used}
    kept = {name: length for name, length in labels.items() if name in used}
    return Problem(",".join(texts) + "->" + text, shapes, arguments, sizes, bounds, kept, output)


AXIS = re.compile(r"\[([^]]*)\]|(\w)")


def reference(problem: Problem, operands: list[np.ndarray]) -> np.ndarray:
    """The sum as it is written, a term at a time."""
    left, right = problem.equation.split("->")
    arguments = problem.fill(operands)
    out = np.zeros(problem.output, operands[0].dtype)
    names = list(problem.labels)
    for values in itertools.product(*[range(problem.labels[name]) for name in names]):
        at = dict(zip(names, values))
        rest = iter(arguments)
        value, there = 1, True

        def position(text: str, shape: tuple[int, ...], tables: list[np.ndarray]) -> tuple[int, ...] | None:
            found, tables = [], iter(tables)
            for (inside, label), length in zip(AXIS.findall(text), shape):
                if label:
                    index = at[label]
                elif re.search(r"[+\-\d]", inside):
                    index = 0
                    for sign, count, letter in re.findall(r"([+-]?)(\d*)([a-z]?)", inside):
                        if count or letter:
                            amount = int(count or 1) * (at[letter] if letter else 1)
                            index += -amount if sign == "-" else amount
                else:
                    index = int(next(tables)[tuple(at[letter] for letter in inside)])
                if not 0 <= index < length:
                    return None
                found.append(index)
            return tuple(found)

        def lookups(text: str) -> int:
            return sum(1 for inside, label in AXIS.findall(text) if not label and not re.search(r"[+\-\d]", inside))

        for text in left.split(","):
            operand = next(rest)
            where = position(text, operand.shape, [next(rest) for _ in range(lookups(text))])
            if where is None:
                there = False
            else:
                value = value * operand[where]
        where = position(right, out.shape, list(rest))
        if there and where is not None:
            out[where] += value
    return out
