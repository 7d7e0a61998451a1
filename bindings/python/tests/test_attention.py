"""Attention of NumPy, torch and JAX arrays, compared with gathered keys and a plain softmax in float64."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from attention_cases import CASES, FEW, Case, reference, reference_in_torch, scopes

import einfall

torch = pytest.importorskip("torch")

#: Errors of a sum of rounded products, relative to the largest values that go in.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 6e-3, "bfloat16": 4e-2}


def call(case, query, key, value, table, bias, **options):
    return einfall.attention(query, key, value, table, bias=bias, **case.options(), **options)


def in_torch(array, dtype=None, device="cpu"):
    if array is None:
        return None
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def close(found, expected, tolerance):
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_numpy(case, dtype):
    arrays = case.arrays(dtype=np.dtype(dtype))
    out, lse = call(case, *arrays, return_lse=True)
    wide = [one.astype(np.float64) if one is not None and one.dtype.kind == "f" else one for one in arrays]
    expected, expected_lse = reference(case, *wide)
    assert isinstance(out, np.ndarray) and out.dtype == dtype and out.shape == expected.shape
    assert lse.dtype == (np.float64 if dtype == "float64" else np.float32) and lse.shape == expected_lse.shape
    close(out, expected, TOLERANCE[dtype])
    close(lse, expected_lse, max(TOLERANCE[dtype] / 100, 1e-12) if dtype != "float32" else 2e-5)
    np.testing.assert_array_equal(call(case, *arrays), out)


@pytest.mark.parametrize("case", FEW, ids=repr)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_torch(case, dtype):
    kind = getattr(torch, dtype)
    arrays = [in_torch(one, kind) for one in case.arrays(3)]
    out, lse = call(case, *arrays, return_lse=True)
    expected, expected_lse = reference(case, *[None if one is None else np.asarray(one.double() if one.is_floating_point() else one) for one in arrays])
    assert out.dtype == kind and lse.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    close(out.double(), expected, TOLERANCE[dtype])
    close(lse.double(), expected_lse, max(TOLERANCE[dtype] / 100, 2e-5) if dtype != "float64" else 1e-12)


@pytest.mark.parametrize("scope", scopes())
def test_every_scope_of_a_table(scope):
    case = Case(scope, b=3, h=6, g=2, scope=scope, pads=0.2)
    arrays = case.arrays(1)
    close(call(case, *arrays), reference(case, *arrays)[0], 1e-12)


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_strides(case):
    arrays = case.arrays(2)
    expected = call(case, *arrays)

    def strided(array):
        # Every second element of the last axis, axes 0 and 1 swapped in memory, backwards.
        if array is None:
            return None
        wide = np.zeros((array.shape[1], array.shape[0], *array.shape[2:-1], 2 * array.shape[-1]), array.dtype) if array.ndim > 2 else None
        if wide is None:
            return np.asfortranarray(array)
        view = wide.swapaxes(0, 1)[..., ::2][..., ::-1]
        view[...] = array
        return view

    found = call(case, *map(strided, arrays))
    close(found, expected, 1e-12)


# Options and errors.


def arrays(**options):
    return Case("a call", **({"scope": "bh"} | options)).arrays()


def test_what_is_skipped_is_not_read():
    case = Case("poisoned", scope="bh", pads=0.3)
    query, key, value, table, _ = case.arrays()
    table = np.where(table == 0, 7, table)
    expected = call(case, query, key, value, table, None)
    key[:, :, 0], value[:, :, 0] = np.nan, np.inf
    np.testing.assert_array_equal(call(case, query, key, value, table, None), expected)
    # Beyond the last, too.
    far = np.where(table < 0, 10**6, table)
    np.testing.assert_array_equal(call(case, query, key, value, far, None), expected)


def test_nan_stays_where_it_belongs():
    case = Case("a NaN", scope="bh")
    query, key, value, table, _ = case.arrays()
    expected = call(case, query, key, value, table, None)
    key[0, 1, 4] = np.nan
    found = call(case, query, key, value, table, None)
    hit = (table[0, 1] == 4).any(-1)
    assert hit.any() and not hit.all()
    assert np.isnan(found[0, 1, hit]).all()
    found[0, 1, hit] = expected[0, 1, hit]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [-1, 11, 10**6, -(2**31)])
def test_bad_table_values_are_named(value):
    query, key, values, table, _ = arrays()
    table[1, 2, 3, 4] = value
    with pytest.raises(einfall.TableError) as caught:
        einfall.attention(query, key, values, table, bounds="error")
    assert caught.value.value == value and caught.value.position == (1, 2, 3, 4) and caught.value.length == 11


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


WRONG = [
    ((zeros(2, 3, 4), zeros(2, 3, 4, 5), zeros(2, 3, 4, 5)), {}, ValueError, r"query has the shape \(2, 3, 4\)"),
    ((zeros(2, 3, 4, 5), zeros(3, 4, 5), zeros(2, 3, 4, 5)), {}, ValueError, r"key has the shape \(3, 4, 5\)"),
    ((zeros(2, 3, 4, 5), zeros(2, 3, 4, 5), zeros(4, 5)), {}, ValueError, r"value has the shape \(4, 5\)"),
    ((zeros(2, 3, 4, 5), zeros(1, 3, 4, 5), zeros(1, 3, 4, 5)), {}, ValueError, "label `b` is 2 in query but 1 in key"),
    ((zeros(2, 3, 4, 5), zeros(2, 3, 4, 6), zeros(2, 3, 4, 5)), {}, ValueError, "label `d` is 5 in query but 6 in key"),
    ((zeros(2, 3, 4, 5), zeros(2, 3, 4, 5), zeros(2, 3, 7, 5)), {}, ValueError, "all but the last axis"),
    ((zeros(2, 3, 4, 5), zeros(2, 2, 4, 5), zeros(2, 2, 4, 5)), {}, ValueError, "3 heads but key 2"),
    ((zeros(2, 3, 4, 5), zeros(2, 0, 4, 5), zeros(2, 0, 4, 5)), {}, ValueError, "3 heads but key 0"),
    ((*[zeros(2, 3, 4, 5)] * 3, zeros(2, 3, 4, 2)), {}, TypeError, "table"),
    ((*[zeros(2, 3, 4, 5)] * 3, zeros(2, 3, 5, 2, dtype=int)), {}, ValueError, r"table has the shape \(2, 3, 5, 2\)"),
    ((*[zeros(2, 3, 4, 5)] * 3, zeros(4, dtype=int)), {}, ValueError, r"table has the shape \(4,\)"),
    ((*[zeros(2, 3, 4, 5)] * 3, zeros(3, 3, 4, 2, dtype=int)), {}, ValueError, "table has 3 in its axis b"),
    ((*[zeros(2, 3, 4, 5)] * 3, zeros(2, 2, 4, 2, dtype=int)), {}, ValueError, "table has 2 in its axis h"),
    ((*[zeros(2, 3, 4, 5)] * 3, zeros(4, 2, dtype=int)), {"window": 3}, ValueError, "both given"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"dilation": 3}, ValueError, "without `window`"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"window": 0}, ValueError, "at least 1"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"window": 2.5}, TypeError, "not an integer"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"window": (3, 3)}, ValueError, "2 entries for 1 axes"),
    ((*[zeros(2, 3, 4, 5, 6, 7, 8)] * 3,), {"window": 3}, ValueError, "one to three axes"),
    ((zeros(2, 3, 4, 5), zeros(2, 3, 6, 5), zeros(2, 3, 6, 5)), {"window": 3}, ValueError, "the axes of query are"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"bias": zeros(4, 4)}, ValueError, r"bias has the shape \(4, 4\)"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"bias": zeros(2, 3, 4, 5)}, ValueError, "bias has 5 in its axis n"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"bias": zeros(2, 2, 4, 4)}, ValueError, "bias has 2 in its axis h"),
    ((*[zeros(2, 3, 4, 5)] * 3,), {"bounds": "wrap"}, ValueError, "wrap"),
    ((*[zeros(2, 3, 4, 5, dtype=int)] * 3,), {}, ValueError, "attention (works on|takes one type)"),
    ((*[zeros(2, 3, 4, 5, dtype=complex)] * 3,), {}, ValueError, "attention (works on|takes one type)"),
    ((*[zeros(2, 3, 4, 5)] * 2, zeros(2, 3, 4, 5, dtype=float)), {}, ValueError, "attention (works on|takes one type)"),
    ((*[zeros(2, 3, 4, 5)] * 2, torch.zeros(2, 3, 4, 5)), {}, TypeError, "one library"),
    ((zeros(2, 3, 4, 5), "key", zeros(2, 3, 4, 5)), {}, (TypeError, ValueError), "key"),
]


@pytest.mark.parametrize("operands,options,error,match", WRONG)
def test_bad_calls_are_named(operands, options, error, match):
    with pytest.raises(error, match=match):
        einfall.attention(*operands, **options)


def test_general_form():
    query, key, value, table, _ = arrays(pads=0.2)
    case = Case("general", scope="bh", pads=0.2)
    out, lse = einfall.attend("bhqd, bh[bhqk]d, bh[bhqk]e -> bhqe", query, key, table, value, return_lse=True)
    expected = reference(case, query, key, value, table, None)
    close(out, expected[0], 1e-12)
    close(lse, expected[1], 1e-12)
    twice = einfall.attend("bhqd,bh[bhqk]d,bh[bhqk]e->bhqe", query, key, table, value, table)
    np.testing.assert_array_equal(twice, out)
    with pytest.raises(ValueError):
        einfall.attend("bhqd,bh[bhqk]d,bh[bhqk]e->bhqe", query, key, table, value, table.copy())
    # Axes in any order, several key axes, and an output that is transposed.
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(5, 3)), rng.normal(size=(4, 6, 3)), rng.normal(size=(4, 6, 2))
    scores = np.einsum("qd,mnd->qmn", q, k) * 3**-0.5
    weights = np.exp(scores) / np.exp(scores).sum((1, 2), keepdims=True)
    close(einfall.attend("qd,mnd,mne->eq", q, k, v), np.einsum("qmn,mne->eq", weights, v), 1e-12)


@pytest.mark.parametrize(
    "equation,shapes",
    [
        ("qd,nd->qe", [(2, 3), (4, 3)]),
        ("qd,[qk]d,[qj]e->qe", [(2, 3), (4, 3), (2, 5), (4, 3), (2, 5)]),
        ("qd,nd,ne->q", [(2, 3), (4, 3), (4, 3)]),
        ("qd;nd,ne->qe", [(2, 3), (4, 3), (4, 3)]),
        ("qd,nd,ne->qe", [(2, 3), (4, 5), (4, 3)]),
        ("qd,nd,ne->qe", [(2, 3), (4, 3)]),
        ("qd,nd,ne->qe", [(2, 3), (4, 3), (4, 3), (2, 4)]),
    ],
)
def test_bad_equations(equation, shapes):
    operands = [zeros(*shape, dtype=int if shape == (2, 5) else np.float32) for shape in shapes]
    if equation == "qd,nd,ne->q":
        # A value whose width is summed: either there is an answer, or a message.
        try:
            einfall.attend(equation, *operands)
        except ValueError:
            pass
        return
    with pytest.raises(ValueError):
        einfall.attend(equation, *operands)


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_the_same_bits_a_hundred_times(case):
    arrays = case.arrays(4, np.float32)
    expected, lse = call(case, *arrays, return_lse=True)
    for _ in range(100):
        found = call(case, *arrays, return_lse=True)
        assert np.array_equal(found[0], expected) and np.array_equal(found[1], lse)


BITS = """
import sys, hashlib
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from attention_cases import FEW
import einfall
for dtype in ("float32", "float64", "bfloat16"):
    kind = getattr(torch, dtype)
    for case in FEW:
        arrays = [None if one is None else torch.from_numpy(one) for one in case.arrays(5)]
        arrays = [one.to(kind).requires_grad_() if one is not None and one.is_floating_point() else one for one in arrays]
        query, key, value, table, bias = arrays
        out = einfall.attention(query, key, value, table, bias=bias, **case.options())
        out.float().square().sum().backward()
        found = [out, *(one.grad for one in (query, key, value, bias) if one is not None)]
        bits = b"".join(one.detach().double().numpy().tobytes() for one in found)
        print(dtype, case, hashlib.sha1(bits).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit():
    here = os.path.dirname(__file__)
    results = []
    for threads in ("1", "2"):
        environment = {**os.environ, "EINFALL_THREADS": threads}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        ran = subprocess.run([sys.executable, "-c", BITS, here], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        results.append(ran.stdout)
    assert results[0] == results[1] and results[0]


# Gradients in torch.


def differentiable(case, seed=6, dtype=torch.float64):
    arrays = [in_torch(one, dtype) for one in case.arrays(seed)]
    return [one.requires_grad_() if one is not None and one.is_floating_point() else one for one in arrays]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_gradients_are_those_of_torch(case):
    inputs = differentiable(case)
    table = inputs[3]
    needed = [one for one in inputs if one is not None and one.requires_grad]
    out = call(case, *inputs)
    expected = reference_in_torch(torch, case, *inputs[:3], None if table is None else table.numpy(), inputs[4])
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(out, needed, weights)
    wanted = torch.autograd.grad(expected, needed, weights, allow_unused=True)
    for one, other, operand in zip(found, wanted, needed):
        assert one.shape == operand.shape and one.dtype == operand.dtype
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", FEW, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_of_narrow_types(case, dtype):
    kind = getattr(torch, dtype)
    inputs = differentiable(case, dtype=kind)
    needed = [one for one in inputs if one is not None and one.requires_grad]
    wide = [one.detach().double().requires_grad_() if one is not None and one.is_floating_point() else one for one in inputs]
    out = call(case, *inputs)
    expected = reference_in_torch(torch, case, *wide[:3], None if wide[3] is None else wide[3].numpy(), wide[4])
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(kind)
    found = torch.autograd.grad(out, needed, weights)
    wanted = torch.autograd.grad(expected, [one for one in wide if one is not None and one.requires_grad], weights.double())
    for one, other in zip(found, wanted):
        assert one.dtype == kind
        error = (one.double() - other).abs().max() / other.abs().max().clamp(min=1)
        assert error < 3 * TOLERANCE[dtype], (case, float(error))


@pytest.mark.parametrize("which", [[0], [1], [2], [0, 2], [4], [1, 4]])
def test_only_gradients_that_are_wanted(which):
    case = Case("some gradients", scope="bh", bias="bhqk", pads=0.2)
    inputs = differentiable(case)
    expected = torch.autograd.grad(call(case, *inputs).square().sum(), [inputs[at] for at in which])
    for at in (0, 1, 2, 4):
        inputs[at] = inputs[at].detach().requires_grad_(at in which)
    found = torch.autograd.grad(call(case, *inputs).square().sum(), [inputs[at] for at in which])
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


SMALL = [
    Case("table", b=1, h=2, g=1, q=3, n=4, k=3, d=2, e=3, scope="bh", pads=0.2),
    Case("list per group", b=1, h=2, g=1, q=3, n=4, k=3, d=2, e=3, scope="bg", bias="bhqk"),
    Case("window", b=1, h=1, g=1, window=3, axes=(4,), d=2, e=2),
    Case("window in two axes", b=1, h=1, g=1, window=2, axes=(3, 2), d=2, e=2, bias="1h1k"),
    Case("dense", b=1, h=1, g=1, q=3, n=3, d=2, e=2, causal=True),
    Case("causal table", b=1, h=1, g=1, q=3, n=4, k=3, d=2, e=2, scope="bh", causal=True),
    Case("all padded", b=1, h=1, g=1, q=3, n=4, k=3, d=2, e=2, scope="bh", pads=0.9),
]


@pytest.mark.parametrize("case", SMALL, ids=repr)
def test_gradcheck_and_gradgradcheck(case):
    inputs = differentiable(case)
    needed = [one for one in inputs if one is not None and one.requires_grad]

    def function(*given):
        rest = iter(given)
        return call(case, *[next(rest) if one is not None and one.requires_grad else one for one in inputs])

    assert torch.autograd.gradcheck(function, needed)
    assert torch.autograd.gradgradcheck(function, needed)


def test_no_gradient_goes_through_the_log_sum_exp():
    case = Case("lse", scope="bh")
    inputs = differentiable(case)
    out, lse = call(case, *inputs, return_lse=True)
    assert out.requires_grad and not lse.requires_grad


@pytest.mark.parametrize("case", SMALL, ids=repr)
def test_transformations(case):
    inputs = [None if one is None else one.detach() for one in differentiable(case)]

    def loss(query, key, value):
        return call(case, query, key, value, *inputs[3:]).square().sum()

    leaves = [one.clone().requires_grad_() for one in inputs[:3]]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for one, other in zip(torch.func.grad(loss, argnums=(0, 1, 2))(*inputs[:3]), expected):
        torch.testing.assert_close(one, other)
    tangents = tuple(torch.randn_like(one) for one in inputs[:3])
    _, derivative = torch.func.jvp(loss, tuple(inputs[:3]), tangents)
    torch.testing.assert_close(derivative, sum((one * other).sum() for one, other in zip(expected, tangents)))
    stacked = [torch.stack([one, 2 * one]) for one in inputs[:3]]
    found = torch.func.vmap(loss)(*stacked)
    torch.testing.assert_close(found[1], loss(*[2 * one for one in inputs[:3]]))


COMPILED = [case for case in FEW if case.name in ("padded", "groups, list per group", "dense, groups", "biased", "window, biased", "causal table", "window in two axes")]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", COMPILED, ids=repr)
def test_compiled_without_breaks(case, dynamic):
    torch._dynamo.reset()
    inputs = differentiable(case, dtype=torch.float32)
    needed = [one for one in inputs if one is not None and one.requires_grad]

    def function(*given):
        out, lse = call(case, *[one * 2 if one is not None and one.is_floating_point() else one for one in given], return_lse=True)
        return out.sin(), lse

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(found[0].sum(), needed), torch.autograd.grad(expected[0].sum(), needed)
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_compiled_with_inductor():
    torch._dynamo.reset()
    case = Case("inductor", scope="b1", h=4, g=2, pads=0.2)
    inputs = differentiable(case, dtype=torch.float32)
    compiled = torch.compile(lambda *given: call(case, *given) + 1, fullgraph=True)
    out = compiled(*inputs)
    torch.testing.assert_close(out, call(case, *inputs) + 1, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(call(case, *inputs).sum(), inputs[:3])
    for one, other in zip(torch.autograd.grad(out.sum(), inputs[:3]), expected):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_operators_pass_torch_s_own_tests():
    case = Case("opcheck", b=1, h=2, g=1, q=3, n=4, k=3, d=2, e=3, scope="bh", pads=0.2)
    query, key, value, table, _ = differentiable(case)
    query = query.detach().requires_grad_()
    arguments = ("bhqd,b[bhqk]d,b[bhqk]e->bhqe", [query, key.detach()[:, 0], table, value.detach()[:, 0]], [], [], None, "skip", False)
    torch.library.opcheck(torch.ops.einfall.attend.default, arguments)


def test_autocast():
    case = Case("autocast", scope="bh", bias="bhqk")
    inputs = differentiable(case, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = call(case, *inputs)
        mixed = call(case, inputs[0].detach().bfloat16().requires_grad_(), *inputs[1:])
    assert out.dtype == mixed.dtype == torch.bfloat16
    out.float().sum().backward()
    assert inputs[0].grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), call(case, *inputs), rtol=5e-2, atol=5e-2)


def test_in_place_of_torch_s_own():
    case = Case("dense", b=2, h=4, g=2, q=9, n=9, d=8, e=8, causal=True)
    query, key, value, _, _ = (in_torch(one, torch.float32) for one in case.arrays())
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(einfall.attention(query, key, value, causal=True), expected, rtol=1e-5, atol=1e-5)


def test_devices_that_hold_nothing():
    query = torch.zeros(1, 1, 2, 3, device="meta")
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
        einfall.attention(query, query, query)


# The best keys.


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("count", [1, 3, 11, 15])
def test_best_keys(library, causal, count):
    case = Case("best", h=6, g=2, q=9)
    query, key, *_ = case.arrays()
    scores = np.einsum("bhqd,bhnd->bhqn", query, np.repeat(key, 3, 1))
    if causal:
        scores = np.where(np.arange(11) <= np.arange(9)[:, None], scores, -np.inf)
    expected = (-scores).argsort(-1, kind="stable")[..., :count]
    expected = np.where(np.isinf(np.take_along_axis(scores, expected, -1)), -1, expected)
    expected = np.pad(expected, [(0, 0)] * 3 + [(0, count - expected.shape[-1])], constant_values=-1)
    if library == "torch":
        query, key = torch.from_numpy(query), torch.from_numpy(key)
    if library == "jax":
        jnp = pytest.importorskip("jax.numpy")
        query, key = jnp.asarray(query, "float32"), jnp.asarray(key, "float32")
    found = einfall.topk_keys(query, key, count, causal=causal)
    assert isinstance(found, type(query)) or library == "jax"
    assert str(found.dtype).endswith("int32")
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_best_keys_of_many_queries_are_found_in_parts():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(1, 2, 900, 4)), rng.normal(size=(1, 2, 20000, 4))
    found = einfall.topk_keys(query, key, 2)
    at = (0, 1, 777)
    scores = key[0, 1] @ query[at]
    assert list(found[at]) == list(np.argsort(-scores)[:2])


# Lists of different lengths.


@pytest.mark.parametrize("scope", ["", "h", "bh", "bg", "11"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_lists_of_different_lengths(scope, library):
    case = Case("lists", h=6, g=2, scope=scope, pads=0.4)
    query, key, value, table, _ = case.arrays()
    expected = reference(case, query, key, value, table, None)[0]
    lens = (table >= 0).sum(-1)
    offsets = np.zeros(lens.size + 1, np.int64)
    offsets[1:] = lens.ravel().cumsum()
    flat = table[table >= 0]
    starts = np.concatenate([offsets[:-1].reshape(lens.shape), offsets[1:].reshape(lens.shape)[..., -1:]], -1)
    assert starts.shape[-1] == case.q + 1
    if library == "torch":
        query, key, value, flat, starts = map(torch.from_numpy, (query, key, value, flat, starts))
    lists = einfall.Table(flat, offsets=starts)
    close(einfall.attention(query, key, value, lists), expected, 1e-12)
    if library == "torch":
        inputs = [one.clone().requires_grad_() for one in (query, key, value)]
        found = torch.autograd.grad(einfall.attention(*inputs, lists).square().sum(), inputs)
        padded = torch.from_numpy(table)
        wanted = torch.autograd.grad(einfall.attention(*inputs, padded).square().sum(), inputs)
        for one, other in zip(found, wanted):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_lists_of_different_lengths_with_a_bias_for_each_index(library):
    rng = np.random.default_rng(3)
    query, key, value = (rng.normal(size=(2, 4, n, 5)) for n in (3, 7, 7))
    lists = [[4, 0], [], [6, 1, 1]]
    indices, offsets = np.array(sum(lists, [])), np.array([0, 2, 2, 5])
    bias = rng.normal(size=(4, 5))
    table = np.array([[4, 0, -1], [-1, -1, -1], [6, 1, 1]])
    padded = np.zeros((1, 4, 3, 3))
    padded[0, :, 0, :2], padded[0, :, 2] = bias[:, :2], bias[:, 2:]
    expected = einfall.attention(query, key, value, table, bias=padded)
    if library == "torch":
        query, key, value, indices, offsets, bias = map(
            torch.from_numpy, (query, key, value, indices, offsets, bias)
        )
        query, key, value, bias = (one.requires_grad_() for one in (query, key, value, bias))
    if library == "jax":
        jax = pytest.importorskip("jax")
        query, key, value, bias = (jax.numpy.asarray(one, "float32") for one in (query, key, value, bias))
    given = einfall.Table(indices, offsets=offsets)
    out, lse = einfall.attention(query, key, value, given, bias=bias, return_lse=True)
    assert lse.shape == (2, 4, 3)
    close(out.detach() if library == "torch" else out, expected, 1e-5 if library == "jax" else 1e-12)
    if library == "jax":
        loss = jax.jit(jax.grad(lambda *given: (einfall.attention(*given[:3], lists_of, bias=given[3]) ** 2).sum(), 3))
        lists_of = given
        found = loss(query, key, value, bias)
        assert found.shape == bias.shape and bool((abs(found) > 0).any())
    if library == "torch":
        def run(query, key, value, bias):
            return einfall.attention(query, key, value, given, bias=bias)

        assert torch.autograd.gradcheck(run, (query, key, value, bias))
        assert torch.autograd.gradgradcheck(run, (query, key, value, bias))
        compiled = torch.compile(run, backend="aot_eager")(query, key, value, bias)
        close(compiled.detach(), expected, 1e-12)


def test_lists_of_different_lengths_are_checked():
    x = np.ones((1, 1, 3, 2))
    indices = np.array([0, 1, 2])

    def run(offsets, indices=indices, **options):
        return einfall.attention(x, x, x, einfall.Table(indices, offsets=offsets), **options)

    with pytest.raises(ValueError, match=r"offsets have the shape \(3,\), but \(b\|1, h\|g\|1, q \+ 1\)"):
        run(np.array([0, 1, 3]))
    for bad in ([0, 2, 1, 3], [0, 1, 2, 4], [-1, 1, 2, 3]):
        with pytest.raises((ValueError, einfall.TableError), match="not in"):
            run(np.array(bad))
    with pytest.raises((TypeError, ValueError), match="offsets are"):
        run(np.array([0.0, 1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="bias"):
        run(np.array([0, 1, 2, 3]), bias=np.ones((1, 4)))
    with pytest.raises(ValueError, match="for `einfall.attention` alone"):
        einfall.einsum("[q]d->qd", x[0, 0], einfall.Table(indices, offsets=np.array([0, 1, 2, 3])))
    report = einfall.explain_attention(x, x, x, einfall.Table(indices, offsets=np.array([0, 1, 2, 3])))
    assert report.to_dict()["shape"] == (1, 1, 3, 2)
    assert run(np.array([0, 0, 0, 0]), indices[:0]).sum() == 0


# Memory, and what is kept.


def peak(code):
    script = "import resource\nimport numpy as np\nimport einfall\n" + code
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "EINFALL_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel says of memory")
def test_memory_is_that_of_the_result():
    # 8·2000 queries of 256 keys: scores alone would take 16 MB, gathered keys 524 MB.
    setup = """
rng = np.random.default_rng(0)
q = rng.normal(size=(1, 8, 2000, 32)).astype("float32")
k, v = q + 1, q + 2
table = rng.integers(0, 2000, size=(1, 8, 2000, 256)).astype("int32")
einfall.attention(q[:, :, :8], k, v, table[:, :, :8])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""
    used = peak(setup + "out = einfall.attention(q, k, v, table)\n"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    assert used < 2048 + 64 + 8192, f"{used} kB"


def test_plans_are_kept_and_nothing_leaks():
    query, key, value, table, _ = arrays()
    einfall.cache_clear()
    for _ in range(5):
        einfall.attention(query, key, value, table)
    info = einfall.cache_info()
    assert (info.hits, info.misses) == (4, 1)
    before = sys.getrefcount(query)
    for _ in range(100):
        einfall.attention(query, key, value, table, return_lse=True)
    gc.collect()
    assert sys.getrefcount(query) == before


def test_explained():
    report = einfall.explain_attention((2, 4, 1000, 32), (2, 4, 1000, 32), (2, 4, 1000, 32), (2, 4, 1000, 64))
    values = report.to_dict()
    assert values["shape"] == (2, 4, 1000, 32)
    assert values["total"]["bytes"] > 0 and values["steps"][0]["kernel"] in str(report)
    assert "<table" in report._repr_html_()
    same = einfall.explain_attention("bhqd,bh[bhqk]d,bh[bhqk]e->bhqe", (2, 4, 1000, 32), (2, 4, 1000, 32), (2, 4, 1000, 64), (2, 4, 1000, 32))
    assert same.to_dict()["equation"] == values["equation"]
    query, key, value, table, _ = arrays()
    assert einfall.explain_attention(query, key, value, table, causal=True).to_dict()["dtype"] == "f64"


# JAX.


def in_jax(case, seed=7, dtype="float32"):
    jnp = pytest.importorskip("jax.numpy")
    return [None if one is None else jnp.asarray(one, dtype if one.dtype.kind == "f" else "int32") for one in case.arrays(seed)]


@pytest.mark.parametrize("case", FEW, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax(case, dtype):
    jax = pytest.importorskip("jax")
    arrays = in_jax(case, dtype=dtype)
    wide = [None if one is None else np.asarray(one, np.float64 if one.dtype != "int32" else None) for one in arrays]
    expected, expected_lse = reference(case, *wide)
    for function in (call, jax.jit(call, static_argnums=0, static_argnames=["return_lse"])):
        out, lse = function(case, *arrays, return_lse=True)
        assert isinstance(out, jax.Array) and out.dtype == dtype and lse.dtype == "float32"
        close(out, expected, TOLERANCE[dtype])
        close(lse, expected_lse, 2e-4)


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_gradients_in_jax(case):
    jax = pytest.importorskip("jax")
    arrays = in_jax(case)
    numbers = [at for at in (0, 1, 2, 4) if arrays[at] is not None]

    def loss(*given):
        return (call(case, *given) ** 2).sum()

    leaves = [None if one is None else torch.from_numpy(np.asarray(one, np.float64 if one.dtype != "int32" else None)) for one in arrays]
    needed = [leaves[at].requires_grad_() for at in numbers]
    table = None if leaves[3] is None else leaves[3].numpy()
    expected = torch.autograd.grad((reference_in_torch(torch, case, *leaves[:3], table, leaves[4]) ** 2).sum(), needed)
    for gradient in (jax.grad(loss, numbers), jax.jit(jax.grad(loss, numbers))):
        for one, other in zip(gradient(*arrays), expected):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_second_derivatives_and_batches_in_jax():
    jax = pytest.importorskip("jax")
    case = Case("second", b=1, h=2, g=1, q=3, n=4, k=3, d=2, e=3, scope="bh", pads=0.2)
    query, key, value, table, _ = in_jax(case)

    def loss(query):
        return (einfall.attention(query, key, value, table) ** 2).sum()

    def plain(query):
        keys, values = (x[0, 0][table.clip(0)] for x in (key, value))
        scores = (query[:, :, :, None] * keys).sum(-1) * 2**-0.5
        scores = jax.numpy.where(table >= 0, scores, -jax.numpy.inf)
        return ((jax.nn.softmax(scores, -1)[..., None] * values).sum(-2) ** 2).sum()

    if (np.asarray(table) < 0).all(-1).any():
        pytest.fail("a list is empty: the plain form has no answer")
    np.testing.assert_allclose(jax.hessian(loss)(query), jax.hessian(plain)(query), rtol=1e-3, atol=1e-4)
    batch = jax.numpy.stack([query, 2 * query])
    found = jax.vmap(loss)(batch)
    np.testing.assert_allclose(found, [loss(one) for one in batch], rtol=1e-5)
