"""What ``explain`` and ``bench_keys`` return."""

from __future__ import annotations

import html
from typing import Any, Iterable


class Report:
    """A plan for people: prints as text, shows as a table in notebooks, and gives its numbers as a dictionary."""

    def __init__(self, text: str, values: dict[str, Any]) -> None:
        self._text = text
        self._values = values

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._text

    def to_dict(self) -> dict[str, Any]:
        """Equation, labels, steps with every kernel that was asked, and totals; seconds, operations and bytes."""
        return self._values

    def _repr_html_(self) -> str:
        values = self._values
        rows = [_cells("th", ["step", "kernel", "way", "time", "arithmetic", "bytes"])]
        for number, step in enumerate(values["steps"], 1):
            for candidate in step["candidates"]:
                chosen = candidate["kernel"] == step["kernel"]
                name = ("▸ " if chosen else "") + candidate["kernel"]
                head = [f"{number}. {step['equation']}", name]
                if "reason" in candidate:
                    rows.append(_cells("td", [*head, candidate["reason"], "", "", ""]))
                else:
                    rows.append(_cells("td", [*head, candidate["way"], *_priced(candidate)]))
        rows.append(_cells("th", ["total", "", "", *_priced(values["total"])]))
        labels = " ".join(f"{name}={length}" for name, length in values["labels"].items())
        title = f"{values['equation']} &nbsp; {html.escape(labels)} &nbsp; {values['dtype']}"
        return f"<table><caption>{title}</caption>{''.join(rows)}</table>"


def _cells(tag: str, values: Iterable[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"


class BenchReport(Report):
    """What a benchmark measured: prints as tables, shows as a table and a plot in notebooks."""

    def __init__(self, text: str, values: dict[str, Any], table: list[list[Any]], pictures: list[str]) -> None:
        super().__init__(text, values)
        self._table = table
        self._pictures = pictures

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each engine and problem, for ``pandas.DataFrame`` too; times are in seconds."""
        return list(self._values["rows"])

    def to_dict(self) -> dict[str, Any]:
        """Machine, settings, rows and notes: the document that ``einfall bench keys --json`` prints."""
        return self._values

    def _repr_html_(self) -> str:
        header, *lines = self._table
        rows = [_cells("th", header), *(_cells("td", line) for line in lines)]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._values["notes"])
        return f"{''.join(self._pictures)}<table>{''.join(rows)}</table><ul>{notes}</ul>"


def _priced(cost: dict[str, float]) -> list[str]:
    return [_scaled(cost["seconds"], _SECONDS), _scaled(cost["flops"], _FLOPS), _scaled(cost["bytes"], _BYTES)]


_SECONDS = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")]
_FLOPS = [(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")]
_BYTES = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")]


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    scale, unit = next((pair for pair in units if value >= pair[0]), units[-1])
    return f"{value / scale:.3g} {unit}"
