"""What ``explain`` returns."""

from __future__ import annotations

import html
from typing import Any


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
        def cells(tag: str, values: list[Any]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"

        values = self._values
        rows = [cells("th", ["step", "kernel", "way", "time", "arithmetic", "bytes"])]
        for number, step in enumerate(values["steps"], 1):
            for candidate in step["candidates"]:
                chosen = candidate["kernel"] == step["kernel"]
                name = ("▸ " if chosen else "") + candidate["kernel"]
                head = [f"{number}. {step['equation']}", name]
                if "reason" in candidate:
                    rows.append(cells("td", [*head, candidate["reason"], "", "", ""]))
                else:
                    rows.append(cells("td", [*head, candidate["way"], *_priced(candidate)]))
        rows.append(cells("th", ["total", "", "", *_priced(values["total"])]))
        labels = " ".join(f"{name}={length}" for name, length in values["labels"].items())
        title = f"{values['equation']} &nbsp; {html.escape(labels)} &nbsp; {values['dtype']}"
        return f"<table><caption>{title}</caption>{''.join(rows)}</table>"


def _priced(cost: dict[str, float]) -> list[str]:
    return [_scaled(cost["seconds"], _SECONDS), _scaled(cost["flops"], _FLOPS), _scaled(cost["bytes"], _BYTES)]


_SECONDS = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")]
_FLOPS = [(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")]
_BYTES = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")]


def _scaled(value: float, units: list[tuple[float, str]]) -> str:
    scale, unit = next((pair for pair in units if value >= pair[0]), units[-1])
    return f"{value / scale:.3g} {unit}"
