"""opt_einsum's own tests, from the installed wheel, with einfall in NumPy's place, and einfall as a backend by name."""

import numpy as np
import pytest

opt_einsum = pytest.importorskip("opt_einsum")
from opt_einsum.backends import dispatch  # noqa: E402
from opt_einsum.tests.test_contract import *  # noqa: E402, F403
from opt_einsum.tests.test_edge_cases import *  # noqa: E402, F403
from opt_einsum.tests.test_input import *  # noqa: E402, F403
from opt_einsum.tests.test_sharing import *  # noqa: E402, F403

import einfall  # noqa: E402

#: Tests that are left out, with the reason.
LEFT_OUT: dict[str, str] = {}


@pytest.fixture(autouse=True)
def routed(request, monkeypatch):
    name = getattr(request.node, "originalname", None) or request.node.name
    if name in LEFT_OUT:
        pytest.skip(LEFT_OUT[name])
    for function in ("einsum", "tensordot", "transpose"):
        monkeypatch.setitem(dispatch._cached_funcs, (function, "numpy"), getattr(einfall, function))


def test_einfall_is_a_backend_by_name():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-3, 4, shape).astype(float) for shape in [(2, 3), (3, 4), (4, 5), (5, 2)]]
    einfall.cache_clear()
    found = opt_einsum.contract("ab,bc,cd,de->ae", *arrays, backend="einfall")
    np.testing.assert_array_equal(found, np.linalg.multi_dot(arrays))
    assert sum(einfall.cache_info()[:2]) >= 3
    expression = opt_einsum.contract_expression("ab,bc->ca", (2, 3), (3, 4))
    np.testing.assert_array_equal(expression(*arrays[:2], backend="einfall"), (arrays[0] @ arrays[1]).T)


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_the_backend_takes_tensors(kind):
    library = pytest.importorskip(kind)
    ones = (library.numpy if kind == "jax" else library).ones
    found = opt_einsum.contract("ab,bc,cd->ad", ones((2, 3)), ones((3, 4)), ones((4, 2)), backend="einfall")
    np.testing.assert_array_equal(np.asarray(found), np.full((2, 2), 12.0))


def test_trees_of_cotengra_run():
    cotengra = pytest.importorskip("cotengra")
    inputs, output, shapes, sizes = cotengra.utils.rand_equation(10, 3, n_out=2, seed=1, d_max=3)
    arrays = [np.random.default_rng(at).integers(-2, 3, shape).astype(float) for at, shape in enumerate(shapes)]
    tree = cotengra.array_contract_tree(inputs, output, size_dict=sizes, optimize="greedy")
    expected = tree.contract(arrays)
    ours = (einfall.einsum, einfall.tensordot)
    np.testing.assert_array_equal(tree.contract(arrays, implementation=ours), expected)
    np.testing.assert_array_equal(tree.slice(target_slices=4).contract(arrays, implementation=ours), expected)
    equation = ",".join("".join(term) for term in inputs) + "->" + "".join(output)
    np.testing.assert_array_equal(einfall.einsum(equation, *arrays, optimize=tree.get_path()), expected)
