"""Calls on arrays of every library against plain loops, bit for bit."""

import random

import numpy as np
import pytest
from problems import random_problem, reference

import einfall

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("seed", range(300))
def test_random_problems_are_exact(seed):
    rng = random.Random(seed)
    problem = random_problem(rng)
    dtype = rng.choice(["float64", "float32", "int64", "int32", "complex128"])
    operands = problem.operands(rng, dtype)
    expected = reference(problem, operands)
    keywords = {"sizes": problem.sizes, "bounds": problem.bounds}
    arguments = problem.fill(operands)
    found = einfall.einsum(problem.equation, *arguments, **keywords)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected, err_msg=problem.equation)

    # Into an array, one with gaps.
    wide = np.full((*problem.output, 2), 77, dtype)
    out = wide[..., 0]
    result = einfall.einsum(problem.equation, *arguments, out=out, **keywords)
    assert result is out
    np.testing.assert_array_equal(out, expected)
    assert (wide[..., 1] == 77).all()

    # torch, with strides of its own.
    tensors = [torch.from_numpy(np.array(one, order="F")) for one in problem.fill(operands)]
    found = einfall.einsum(problem.equation, *tensors, **keywords)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)

    planned = einfall.plan(problem.equation, *arguments, **keywords)
    np.testing.assert_array_equal(planned(*arguments), expected)
    np.testing.assert_array_equal(planned(*tensors).numpy(), expected)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3)])
def test_plain_copies_are_views(shape):
    x = np.zeros(shape, "f4")
    view = einfall.einsum("...->...", x)
    assert np.shares_memory(view, x) or x.size == 0
    assert view.shape == shape


def test_results_are_views_where_numpy_gives_views():
    a = np.arange(9.0).reshape(3, 3)
    diagonal = einfall.einsum("ii->i", a)
    diagonal[:] = -1
    assert a[1, 1] == -1
    a.flags.writeable = False
    assert not einfall.einsum("ij->ji", a).flags.writeable


def test_interleaved_form_with_lookups():
    x, table = np.arange(12.0).reshape(4, 3), np.array([[0, 2], [3, 3]])
    found = einfall.einsum(x, [[0, 1], 2], table, [0, 1, 2])
    np.testing.assert_array_equal(found, x[table])
    scattered = einfall.einsum(np.ones((2, 2)), [0, 1], [[0, 1]], table, sizes={"[AB]": 4})
    np.testing.assert_array_equal(scattered, [1, 0, 1, 2])


def test_negative_expanded_and_misaligned_strides_are_read():
    a = np.arange(24.0).reshape(4, 6)
    for view in (a[::-1, ::-2], np.broadcast_to(a[0], (4, 6)), a.T[1:4]):
        np.testing.assert_array_equal(einfall.einsum("ij,ij->i", view, view), np.einsum("ij,ij->i", view, view))
    raw = np.zeros(8 * 24 + 1, "u1")[1:].view("f8")[:24].reshape(4, 6)
    raw[:] = a
    np.testing.assert_array_equal(einfall.einsum("ij->j", raw), a.sum(0))
    fields = np.zeros(5, [("tag", "i2"), ("value", "f8")])
    fields["value"] = range(5)
    np.testing.assert_array_equal(einfall.einsum("i,i->i", fields["value"], fields["value"]), np.arange(5.0) ** 2)
    swapped = np.arange(5.0).astype(">f8")
    assert einfall.einsum("i->", swapped) == 10


def test_out_may_overlap_an_operand():
    a = np.arange(9.0).reshape(3, 3)
    expected = a @ a
    einfall.einsum("ij,jk->ik", a, a, out=a)
    np.testing.assert_array_equal(a, expected)


def test_numbers_and_lists_go_along():
    a = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(einfall.einsum("ij,->ij", a, 2), 2 * a)
    np.testing.assert_array_equal(einfall.einsum("i,ij->j", [1, 2], a), a[0] + 2 * a[1])
    assert einfall.einsum("i,i", [1, 2, 3], [4, 5, 6]) == 32
    assert isinstance(einfall.einsum("i,i", a[0], a[0]), np.float64)


def test_half_types():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.arange(7).astype(ml_dtypes.bfloat16)
    found = einfall.einsum("i,j->ij", x, x)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found.astype("f4"), np.outer(range(7), range(7)))
    assert einfall.einsum("i->", torch.full((4096,), 1.0, dtype=torch.bfloat16)) == 4096


def test_types_promote_as_in_their_library():
    x, n = torch.ones(3), torch.arange(3)
    assert einfall.einsum("i,i->i", x, n).dtype == torch.float32
    assert einfall.einsum("i,i->i", x.numpy(), n.numpy()).dtype == np.float64
    assert einfall.einsum("i,i->i", x.to(torch.complex64), x.double()).dtype == torch.complex128
    assert einfall.einsum("i->i", x, dtype=torch.float64).dtype == torch.float64


def test_conjugate_and_negative_views():
    z = torch.randn(3, 4, dtype=torch.complex64)
    np.testing.assert_allclose(einfall.einsum("ij,ij->i", z.conj(), z), (z.conj() * z).sum(1), rtol=1e-6)
    negative = z.conj().imag
    assert negative.is_neg()
    np.testing.assert_allclose(einfall.einsum("ij->j", negative), negative.sum(0), rtol=1e-5)


def test_plans_take_other_strides_but_not_other_shapes():
    planned = einfall.plan("ij,jk->ik", (2, 3), (3, 4))
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(planned(a, b), a @ b)
    np.testing.assert_array_equal(planned(np.asfortranarray(a), b[:, ::-1]), a @ b[:, ::-1])
    out = np.empty((2, 4))
    assert planned(a, b, out=out) is out
    with pytest.raises(ValueError, match="operand 1 has shape"):
        planned(a, a)
    with pytest.raises(ValueError, match="takes 2"):
        planned(a)


def test_the_cache_counts_and_forgets():
    einfall.cache_clear()
    a = np.ones((2, 2))
    for _ in range(5):
        einfall.einsum("ij,jk->ki", a, a)
    assert einfall.cache_info()[:2] == (4, 1)
    einfall.einsum("ij,jk->ki", a.T, a)  # other strides
    einfall.einsum("ij,jk->ki", a, a, bounds="skip")
    assert einfall.cache_info().misses == 3
    for n in range(einfall.cache_info().maxsize + 50):
        einfall.einsum("i->", np.ones(n))
    assert einfall.cache_info().currsize == einfall.cache_info().maxsize


def test_tensordot_and_transpose():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 3, 4)).astype(float), rng.integers(0, 5, (4, 3, 5)).astype(float)
    np.testing.assert_array_equal(einfall.tensordot(a, b, 1), np.tensordot(a, b, 1))
    np.testing.assert_array_equal(einfall.tensordot(a, b, ([2, 1], [0, 1])), np.tensordot(a, b, ([2, 1], [0, 1])))
    assert einfall.transpose(torch.from_numpy(a), (2, 0, 1)).shape == (4, 2, 3)
