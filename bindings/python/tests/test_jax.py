"""Arrays of JAX, eager and traced."""

import random

import numpy as np
import pytest
from problems import random_problem, reference

jax = pytest.importorskip("jax")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import einfall  # noqa: E402


def call_of(problem):
    tables = [one if isinstance(one, int) else jnp.asarray(one) for one in problem.arguments]

    def call(*operands):
        arguments = [operands[one] if isinstance(one, int) else one for one in tables]
        return einfall.einsum(problem.equation, *arguments, sizes=problem.sizes, bounds=problem.bounds)

    return call


@pytest.mark.parametrize("seed", range(60))
def test_random_problems(seed):
    rng = random.Random(5000 + seed)
    problem = random_problem(rng)
    operands = problem.operands(rng, rng.choice(["float32", "float64", "int32"]))
    call, arrays = call_of(problem), [jnp.asarray(operand) for operand in operands]
    expected = reference(problem, operands)
    found = call(*arrays)
    assert isinstance(found, jax.Array) and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(jax.jit(call)(*arrays), expected)
    batch = [jnp.stack([array, 2 * array], 1 if array.ndim else 0) for array in arrays]
    mapped = jax.vmap(call, in_axes=[1 if array.ndim else 0 for array in arrays])(*batch)
    np.testing.assert_array_equal(mapped[0], expected)
    np.testing.assert_array_equal(mapped[1], expected * 2 ** len(arrays))


@pytest.mark.parametrize("seed", range(25))
def test_gradients_of_random_problems(seed):
    rng = random.Random(7000 + seed)
    problem = random_problem(rng, empty=False)
    operands = [jnp.asarray(np.random.default_rng(seed).normal(size=shape)) for shape in problem.shapes]
    check_grads(call_of(problem), operands, order=2, modes=["fwd", "rev"])


def test_gradients_under_jit():
    q = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    table = jnp.asarray([[0, 2], [1, 1], [4, 0], [3, 3], [2, 1]])

    def loss(q):
        return (einfall.einsum("qd,[qk]d->qk", q, q, table) ** 2).sum()

    def expected(q):
        return (jnp.einsum("qd,qkd->qk", q, q[table]) ** 2).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(q), jax.grad(expected)(q), rtol=1e-12)
    np.testing.assert_allclose(jax.hessian(loss)(q), jax.hessian(expected)(q), rtol=1e-10, atol=1e-12)


def product(a, b):
    return einfall.einsum("ij,jk->ik", a, b, optimize=[(0, 1)])


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_compiled_programs_call_a_foreign_function(platform):
    traced = jax.jit(product).trace(jnp.ones((2, 3)), jnp.ones((3, 4)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call @einfall_einsum" in text and "callback" not in text


def test_compiled_programs_take_types_that_meet():
    whole, half = jnp.arange(6, dtype=jnp.int32).reshape(2, 3), jnp.ones((3, 4), jnp.bfloat16)
    found = jax.jit(product)(whole, half)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), np.asarray(whole).sum(1)[:, None] * np.ones((2, 4)))
    assert jax.jit(product)(jnp.ones((0, 3)), half).shape == (0, 4)


def test_errors_of_compiled_programs_say_what_is_wrong():
    pick = jax.jit(lambda x, table: einfall.einsum("[i]j->ij", x, table))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"holds 5 at \[0\], outside the axis of length 2"):
        pick(jnp.ones((2, 2)), jnp.asarray([5])).block_until_ready()


def test_tables_go_along():
    table = einfall.Table(jnp.asarray([1, 0, 1]))
    values = jnp.asarray([1.0, 2.0, 4.0])

    def scattered(values):
        return einfall.einsum("e->[e]", values, table, sizes={"[e]": 2})

    np.testing.assert_array_equal(scattered(values), [2.0, 5.0])
    np.testing.assert_array_equal(jax.jit(scattered)(values), [2.0, 5.0])


class Device:
    platform, local_hardware_id = "gpu", 3


def test_arrays_of_a_gpu_are_compiled_at_once(monkeypatch):
    import einfall.jax as ours

    asked = []
    monkeypatch.setattr(type(jnp.ones(2)), "devices", lambda self: {Device})
    monkeypatch.setattr(ours._einfall, "_check_gpu", asked.append)
    monkeypatch.setattr(ours, "_on_host", lambda *_: pytest.fail("read by the host"))
    np.testing.assert_array_equal(np.asarray(product(jnp.ones((2, 3)), jnp.ones((3, 2)))), np.full((2, 2), 3.0))
    assert asked == [3]


def test_numpy_arrays_go_along():
    found = einfall.einsum("ij,jk->ik", jnp.ones((2, 3)), np.ones((3, 2)))
    assert isinstance(found, jax.Array)


def test_half_types():
    x = jnp.arange(5, dtype=jnp.bfloat16)
    found = einfall.einsum("i,i->i", x, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), np.arange(5.0) ** 2)


def test_errors():
    with pytest.raises(IndexError):
        einfall.einsum("[i]j->ij", jnp.ones((2, 2)), jnp.asarray([5]))
    with pytest.raises(TypeError, match="out"):
        einfall.einsum("ij->i", jnp.ones((2, 2)), out=np.ones(2))
