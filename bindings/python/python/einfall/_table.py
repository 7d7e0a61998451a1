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

    With ``offsets`` the table is lists of different lengths, for :func:`einfall.attention` alone: ``indices`` has one
    axis, in which list i is ``indices[offsets[i]:offsets[i + 1]]``, and ``offsets`` has the axes of a table, the last of
    length q + 1: ``(q + 1,)``, ``(h|g|1, q + 1)`` or ``(b|1, h|g|1, q + 1)``.

    >>> lists = einfall.Table(np.array([2, 0, 1]), offsets=np.array([0, 2, 2, 3]))
    >>> x = np.eye(3).reshape(1, 1, 3, 3)
    >>> einfall.attention(x, x, x, lists)[0, 0, 1:]
    array([[0., 0., 0.],
           [0., 1., 0.]])
    """

    #: The array.
    array: Any
    #: Where lists of different lengths begin and end.
    offsets: Any
    _kept: _einfall._Kept

    def __init__(self, indices: Any, *, offsets: Any = None) -> None:
        if isinstance(indices, Table):
            indices, offsets = indices.array, indices.offsets if offsets is None else offsets
        torch = sys.modules.get("torch")
        kept = _einfall._Kept()
        if torch is not None and isinstance(indices, torch.Tensor):
            # Another tensor of the same memory, which counts its changes with it, and which the kept inverses hang on:
            # so they are found again behind torch's dispatcher and in backward calls.
            indices = indices.detach()
            indices._einfall_kept = kept
        elif not hasattr(indices, "shape") and "numpy" in sys.modules:
            indices = sys.modules["numpy"].asarray(indices)
        if offsets is not None and not hasattr(offsets, "shape") and "numpy" in sys.modules:
            offsets = sys.modules["numpy"].asarray(offsets)
        if torch is not None and isinstance(offsets, torch.Tensor):
            offsets = offsets.detach()
            offsets._einfall_kept = kept
        if offsets is not None and (len(indices.shape) != 1 or len(offsets.shape) < 1 or offsets.shape[-1] < 1):
            raise ValueError(
                f"indices and offsets have the shapes {tuple(indices.shape)} and {tuple(offsets.shape)}, but (entries,) "
                "and (..., q + 1) are wanted"
            )
        self.array = indices
        self.offsets = offsets
        self._kept = kept

    def __repr__(self) -> str:
        return f"einfall.Table({self.array!r})"


_einfall._register_table(Table)
