"""What torch does with an operator: derivatives, transformations, compilation, autocast."""

import random
import subprocess
import sys

import numpy as np
import pytest
from problems import random_problem

torch = pytest.importorskip("torch")
import torch.autograd.forward_ad as forward_ad  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

import einfall  # noqa: E402
import einfall.torch  # noqa: E402


def differentiable(seed):
    """A random call as a function of its operands, and operands for it."""
    rng = random.Random(1000 + seed)
    problem = random_problem(rng, empty=False)
    tables = [one if isinstance(one, int) else torch.from_numpy(one) for one in problem.arguments]

    def call(*operands):
        arguments = [operands[one] if isinstance(one, int) else one for one in tables]
        return einfall.einsum(problem.equation, *arguments, sizes=problem.sizes, bounds=problem.bounds)

    generator = torch.Generator().manual_seed(seed)
    kind = torch.complex128 if seed % 10 == 9 else torch.float64
    operands = [torch.randn(shape, generator=generator, dtype=kind).requires_grad_() for shape in problem.shapes]
    return problem, call, operands


@pytest.mark.parametrize("seed", range(200))
def test_gradients_of_random_equations(seed):
    problem, call, operands = differentiable(seed)
    fast = sum(operand.numel() for operand in operands) > 60
    assert gradcheck(call, operands, fast_mode=fast), problem.equation
    assert gradgradcheck(call, operands, fast_mode=True), problem.equation


@pytest.mark.parametrize("seed", range(40))
def test_transformations_of_random_equations(seed):
    problem, call, operands = differentiable(seed)
    operands = [operand.detach() for operand in operands]
    # vmap over one operand, or over all.
    for which in ([0], list(range(len(operands)))):
        batch = [torch.stack([operand, 2 * operand, -operand], -1) if at in which else operand
                 for at, operand in enumerate(operands)]
        dims = tuple(-1 if at in which else None for at in range(len(operands)))
        found = torch.func.vmap(call, in_dims=dims)(*batch)
        for row in range(3):
            one = [operand[..., row] if at in which else operand for at, operand in enumerate(batch)]
            torch.testing.assert_close(found[row], call(*one))
    # Reverse and forward mode agree with each other.
    if operands[0].is_complex():
        return
    tangents = tuple(torch.randn_like(operand) for operand in operands)
    value, derivative = torch.func.jvp(call, tuple(operands), tangents)
    torch.testing.assert_close(value, call(*operands))
    weights = torch.randn_like(value)
    _, pull = torch.func.vjp(call, *operands)
    pulled = sum((grad * tangent).sum() for grad, tangent in zip(pull(weights), tangents))
    torch.testing.assert_close((weights * derivative).sum(), pulled)


def attention(q, k, v, table):
    scores = einfall.einsum("bhqd,bh[bhqk]d->bhqk", q, k, table)
    return einfall.einsum("bhqk,bh[bhqk]d->bhqd", scores.softmax(-1), v, table)


def attention_arguments(**options):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 5, generator=generator, **options).requires_grad_() for n in (7, 11, 11))
    return q, k, v, torch.randint(0, 11, (2, 3, 7, 4), generator=generator)


def attention_in_torch(q, k, v, table):
    rows = table[..., None].expand(*table.shape, 5)
    keys, values = (x[:, :, None].expand(2, 3, 7, 11, 5).gather(3, rows) for x in (k, v))
    weights = torch.einsum("bhqd,bhqkd->bhqk", q, keys).softmax(-1)
    return torch.einsum("bhqk,bhqkd->bhqd", weights, values)


def test_attention_is_torch_s():
    arguments = attention_arguments(dtype=torch.float64)
    found, expected = attention(*arguments), attention_in_torch(*arguments)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.sum(), arguments[:3]), torch.autograd.grad(expected.sum(), arguments[:3])
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic):
    arguments = attention_arguments()
    compiled = torch.compile(attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = compiled(*arguments)
    torch.testing.assert_close(found, attention(*arguments))
    grads = torch.autograd.grad(found.square().sum(), arguments[:3])
    expected = torch.autograd.grad(attention(*arguments).square().sum(), arguments[:3])
    for one, other in zip(grads, expected):
        torch.testing.assert_close(one, other)


PLANS = [
    ("ij,jk->ik", {}),
    ("i[jk]l,jk->il", {"bounds": "skip"}),
    ("[q+w-1]d->qd", {"sizes": {"q": 5, "w": 3}}),
    ("ij,jk->ik", {"dtype": "float64", "optimize": "greedy"}),
]


def plan_arguments(equation):
    generator = torch.Generator().manual_seed(3)
    shapes = {"ij,jk->ik": [(5, 7), (7, 3)], "i[jk]l,jk->il": [(5, 7, 2), (3, 4)], "[q+w-1]d->qd": [(5, 2)]}[equation]
    operands = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    if "[jk]" in equation:
        operands.insert(1, torch.randint(-1, 7, (3, 4), generator=generator))
    return operands


@pytest.mark.parametrize("inside", [False, True], ids=["made before", "made inside"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("equation", "options"), PLANS)
def test_plans_compile_without_graph_breaks(equation, options, backend, inside):
    torch._dynamo.reset()
    operands = plan_arguments(equation)
    shapes = [tuple(operand.shape) for operand in operands]
    planned = einfall.plan(equation, *shapes, **options)

    def call(*operands):
        product = einfall.plan(equation, *shapes, **options) if inside else planned
        return product(*[one * 2 if one.is_floating_point() else one for one in operands]).sin()

    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    found = torch.compile(call, fullgraph=True, backend=record)(*operands)
    assert len(graphs) == 1
    expected = call(*operands)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.dtype == expected.dtype
    needed = [one for one in operands if one.requires_grad]
    for one, other in zip(torch.autograd.grad(found.sum(), needed), torch.autograd.grad(expected.sum(), needed)):
        torch.testing.assert_close(one, other)


def test_plans_compile_with_inductor_and_keep_their_shapes():
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    planned = einfall.plan("ij,jk->ik", a, b)
    compiled = torch.compile(lambda a, b: planned(a + 1, b), fullgraph=True)
    torch.testing.assert_close(compiled(a, b), (a + 1) @ b)
    # Graphs of two plans are not taken for the same one.
    other = einfall.plan("ij,jk->ki", a, b)
    swapped = torch.compile(lambda a, b: other(a + 1, b), fullgraph=True)
    torch.testing.assert_close(swapped(a, b), ((a + 1) @ b).T)
    # In every way that a call can take.
    for call in (planned, torch.compile(planned.__call__, backend="eager"), compiled):
        for operands in ((a[:4], b), (a[:4].requires_grad_(), b)):
            with pytest.raises(Exception, match="the plan was made for"):
                call(*operands)


def test_plans_made_before_torch_was_imported_compile():
    code = """
import einfall
product = einfall.plan("ij,jk->ik", (2, 3), (3, 4))
gone = einfall.plan("ij,jk->ik", (2, 3), (3, 4))
del gone
import torch
a, b = torch.randn(2, 3), torch.randn(3, 4)
found = torch.compile(lambda a, b: product(a, b) * 2, fullgraph=True, backend="aot_eager")(a, b)
torch.testing.assert_close(found, 2 * (a @ b))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_graph_of_a_plan_holds_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    a, b = torch.randn(5, 7), torch.randn(7, 3)
    graph = make_fx(einfall.plan("ij,jk->ik", a, b, optimize="greedy", bounds="skip"))(a, b)
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [torch.ops.einfall.einsum.default]
    assert calls[0].args[0] == "ij,jk->ik" and calls[0].args[4:6] == ("skip", '"greedy"')
    arguments = [[a, b] if position == 1 else one for position, one in enumerate(calls[0].args)]
    torch.library.opcheck(torch.ops.einfall.einsum.default, tuple(arguments))


def test_compile_takes_the_sublist_form_and_sizes():
    def call(x):
        summed = einfall.einsum(x, [0, 1], x, [0, 2], [1, 2])
        return summed, einfall.einsum("[q+w-1]d->qd", x, sizes={"q": 4, "w": 3})

    x = torch.randn(4, 3)
    found = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    for one, other in zip(found, call(x)):
        torch.testing.assert_close(one, other)


def test_compile_with_inductor():
    arguments = [one.detach() for one in attention_arguments()]
    torch.testing.assert_close(torch.compile(attention, fullgraph=True)(*arguments), attention(*arguments))


def test_export():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, table):
            return attention(q, k, v, table)

    arguments = tuple(one.detach() for one in attention_arguments())
    program = torch.export.export(Attention(), arguments)
    torch.testing.assert_close(program.module()(*arguments), attention(*arguments))


@pytest.mark.parametrize(
    ("equation", "names", "lengths"),
    [("bhqd,bh[bhqk]d->bhqk", [], []), ("bhqd,bh[q+w-1]d->bhqw", ["w"], [3]), ("...qd,...kd->...qk", [], [])],
)
def test_opcheck(equation, names, lengths):
    q, k, _, table = attention_arguments()
    operands = [q, k, table] if "[bhqk]" in equation else [q, k]
    torch.library.opcheck(
        torch.ops.einfall.einsum.default, (equation, operands, names, lengths, "error", "", None, None, None)
    )


def test_autocast_computes_in_the_narrow_type():
    a, b = torch.randn(5, 5), torch.randn(5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = einfall.einsum("ij,jk->ik", a, b)
        assert found.dtype == torch.einsum("ij,jk->ik", a, b).dtype == torch.bfloat16
        picked = einfall.einsum("[i]j->ij", a, torch.tensor([0, 4]))
        assert picked.dtype == torch.bfloat16
        assert einfall.einsum("ij->i", a.double()).dtype == torch.float64


def test_parameters_and_no_grad():
    weight = torch.nn.Parameter(torch.randn(3, 3))
    assert einfall.einsum("ij,jk->ik", weight, weight).requires_grad
    with torch.no_grad():
        assert not einfall.einsum("ij,jk->ik", weight, weight).requires_grad
    with torch.inference_mode():
        assert einfall.einsum("ij,jk->ik", weight, weight).is_inference()


def test_broadcast_operands_get_their_own_gradient():
    a = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    for call in (
        lambda a, b, c: einfall.einsum("ij,ij,nij->n", a, b, c),
        lambda a, b, c: einfall.einsum("...,...,...->...", a, b, c),
    ):
        assert gradcheck(call, (a, b, c)) and gradgradcheck(call, (a, b, c))


def test_mixed_types_get_gradients_of_their_own_type():
    a, b = torch.randn(3, requires_grad=True), torch.randn(3, dtype=torch.complex128, requires_grad=True)
    einfall.einsum("i,i->", a, b).abs().backward()
    assert a.grad.dtype == torch.float32 and b.grad.dtype == torch.complex128
    expected = torch.autograd.grad((a.to(torch.complex128) * b).sum().abs(), [a, b])
    torch.testing.assert_close(a.grad, expected[0])
    torch.testing.assert_close(b.grad, expected[1])


def test_forward_mode():
    a, t = torch.randn(3, 3), torch.randn(3, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a, t)
        _, tangent = forward_ad.unpack_dual(einfall.einsum("ij,jk->ik", dual, dual))
    torch.testing.assert_close(tangent, a @ t + t @ a)


def test_fake_tensors_have_the_shape_of_real_ones():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for seed in range(60):
        problem, call, operands = differentiable(seed)
        expected = call(*operands)
        arguments = [torch.as_tensor(one).detach() for one in problem.fill(operands)]
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(one) for one in arguments]
            found = einfall.einsum(problem.equation, *fakes, sizes=problem.sizes, bounds=problem.bounds)
        assert found.shape == expected.shape and found.dtype == expected.dtype and found.stride() == expected.stride()


def test_patch_routes_torch_s_einsum_and_gives_it_back():
    original = torch.einsum
    a = torch.randn(3, 4)
    einfall.cache_clear()
    with einfall.torch.patch():
        found = torch.einsum("ij,kj->ik", a, a)
        listed = torch.einsum("ij,kj->ik", [a, a])
        lists = torch.einsum(a, [0, 1], a, [2, 1], [0, 2])
    assert torch.einsum is original
    assert einfall.cache_info().hits + einfall.cache_info().misses == 3
    for one in (found, listed, lists):
        torch.testing.assert_close(one, a @ a.T)


def test_modes_and_subclasses_see_the_operator():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    ones = torch.ones(2, 2)
    with Recorder():
        einfall.einsum("ij->i", ones)
    assert seen == ["einfall.einsum.default"]


def test_out_of_range_values_raise_in_every_way():
    x, table = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 4])
    for call in (einfall.einsum, torch.compile(einfall.einsum, backend="aot_eager")):
        with pytest.raises(IndexError):
            call("[i]j->ij", x, table)


def test_numpy_is_not_needed_for_results():
    found = einfall.einsum("i->", torch.arange(5))
    assert found.shape == () and found.item() == 10 and found.dtype == torch.int64
    assert np.isscalar(found.item())


def test_tables_stand_for_their_tensors():
    values, dense = torch.randn(20, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    column, row = torch.randint(0, 5, (20,)), torch.randint(0, 4, (20,))
    tables = einfall.Table(column), einfall.Table(row)

    def scattered(values, dense, column, row):
        return einfall.einsum("e,[e]d->[e]d", values, dense, column, row, sizes={"[e]": 4})

    expected = scattered(values, dense, column, row)
    assert torch.equal(scattered(values, dense, *tables), expected)
    compiled = torch.compile(scattered, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values, dense, *tables), expected)
    grads = [torch.autograd.grad(scattered(values, dense, *given).sum(), (values, dense)) for given in ((column, row), tables)]
    assert all(torch.equal(one, other) for one, other in zip(*grads))
    plan = einfall.plan("e,[e]d->[e]d", values.detach(), dense.detach(), *tables, sizes={"[e]": 4})
    assert torch.equal(plan(values.detach(), dense.detach(), *tables), expected)


def test_inverses_hang_on_tensors_behind_the_dispatcher(monkeypatch):
    import einfall.torch as ours

    class Watched:
        found = []

        def __getattr__(self, name):
            return getattr(compiled, name)

        def _torch_kernel(self, equation, operands, *rest):
            self.found.append([getattr(operand, "_einfall_kept", None) for operand in operands])
            return compiled._torch_kernel(equation, operands, *rest)

    compiled = ours._einfall
    monkeypatch.setattr(ours, "_einfall", Watched())
    dense = torch.randn(5, 3, requires_grad=True)
    table = einfall.Table(torch.randint(0, 5, (4,)))
    einfall.einsum("[e]d->ed", dense, table).sum().backward()
    assert Watched.found == [[None, table._kept], [None, table._kept]]
