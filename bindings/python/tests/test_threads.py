"""Many threads, forks, and what is imported."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import einfall


def test_threads_share_plans_and_agree():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        rng = np.random.default_rng(0)
        cases = []
        for n in range(2, 12):
            a, b = rng.integers(-5, 5, (n, 7)).astype(float), rng.integers(-5, 5, (7, n + 1)).astype(float)
            cases.append((a, b, a @ b))
        planned = einfall.plan("ij,jk->ik", cases[0][0], cases[0][1])
        wrong = []

        def work(seed):
            order = np.random.default_rng(seed)
            for at in order.integers(0, len(cases), 300):
                a, b, expected = cases[at]
                if not (einfall.einsum("ij,jk->ik", a, b) == expected).all():
                    wrong.append(at)
                if not (planned(*cases[0][:2]) == cases[0][2]).all():
                    wrong.append(-1)
                if seed == 0 and at == 0:
                    einfall.cache_clear()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
    finally:
        sys.setswitchinterval(interval)


def test_other_threads_run_meanwhile():
    a = np.ones((1200, 1200))
    einfall.einsum("ij,jk->ik", a, a)
    done, count = threading.Event(), 0

    def work():
        for _ in range(5):
            einfall.einsum("ij,jk->ik", a, a)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        count += 1
        time.sleep(0.001)
    thread.join()
    assert count > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_computes():
    # In an interpreter of its own: other libraries do not like to be forked.
    code = """
import os, numpy as np, einfall
a = np.ones((300, 300))
einfall.einsum("ij,jk->ik", a, a)
child = os.fork()
if child == 0:
    ok = (einfall.einsum("ij,jk->ik", a, a) == 300).all()
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_imported():
    code = """
import sys
before = set(sys.modules)
import einfall
for name in ("numpy", "torch", "jax"):
    assert name not in sys.modules, name
einfall.gradient("ij,jk->ik", 0)
einfall.explain("ij,jk->ik", (2, 3), (3, 4))
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_is_quick():
    code = "import time; start = time.perf_counter(); import einfall; print(time.perf_counter() - start)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    assert min(times) < 0.03


def test_memory_is_given_back():
    resource = pytest.importorskip("resource")
    torch = pytest.importorskip("torch")
    a, table = np.ones((50, 50)), np.array([3, 99])
    x = torch.ones(50, 50)
    planned = einfall.plan("ij,jk->ik", a, a)

    def calls():
        for _ in range(300):
            einfall.einsum("ij,jk->ik", a, a)
            einfall.einsum("ij->ji", a)
            einfall.einsum("ij,jk->ik", x, x)
            planned(a, a)
            for bad in (lambda: einfall.einsum("[i]j->ij", a, table), lambda: einfall.einsum("ij,jk", a)):
                with pytest.raises((IndexError, ValueError)):
                    bad()

    calls()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    references = sys.getrefcount(a), sys.getrefcount(x), sys.getrefcount(table)
    for _ in range(10):
        calls()
    assert (sys.getrefcount(a), sys.getrefcount(x), sys.getrefcount(table)) == references
    # 3000 leaked results of 20 kB would be 60 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
