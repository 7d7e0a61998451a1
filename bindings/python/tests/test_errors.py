"""Mistakes are exceptions of the kinds that Python expects, and say what is wrong."""

import numpy as np
import pytest

import einfall

torch = pytest.importorskip("torch")

A = np.ones((2, 3))


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (("ij,jk->ik", A, A), ValueError, "label `j` is 3 in operand 0 but 2 in operand 1"),
        (("ij;jk", A, A), ValueError, ";"),
        (("ij,jk->ik", A), ValueError, "takes 2 arguments but 1"),
        ((), ValueError, "missing"),
        (("ij",), ValueError, "missing"),
        (("[i]j->ij", A, np.ones(2)), TypeError, "not an integer type"),
        (("[q+w]->qw", np.ones(3)), ValueError, "nothing gives"),
        ((0, 0), TypeError, "neither an equation"),
        (("ij", torch.ones(2, 3), A), TypeError, "operand 0 is a torch tensor"),
        (("i,i", [1, 2], torch.ones(2)), TypeError, "operand 1 is a torch tensor"),
    ],
)
def test_messages(arguments, kind, says):
    with pytest.raises(kind, match=says):
        einfall.einsum(*arguments)


def test_keywords_are_checked():
    for keywords, kind in [
        ({"bounds": "clamp"}, ValueError),
        ({"optimize": "fast"}, ValueError),
        ({"optimize": 3.5}, TypeError),
        ({"order": "Z"}, ValueError),
        ({"casting": "wild"}, ValueError),
        ({"sizes": {"z": 3}}, ValueError),
        ({"sizes": {"i": -1}}, ValueError),
        ({"sizes": {"i": 1.5}}, TypeError),
        ({"dtype": "f99"}, TypeError),
        ({"unknown": 1}, TypeError),
    ]:
        with pytest.raises(kind):
            einfall.einsum("ij->i", A, **keywords)


def test_table_values_are_named_and_nothing_is_written():
    x, table = np.ones((4, 3)), np.array([[0, 1], [2, 9]])
    out = np.full((2, 2, 3), 7.0)
    with pytest.raises(IndexError, match=r"holds 9 at \[1, 1\]") as caught:
        einfall.einsum("[ij]k->ijk", x, table, out=out)
    error = caught.value
    assert isinstance(error, einfall.TableError)
    assert (error.argument, error.position, error.value, error.length) == (1, (1, 1), 9, 4)
    assert (out == 7).all()
    with pytest.raises(IndexError):
        einfall.einsum("[ij]k->ijk", torch.ones(4, 3), torch.from_numpy(table))


def test_what_cannot_be_stored_is_an_error_before_anything_is_computed():
    with pytest.raises((MemoryError, ValueError)):
        einfall.einsum("i,j,k,l,m->ijklm", *[np.broadcast_to(1.0, 1 << 12)] * 5)


def test_memory_limits_are_kept_by_slicing():
    a = np.arange(900.0).reshape(30, 30) % 7
    limited = einfall.einsum("ij,jk,kl->il", a, a, a, memory_limit=30)
    np.testing.assert_array_equal(limited, a @ a @ a)


def test_out_is_checked():
    with pytest.raises(ValueError, match="shape"):
        einfall.einsum("ij->i", A, out=np.ones(3))
    with pytest.raises(TypeError):
        einfall.einsum("ij->i", A, out=np.ones(2, "i4"))
    frozen = np.ones(2)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        einfall.einsum("ij->i", A, out=frozen)
    with pytest.raises(ValueError, match="overlap"):
        out = np.lib.stride_tricks.as_strided(np.ones(3), (2, 3), (0, 8))
        einfall.einsum("ij->ij", A, out=out)
    with pytest.raises(TypeError):
        einfall.einsum("ij->i", A, out=torch.ones(2))


def test_devices_that_are_not_supported_say_so():
    meta = torch.ones(2, 3, device="meta")
    with pytest.raises((NotImplementedError, ValueError, RuntimeError, BufferError)):
        einfall.einsum("ij->i", meta)
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(Exception):
        einfall.einsum("ij->i", sparse)
