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


@pytest.mark.skipif(getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has a lock, or was told to")
def test_the_lock_stays_off():
    code = "import sys, numpy, einfall; assert not sys._is_gil_enabled()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_threads_use_everything_at_once():
    rng = np.random.default_rng(1)
    a, b = rng.integers(-5, 5, (6, 7)).astype(float), rng.integers(-5, 5, (7, 5)).astype(float)
    table = rng.integers(-1, 6, 9)
    picked = np.where(table[:, None] < 0, 0, a[table])
    shared = einfall.plan("ij,jk->ik", a, b)
    # One plan for strides of four kinds, which push each other out of it.
    kinds = [(x, y) for x in (a, np.asfortranarray(a)) for y in (b, np.asfortranarray(b))]
    count, start, wrong = 8, threading.Barrier(8), []

    def check(what, found, expected):
        if found.shape != expected.shape or not (found == expected).all():
            wrong.append(what)

    def work(seed):
        out = np.empty((6, 5))
        start.wait()
        for step in range(150):
            x, y = kinds[(seed + step) % 4]
            check("plan", shared(x, y), a @ b)
            shared(x, y, out=out)
            check("out", out, a @ b)
            check("einsum", einfall.einsum(x, [0, 1], y, [1, 2], [2, 0]), (a @ b).T)
            check("lookup", einfall.einsum("[p]j->pj", x, table, bounds="skip"), picked)
            try:
                einfall.einsum("[p]j->pj", x, table)
                wrong.append("no error")
            except einfall.TableError as error:
                if error.value != -1:
                    wrong.append("another error")
            own = einfall.plan("ij,jk->ik", (6, 7), (7, 5), dtype="float64", sizes={})
            check("own", own(x, y), a @ b)
            if einfall.explain("ij,jk->ik", x, y).to_dict()["shape"] != (6, 5) or "gone" in repr(shared):
                wrong.append("report")
            if step % 50 == seed:
                einfall.cache_clear()
            if einfall.cache_info().currsize > einfall.cache_info().maxsize:
                wrong.append("too many plans")

    def work_and_tell(seed):
        try:
            work(seed)
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=work_and_tell, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    references = sys.getrefcount(table)
    einfall.einsum("[p]j->pj", a, table, bounds="skip")
    assert sys.getrefcount(table) == references


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


def test_the_call_that_came_last_is_found_only_where_it_fits():
    equation = "".join(["ij,", "jk->ik"])  # an object of its own
    rng = np.random.default_rng(2)
    references = sys.getrefcount(equation)
    einfall.cache_clear()
    shapes = [((2, 3), (3, 5)), ((7, 3), (3, 5)), ((2, 3), (3, 5))]
    for dtype in (np.float64, np.int32):
        for left, right in shapes:
            a, b = (rng.integers(-9, 9, shape).astype(dtype) for shape in (left, right))
            for x, y in ((a, b), (a[::-1], b), (np.asfortranarray(a), np.asfortranarray(b))):
                found = einfall.einsum(equation, x, y)
                np.testing.assert_array_equal(found, x @ y)
                assert found.dtype == dtype
            # Options are another call.
            assert einfall.einsum(equation, a, b, dtype="complex128").dtype == np.complex128
            swapped = np.empty((right[1], left[0]), dtype).T
            assert einfall.einsum(equation, a, b, out=swapped) is swapped
    a, b = np.ones((2, 3)), np.ones((3, 5))
    einfall.cache_clear()
    for _ in range(4):
        einfall.einsum(equation, a, b)
    assert einfall.cache_info()[:2] == (3, 1)
    einfall.cache_clear()
    assert sys.getrefcount(equation) == references
    with pytest.raises(ValueError):
        einfall.einsum(equation, a, b.T)


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
