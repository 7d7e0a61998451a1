"""Attention on NVIDIA GPUs, compared with gathered keys and a plain softmax in float64."""

import numpy as np
import pytest
from attention_cases import CASES, FEW, Case, reference, reference_in_torch, scopes

import einfall

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

#: Errors of a sum of rounded products, relative to the largest values that go in.
TOLERANCE = {"float64": 1e-11, "float32": 3e-5, "float16": 6e-3, "bfloat16": 4e-2}


def on_gpu(case, dtype, seed=0, gradients=False):
    tensors = []
    for array in case.arrays(seed):
        tensor = None if array is None else torch.from_numpy(np.ascontiguousarray(array)).cuda()
        if tensor is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype).requires_grad_(gradients)
        tensors.append(tensor)
    return tensors


def call(case, query, key, value, table, bias, **options):
    return einfall.attention(query, key, value, table, bias=bias, **case.options(), **options)


def in_double(tensors):
    return [
        None if one is None else one.detach().cpu().double().numpy() if one.is_floating_point() else one.cpu().numpy()
        for one in tensors
    ]


def close(found, expected, tolerance):
    found = found.detach().cpu().double().numpy()
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_forward(case, dtype):
    tensors = on_gpu(case, getattr(torch, dtype))
    out, lse = call(case, *tensors, return_lse=True)
    expected, expected_lse = reference(case, *in_double(tensors))
    assert out.device == tensors[0].device and out.dtype == tensors[0].dtype
    assert lse.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    close(out, expected, TOLERANCE[dtype])
    close(lse, expected_lse, max(TOLERANCE[dtype] / 10, 3e-5) if dtype != "float64" else 1e-11)
    assert torch.equal(call(case, *tensors), out)


@pytest.mark.parametrize("scope", scopes())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_scope_of_a_table(scope, dtype):
    case = Case(scope, b=3, h=8, g=2, q=40, n=50, k=33, d=64, e=64, scope=scope, pads=0.2)
    tensors = on_gpu(case, getattr(torch, dtype), 1)
    close(call(case, *tensors), reference(case, *in_double(tensors))[0], TOLERANCE[dtype])


SHAPES = [
    Case(f"d={d} k={k} h={h} g={g}", b=2, h=h, g=g, q=37, n=max(70, k), k=k, d=d, e=d, scope=scope, pads=0.1)
    for d in (8, 16, 32, 64, 96, 128, 192, 256, 576)
    for k in (1, 7, 64, 129)
    for h, g, scope in ((1, 1, "bh"), (4, 2, "bg"), (8, 1, "b1"))
]


@pytest.mark.parametrize("case", SHAPES, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_depths_and_lengths_of_lists(case, dtype):
    tensors = on_gpu(case, getattr(torch, dtype), 2)
    close(call(case, *tensors), reference(case, *in_double(tensors))[0], TOLERANCE[dtype])


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_gradients(case, dtype):
    tensors = on_gpu(case, getattr(torch, dtype), 3, gradients=True)
    wide = [one.detach().double().requires_grad_() if one is not None and one.is_floating_point() else one for one in tensors]
    needed = [at for at, one in enumerate(tensors) if one is not None and one.requires_grad]
    out = call(case, *tensors)
    table = None if tensors[3] is None else tensors[3].cpu().numpy()
    expected = reference_in_torch(torch, case, *wide[:3], table, wide[4])
    weights = torch.randn(out.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).to(out.dtype)
    found = torch.autograd.grad(out, [tensors[at] for at in needed], weights)
    wanted = torch.autograd.grad(expected, [wide[at] for at in needed], weights.double(), allow_unused=True)
    for one, other, at in zip(found, wanted, needed):
        assert one.shape == tensors[at].shape and one.dtype == tensors[at].dtype
        other = torch.zeros_like(wide[at]) if other is None else other
        if other.numel():
            error = float((one.double() - other).abs().max() / other.abs().max().clamp(min=1))
            assert error < 3 * TOLERANCE[dtype], (case, at, error)


def test_gradcheck():
    case = Case("small", b=1, h=2, g=1, q=3, n=4, k=3, d=2, e=3, scope="bh", pads=0.2)
    query, key, value, table, _ = on_gpu(case, torch.float64, gradients=True)

    def function(query, key, value):
        return einfall.attention(query, key, value, table)

    assert torch.autograd.gradcheck(function, (query, key, value))
    assert torch.autograd.gradgradcheck(function, (query, key, value))


def test_rows_that_are_not_selected_are_not_read():
    case = Case("poisoned", b=2, h=4, g=2, q=60, n=80, k=20, d=64, e=64, scope="bg", pads=0.3)
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value, table, _ = on_gpu(case, dtype)
        table = torch.where((table == 0) | (table == 79), 5, table)
        expected = einfall.attention(query, key, value, table)
        for row in (0, 79):
            key[:, :, row], value[:, :, row] = float("nan"), float("inf")
        leaves = [one.clone().requires_grad_() for one in (query, key, value)]
        for far in (table, torch.where(table < 0, 10**6, table)):
            out = einfall.attention(*leaves, far)
            assert torch.equal(out, expected)
            grads = torch.autograd.grad(out.float().square().sum(), leaves)
            assert all(torch.isfinite(one).all() for one in grads)


def test_a_bad_table_raises_at_the_next_call_and_harms_nothing():
    case = Case("bad", q=40, n=50, scope="bh")
    query, key, value, table, _ = on_gpu(case, torch.float32)
    expected = einfall.attention(query, key, value, table)
    bad = table.clone()
    bad[0, 0, 0, 0] = 50
    einfall.attention(query, key, value, bad, bounds="error")
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match="outside its axis"):
        einfall.attention(query, key, value, table)
    assert torch.equal(einfall.attention(query, key, value, table), expected)


def test_offsets_and_strides_that_are_not_aligned():
    case = Case("strided", q=20, n=30, d=33, e=33, scope="bh")
    query, key, value, table, _ = on_gpu(case, torch.float32)
    expected = einfall.attention(query[..., 1:].contiguous(), key[..., 1:].contiguous(), value[..., :-1].contiguous(), table)
    found = einfall.attention(query[..., 1:], key[..., 1:], value[..., :-1], table)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    turned = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in (query, key, value)]
    torch.testing.assert_close(einfall.attention(*turned, table), einfall.attention(query, key, value, table), rtol=1e-5, atol=1e-5)


def test_devices_are_not_mixed():
    query, key, value, table, _ = on_gpu(Case("mixed", scope="bh"), torch.float32)
    for operands in ((query, key, value, table.cpu()), (query, key.cpu(), value, table)):
        with pytest.raises((ValueError, RuntimeError)):
            einfall.attention(*operands)


@pytest.mark.parametrize("case", FEW, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_a_hundred_times(case, dtype):
    tensors = on_gpu(case, getattr(torch, dtype), 4, gradients=True)
    needed = [one for one in tensors if one is not None and one.requires_grad]

    def run():
        out = call(case, *tensors)
        return [out, *torch.autograd.grad(out.float().square().sum(), needed)]

    expected = run()
    for _ in range(100):
        assert all(torch.equal(one, other) for one, other in zip(run(), expected))


def test_the_same_bits_where_many_queries_share_keys():
    case = Case("shared keys", b=2, h=4, g=2, q=1000, n=300, k=100, d=64, e=64, scope="bh", duplicates=True)
    tensors = on_gpu(case, torch.bfloat16, 5, gradients=True)

    def run():
        out = call(case, *tensors)
        return torch.autograd.grad(out.float().square().sum(), tensors[:3])

    expected = run()
    for _ in range(20):
        assert all(torch.equal(one, other) for one, other in zip(run(), expected))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["padded", "groups, list per group", "dense, causal", "window, biased"])
def test_compiled_without_breaks(name, backend):
    torch._dynamo.reset()
    case = next(case for case in FEW if case.name == name)
    tensors = on_gpu(case, torch.float32, gradients=True)
    needed = [one for one in tensors if one is not None and one.requires_grad]

    def function(*given):
        return call(case, *given) * 2

    found = torch.compile(function, fullgraph=True, backend=backend)(*tensors)
    expected = function(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(found.sum(), needed), torch.autograd.grad(expected.sum(), needed)
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_autocast():
    tensors = on_gpu(Case("autocast", scope="bh"), torch.float32, gradients=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = einfall.attention(*tensors[:4])
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert tensors[0].grad.dtype == torch.float32


def test_streams_and_graphs():
    case = Case("streams", b=2, h=4, g=2, q=50, n=70, k=10, d=32, e=32, scope="bg")
    query, key, value, table, _ = on_gpu(case, torch.float32)
    expected = einfall.attention(query, key, value, table)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = einfall.attention(query, key, value, table)
    stream.synchronize()
    assert torch.equal(result, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = einfall.attention(query, key, value, table)
    query.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, einfall.attention(query, key, value, table))


def test_graphs_of_forward_and_backward():
    case = Case("graph", b=1, h=4, g=2, q=50, n=70, k=10, d=32, e=32, scope="bg", pads=0.1)
    query, key, value, table, _ = on_gpu(case, torch.float32, gradients=True)
    weights = torch.randn(1, 4, 50, 32, device="cuda")

    def step():
        return torch.autograd.grad(einfall.attention(query, key, value, table), (query, key, value), weights)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        key.add_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, step()):
        assert torch.equal(one, other)


def test_tables_that_keep_their_inverse():
    case = Case("kept", b=2, h=4, g=2, q=200, n=300, k=50, d=64, e=64, scope="bg", pads=0.1)
    query, key, value, table, _ = on_gpu(case, torch.float32, gradients=True)
    kept = einfall.Table(table)

    def run(table):
        return torch.autograd.grad(einfall.attention(query, key, value, table).square().sum(), (query, key, value))

    expected = run(table)
    for _ in range(3):
        for one, other in zip(run(kept), expected):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    inverses = len(kept._kept)
    # A table that is written to is noticed.
    table.copy_(table.flip(-2))
    for one, other in zip(run(kept), run(table)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert inverses == len(kept._kept) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lists_of_different_lengths(dtype):
    case = Case("lists", b=2, h=4, g=2, q=40, n=60, k=9, d=32, e=32, scope="bg", pads=0.5)
    query, key, value, table, _ = on_gpu(case, getattr(torch, dtype), gradients=True)
    lens = (table >= 0).sum(-1)
    ends = lens.flatten().cumsum(0)
    starts = torch.cat([(ends.view_as(lens) - lens), ends.view_as(lens)[..., -1:]], -1)
    lists = einfall.Table(table[table >= 0], offsets=starts)
    assert starts.shape == (2, 2, 41)

    def run(table):
        out = einfall.attention(query, key, value, table)
        return [out, *torch.autograd.grad(out.float().square().sum(), (query, key, value))]

    for _ in range(2):
        for one, other in zip(run(lists), run(table)):
            close(one, in_double([other])[0], 3e-5 if dtype == "float32" else 3e-2)


@pytest.mark.parametrize("backward", [False, True])
def test_memory_is_that_of_the_result(backward):
    # Scores alone would take 134 MB, gathered keys and values 17 GB.
    case = Case("large", b=1, h=8, g=8, q=4096, n=4096, k=1024, d=64, e=64, scope="11", duplicates=True)
    query, key, value, table, _ = on_gpu(case, torch.bfloat16, gradients=backward)

    def run():
        out = einfall.attention(query, key, value, table)
        return torch.autograd.grad(out, (query, key, value), out.detach()) if backward else out

    found = run()
    results = [one for one in (found if backward else [found])]
    bytes_of = sum(one.numel() * one.element_size() for one in results) + 8 * 4096 * 4
    del found, results
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    used = torch.cuda.max_memory_allocated() - before
    # Backward: the output, and the table's inverse, whose size is that of the table.
    allowed = bytes_of + (8 << 20) + (8 * 4096 * 64 * 2 + 4 * table.numel() * 8 if backward else 0)
    assert used <= allowed, f"{used / 2**20:.1f} MB of {allowed / 2**20:.1f} MB"


def test_best_keys():
    query, key = torch.randn(2, 6, 50, 32, device="cuda"), torch.randn(2, 2, 70, 32, device="cuda")
    table = einfall.topk_keys(query, key, 7)
    scores = torch.einsum("bgrqd,bgnd->bgrqn", query.unflatten(1, (2, 3)).double(), key.double()).flatten(1, 2)
    assert table.dtype == torch.int32 and table.device == query.device
    torch.testing.assert_close(scores.gather(-1, table.long()), scores.topk(7).values)
    assert einfall.attention(query, key, key, table).shape == query.shape


def test_arrays_of_cupy():
    cupy = pytest.importorskip("cupy")
    case = Case("cupy", h=4, g=2, scope="bg", pads=0.2)
    arrays = case.arrays(dtype=np.dtype("float32"))
    out, lse = einfall.attention(*[cupy.asarray(one) for one in arrays[:4]], return_lse=True)
    expected, expected_lse = reference(case, *arrays)
    assert isinstance(out, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(out), expected, rtol=3e-5, atol=3e-5)
    np.testing.assert_allclose(cupy.asnumpy(lse), expected_lse, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("kind", ["eager", "jit"])
def test_arrays_of_jax(kind):
    jax = pytest.importorskip("jax")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("JAX has no GPU here")
    case = Case("jax", b=2, h=4, g=2, q=40, n=60, k=9, d=32, e=32, scope="bg", pads=0.3, bias="bhqk")
    arrays = case.arrays(dtype=np.dtype("float32"))
    query, key, value, table, bias = (jax.numpy.asarray(one) for one in arrays)
    expected, expected_lse = reference(case, *arrays)

    def run(query, key, value, bias):
        return einfall.attention(query, key, value, table, bias=bias, return_lse=True)

    def loss(*given):
        return (run(*given)[0] ** 2).sum()

    gradients = jax.grad(loss, (0, 1, 2, 3))
    if kind == "jit":
        run, gradients = jax.jit(run), jax.jit(gradients)
    out, lse = run(query, key, value, bias)
    assert next(iter(out.devices())).platform == "gpu"
    np.testing.assert_allclose(np.asarray(out), expected, rtol=3e-5, atol=3e-5)
    np.testing.assert_allclose(np.asarray(lse), expected_lse, rtol=3e-5, atol=3e-5)
    leaves = [torch.from_numpy(np.asarray(one)) for one in arrays]
    given = [leaves[at].double().requires_grad_() for at in (0, 1, 2, 4)]
    out = einfall.attention(given[0], given[1], given[2], leaves[3], bias=given[3])
    wanted = torch.autograd.grad(out.square().sum(), given)
    for one, other in zip(gradients(query, key, value, bias), wanted):
        np.testing.assert_allclose(np.asarray(one), other.numpy(), rtol=2e-4, atol=2e-4)
