"""NumPy's own tests of einsum, from the installed wheel, run on einfall."""

import numpy as np
import pytest
from numpy._core.tests import test_einsum as suite

import einfall

#: Tests that are left out, with the reason.
LEFT_OUT: dict[str, str] = {
    "test_subscript_range": "a label above 51 is no error: einfall takes any number of labels",
}


@pytest.fixture(autouse=True)
def routed(request, monkeypatch):
    name = request.node.originalname or request.node.name
    if name in LEFT_OUT:
        pytest.skip(LEFT_OUT[name])
    monkeypatch.setattr(np, "einsum", einfall.einsum)


class TestEinsum(suite.TestEinsum):
    pass


class TestEinsumPath(suite.TestEinsumPath):
    pass


test_overlap = suite.test_overlap
test_einsum_chunking_precision = suite.test_einsum_chunking_precision
