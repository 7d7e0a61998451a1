"""Tensors on NVIDIA GPUs: the same as on the CPU, in the caller's stream, with the library's own memory."""

import numpy as np
import pytest

import einfall

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

PLAIN = [
    ("ij,jk->ik", (33, 20), (20, 45)),
    ("bij,bjk->bik", (3, 33, 64), (3, 64, 40)),
    ("bhqd,bhkd->bhqk", (2, 3, 17, 32), (2, 3, 23, 32)),
    ("ij->ji", (300, 70)),
    ("ij->", (300, 70)),
    ("ij->i", (3, 70000)),
    ("ii->i", (40, 40)),
    ("i,j->ij", (100,), (50,)),
    ("abc,cd,de->abe", (5, 6, 7), (7, 8), (8, 9)),
    ("a...,...->a", (4, 5, 6), (5, 6)),
]


def numbers(*shape, dtype=None):
    dtype = dtype or torch.float32
    return torch.randint(-3, 4, shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int64", "complex64"])
@pytest.mark.parametrize("equation,shapes", [(case[0], case[1:]) for case in PLAIN])
def test_plain_equations_are_those_of_torch(equation, shapes, dtype):
    dtype = getattr(torch, dtype)
    operands = [numbers(*shape, dtype=dtype) for shape in shapes]
    expected = einfall.einsum(equation, *[operand.cpu() for operand in operands])
    result = einfall.einsum(equation, *operands)
    assert result.device == operands[0].device and result.dtype == expected.dtype
    assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [1, 3, 8, 20, 32, 64, 96, 128, 257])
@pytest.mark.parametrize("k", [1, 3, 10, 31, 100])
def test_looked_up_rows(d, k, dtype):
    query, key = numbers(2, 1, 50, d, dtype=dtype), numbers(2, 1, 70, d, dtype=dtype)
    for table_dtype in (torch.int64, torch.int32):
        table = torch.randint(0, 70, (2, 1, 50, k), device="cuda").to(table_dtype)
        rows = key[torch.arange(2, device="cuda")[:, None, None, None], 0, table]
        scores = einfall.einsum("bhqd,bh[bhqk]d->bhqk", query, key, table)
        wide = torch.einsum("bhqd,bhqkd->bhqk", query.double(), rows.double())
        assert torch.equal(scores, wide.to(dtype))
        weights = numbers(2, 1, 50, k, dtype=dtype)
        values = einfall.einsum("bhqk,bh[bhqk]d->bhqd", weights, key, table)
        wide = torch.einsum("bhqk,bhqkd->bhqd", weights.double(), rows.double())
        assert torch.equal(values, wide.to(dtype))


def test_offsets_and_strides_that_are_not_aligned():
    base = numbers(1 + 40 * 33)
    key = base[1:].view(40, 33)[:, :32]
    query = numbers(20, 33)[:, 1:]
    table = torch.randint(0, 40, (20, 7), device="cuda")
    expected = torch.einsum("qd,qkd->qk", query, key[table])
    assert torch.equal(einfall.einsum("qd,[qk]d->qk", query, key, table), expected)


def test_scattered_windowed_and_left_out():
    weights, dense = numbers(500), numbers(30, 24)
    columns, rows = torch.randint(0, 30, (500,), device="cuda"), torch.randint(0, 20, (500,), device="cuda")
    expected = torch.zeros(20, 24, device="cuda").index_add_(0, rows, weights[:, None] * dense[columns])
    result = einfall.einsum("e,[e]d->[e]d", weights, dense, columns, rows, sizes={"[e]": 20})
    assert torch.equal(result, expected)
    query, key = numbers(40, 16), numbers(40, 16)
    on_cpu = einfall.einsum("qd,[q+w-3]d->qw", query.cpu(), key.cpu(), sizes={"w": 7})
    assert torch.equal(einfall.einsum("qd,[q+w-3]d->qw", query, key, sizes={"w": 7}).cpu(), on_cpu)
    table = torch.randint(-1, 41, (40, 9), device="cuda")
    key[0] = float("nan")
    on_cpu = einfall.einsum("qd,[qk]d->qk", query.cpu(), key.cpu(), table.cpu(), bounds="skip")
    result = einfall.einsum("qd,[qk]d->qk", query, key, table, bounds="skip").cpu()
    assert torch.equal(result.nan_to_num(77), on_cpu.nan_to_num(77))


def test_a_bad_table_raises_at_the_next_call_and_harms_nothing():
    query, key = numbers(40, 16), numbers(40, 16)
    table = torch.full((40, 9), 40, device="cuda")
    einfall.einsum("qd,[qk]d->qk", query, key, table)
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match="outside its axis"):
        einfall.einsum("qd,kd->qk", query, key)
    assert torch.equal(einfall.einsum("qd,kd->qk", query, key), query @ key.T)


def kept(table):
    return len(table._kept)


def entries(count=5000, rows=300, d=24):
    values, dense = numbers(count), numbers(rows, d)
    return values, dense, *(torch.randint(0, rows, (count,), device="cuda") for _ in range(2))


def scattered(values, dense, column, row, **options):
    return einfall.einsum("e,[e]d->[e]d", values, dense, column, row, sizes={"[e]": 300}, **options)


def test_a_table_keeps_its_inverse():
    values, dense, column, row = entries()
    tables = einfall.Table(column), einfall.Table(row)
    for _ in range(3):
        expected = torch.zeros_like(dense).index_add_(0, row, values[:, None] * dense[column])
        assert torch.equal(scattered(values, dense, *tables), expected)
        assert (kept(tables[0]), kept(tables[1])) == (1, 0)
        values, dense = numbers(5000), numbers(300, 24)
    # One of the two alone: the other is read again.
    for column in (column, torch.randint(0, 300, (5000,), device="cuda")):
        expected = torch.zeros_like(dense).index_add_(0, row, values[:, None] * dense[column])
        assert torch.equal(scattered(values, dense, column, tables[1]), expected)
    assert kept(tables[1]) == 1


def test_a_table_that_changes_is_inverted_again():
    values, dense, column, row = entries()
    tables = einfall.Table(column), einfall.Table(row)
    for changed in (row, column, row[:2000]):
        scattered(values, dense, *tables)
        changed.copy_(torch.randint(0, 300, changed.shape, device="cuda"))
        expected = torch.zeros_like(dense).index_add_(0, row, values[:, None] * dense[column])
        assert torch.equal(scattered(values, dense, *tables), expected)


def test_a_bad_table_raises_each_time_although_its_inverse_is_kept():
    values, dense, column, row = entries()
    row[7] = 300
    table = einfall.Table(row)
    for _ in range(2):
        scattered(values, dense, column, table)
        torch.cuda.synchronize()
        with pytest.raises(IndexError, match="outside its axis"):
            scattered(values, dense, column, column)
    row[7] = 0
    assert torch.equal(scattered(values, dense, column, table), scattered(values, dense, column, row))


def test_inverses_serve_forward_and_backward_calls():
    values, dense, column, row = entries()
    tables = einfall.Table(column), einfall.Table(row)
    found = []
    for given in ((column, row), tables, tables):
        leaves = values.clone().requires_grad_(), dense.clone().requires_grad_()
        (scattered(*leaves, *given) ** 2).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for grads in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(grads, found[0]))
    # The sum itself scatters through `row`, the gradient of `dense` through `column`: an inverse each, made once.
    assert kept(tables[0]) + kept(tables[1]) == 2


def test_inverses_in_graphs_and_other_streams():
    values, dense, column, row = entries()
    tables = einfall.Table(column), einfall.Table(row)
    expected = scattered(values, dense, column, row)
    stream = torch.cuda.Stream()
    for known in (False, True):
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = scattered(values, dense, *tables)
        result.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(result, expected), known
        with torch.cuda.stream(stream):
            other = scattered(values, dense, *tables)
        stream.synchronize()
        assert torch.equal(other, expected)
        assert torch.equal(scattered(values, dense, *tables), expected)


def test_not_a_number_where_nothing_should_look():
    nan = float("nan")
    query, key = numbers(40, 16), numbers(40, 16)
    key[0] = nan
    table = torch.randint(1, 40, (40, 9), device="cuda")
    table[::3, 4] = -1
    table[1::3, 2] = 40
    scores = einfall.einsum("qd,[qk]d->qk", query, key, table, bounds="skip")
    inside = (table >= 0) & (table < 40)
    rows = key[torch.where(inside, table, 1)]
    assert torch.equal(scores, torch.einsum("qd,qkd->qk", query, rows).masked_fill(~inside, 0))
    weights = numbers(40, 9).masked_fill(~inside, nan)
    values = einfall.einsum("qk,[qk]d->qd", weights, key, table, bounds="skip")
    assert torch.equal(values, torch.einsum("qk,qkd->qd", weights.masked_fill(~inside, 0), rows))
    entry, row = numbers(500), torch.randint(0, 20, (500,), device="cuda")
    entry[::7], row[::7] = nan, -1
    summed = einfall.einsum("e->[e]", entry, row, sizes={"[e]": 20}, bounds="skip")
    expected = torch.zeros(20, device="cuda").index_add_(0, row.clamp(0), entry.masked_fill(row < 0, 0))
    assert torch.equal(summed, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "equation,shapes",
    [(case[0], case[1:]) for case in PLAIN]
    + [
        ("ij,ij->ij", ((33, 68), (33, 68))),
        ("bi,bj->bij", ((3, 33), (3, 68))),
        ("ij,jk->ik", ((20, 0), (0, 12))),
        ("ij->i", ((20, 0),)),
    ],
)
def test_every_element_is_written(equation, shapes, dtype):
    dtype = getattr(torch, dtype)
    operands = [numbers(*shape, dtype=dtype) for shape in shapes]
    expected = einfall.einsum(equation, *[operand.cpu() for operand in operands])
    # What a result is given was that of another, full of it.
    poison = torch.full(expected.shape, float("nan"), device="cuda", dtype=dtype)
    out = torch.full_like(poison, float("nan"))
    del poison
    assert torch.equal(einfall.einsum(equation, *operands).cpu(), expected)
    assert torch.equal(einfall.einsum(equation, *operands, out=out).cpu(), expected)


def test_devices_are_not_mixed():
    with pytest.raises(ValueError, match="operand 0 is on `cuda:0` but operand 1 on `cpu`"):
        einfall.einsum("ij,jk->ik", numbers(2, 2), torch.ones(2, 2))


def test_out_and_plans():
    a, b = numbers(20, 30), numbers(30, 10)
    out = torch.full((10, 20), 9.0, device="cuda").T
    assert einfall.einsum("ij,jk->ik", a, b, out=out) is out
    assert torch.equal(out, a @ b)
    plan = einfall.plan("ij,jk->ik", a, b)
    assert torch.equal(plan(a, b), a @ b)


def test_gradients():
    query = torch.randn(2, 5, 4, device="cuda", dtype=torch.float64, requires_grad=True)
    key = torch.randn(2, 6, 4, device="cuda", dtype=torch.float64, requires_grad=True)
    table = torch.randint(0, 6, (2, 5, 3), device="cuda")

    def scores(query, key):
        return einfall.einsum("bqd,b[bqk]d->bqk", query, key, table)

    assert torch.autograd.gradcheck(scores, (query, key))
    assert torch.autograd.gradgradcheck(scores, (query, key))


def test_compiled_without_breaks():
    query, key = numbers(2, 50, 32), numbers(2, 70, 32)
    table = torch.randint(0, 70, (2, 50, 10), device="cuda")

    def scores(query, key, table):
        return einfall.einsum("bqd,b[bqk]d->bqk", query, key, table) * 2

    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, key, table), scores(query, key, table))


def test_streams_and_graphs():
    query, key = numbers(2, 50, 32), numbers(2, 70, 32)
    table = torch.randint(0, 70, (2, 50, 10), device="cuda")
    expected = einfall.einsum("bqd,b[bqk]d->bqk", query, key, table)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = einfall.einsum("bqd,b[bqk]d->bqk", query, key, table)
    stream.synchronize()
    assert torch.equal(result, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = einfall.einsum("bqd,b[bqk]d->bqk", query, key, table)
    query.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, einfall.einsum("bqd,b[bqk]d->bqk", query, key, table))


def test_autocast():
    a, b = torch.randn(20, 30, device="cuda"), torch.randn(30, 10, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert einfall.einsum("ij,jk->ik", a, b).dtype == torch.bfloat16


def test_the_same_bits_a_hundred_times():
    query, key = torch.randn(8, 1000, 32, device="cuda"), torch.randn(8, 1000, 32, device="cuda")
    table = torch.randint(0, 1000, (8, 1000, 100), device="cuda")
    weights = torch.randn(8, 1000, 100, device="cuda")
    calls = [("bqd,b[bqk]d->bqk", query), ("bqk,b[bqk]d->bqd", weights)]
    for equation, first in calls:
        expected = einfall.einsum(equation, first, key, table)
        for _ in range(100):
            assert torch.equal(einfall.einsum(equation, first, key, table), expected)


def test_arrays_of_cupy():
    cupy = pytest.importorskip("cupy")
    a, b = cupy.arange(12, dtype="float32").reshape(3, 4), cupy.arange(20, dtype="float32").reshape(5, 4).T
    result = einfall.einsum("ij,jk->ik", a, b)
    assert isinstance(result, cupy.ndarray)
    assert np.array_equal(cupy.asnumpy(result), cupy.asnumpy(a) @ cupy.asnumpy(b))
