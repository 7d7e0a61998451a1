"""Tables whose inverse is kept."""

from __future__ import annotations

import sys
from typing import Any, final

from einfall import _einfall


@final
class Table:
    """A table that is used again and again, wherever a table may stand.

    An output that is scattered through a table needs the table's inverse: which entries go to each row. On an NVIDIA GPU
    making it takes longer than the sums that follow, so for a ``Table`` it is made once and kept, for forward and
    backward calls alike, as long as the ``Table`` lives; wrap every table of the call, since where the others lead is
    kept with it. Elsewhere a ``Table`` is its array and nothing else.

    Writing to the array between calls is noticed where torch made it. Arrays of other libraries, and tensors that were
    made in inference mode, must stay as they are: if not, results are wrong, though nothing outside of the arrays is read.

    >>> row = einfall.Table(np.array([0, 2, 2, 1]))
    >>> einfall.einsum("e->[e]", np.array([1.0, 2.0, 3.0, 4.0]), row, sizes={"[e]": 3})
    array([1., 4., 5.])
    """

    #: The array.
    array: Any
    _kept: _einfall._Kept

    def __init__(self, indices: Any) -> None:
        if isinstance(indices, Table):
            indices = indices.array
        torch = sys.modules.get("torch")
        kept = _einfall._Kept()
        if torch is not None and isinstance(indices, torch.Tensor):
            # Another tensor of the same memory, which counts its changes with it, and which the kept inverses hang on:
            # so they are found again behind torch's dispatcher and in backward calls.
            indices = indices.detach()
            indices._einfall_kept = kept
        elif not hasattr(indices, "shape") and "numpy" in sys.modules:
            indices = sys.modules["numpy"].asarray(indices)
        self.array = indices
        self._kept = kept

    def __repr__(self) -> str:
        return f"einfall.Table({self.array!r})"


_einfall._register_table(Table)
