"""The samples on which torch tests its own einsum, from the installed wheel, with einfall in its place."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

import einfall.torch  # noqa: E402

EINSUM = next(op for op in op_db if op.name == "einsum")
TYPES = [torch.float64, torch.float32, torch.complex128, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_samples(dtype):
    count = 0
    for sample in EINSUM.sample_inputs("cpu", dtype, requires_grad=False):
        expected = torch.einsum(*sample.args, sample.input) if isinstance(sample.input, list) else None
        with einfall.torch.patch():
            found = torch.einsum(*sample.args, sample.input)
        torch.testing.assert_close(found, expected)
        count += 1
    assert count >= 8


def test_gradients_of_samples():
    for sample in EINSUM.sample_inputs("cpu", torch.float64, requires_grad=True):
        operands = list(sample.input)
        equation = sample.args[0]
        assert torch.autograd.gradcheck(lambda *x: einfall.einsum(equation, *x), operands)
        assert torch.autograd.gradgradcheck(lambda *x: einfall.einsum(equation, *x), operands)
