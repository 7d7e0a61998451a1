"""The package as a whole: documentation, types, examples, the command."""

import doctest
import gc
import json
import os
import pathlib
import runpy
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

import einfall

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["module", *einfall.__all__])
def test_examples_in_docstrings(name):
    thing = einfall if name == "module" else getattr(einfall, name)
    names = {"einfall": einfall, "np": np}
    test = doctest.DocTestParser().get_doctest(thing.__doc__ or "", names, name, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test)
    assert runner.failures == 0
    assert thing.__doc__, f"{name} is not documented"


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_worked_examples(script, capsys):
    pytest.importorskip("torch")
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "einfall", *arguments], capture_output=True, text=True, timeout=300)


def test_the_command(tmp_path):
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    names = [str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy")]
    ran = command("run", "ij,jk->ik", *names[:2], "-o", names[2])
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_array_equal(np.load(names[2]), a @ b)
    assert "gemm" in command("explain", "ij,jk->ik", "-s", "i=64,j=64,k=64").stdout
    wrong = command("explain", "ij;jk")
    assert wrong.returncode != 0 and "error" in wrong.stderr
    assert command("--version").stdout.split()[1] == einfall.__version__


def in_json(text):
    """Rows of a run, without what differs from one to the next."""
    measured = {"min_s", "median_s", "repeats", "compile_s", "peak_bytes", "floor_s", "floor_kind"}
    rows = [{name: row[name] for name in row if name not in measured} for row in json.loads(text)["rows"]]
    return sorted(rows, key=lambda row: (row["case"], row["k"], row["engine"])), set(json.loads(text)["rows"][0])


def test_peers_are_timed_in_this_interpreter_with_the_same_rows(tmp_path, monkeypatch):
    # A peer that says where it was imported.
    (tmp_path / "stub").mkdir()
    stub = f"import os\nopen({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n')\nraise ImportError('a stub')"
    (tmp_path / "stub" / "opt_einsum.py").write_text(stub)
    paths = [str(tmp_path / "stub"), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    words = ["bench", "keys", "--quick", "--peers", "--json", "--k", "3", "--op", "scores", "--out", str(tmp_path)]
    rows = []
    for more in ([], ["--python", sys.executable]):
        (tmp_path / "pids").unlink(missing_ok=True)
        ran = subprocess.Popen([sys.executable, "-m", "einfall", *words, *more], stdout=subprocess.PIPE, text=True)
        text = ran.communicate(timeout=300)[0]
        assert ran.returncode == 0
        pids = set((tmp_path / "pids").read_text().split())
        # torch's compiler starts processes of its own.
        assert (str(ran.pid) in pids) == (not more), (pids, ran.pid)
        assert "without opt_einsum: ImportError: a stub" in json.loads(text)["notes"]
        rows.append(in_json(text))
    assert rows[0] == rows[1]
    assert {"einfall", "numpy.einsum"} <= {row["engine"] for row in rows[0][0]}


def test_peers_read_the_arrays_where_they_lie():
    einfall.bench_keys(quick=True, peers=True, k=[3], op="values", case="shared")
    peers = sys.modules["einfall._peers"]
    sizes = dict(b=2, h=3, q=5, n=11, k=4, d=7)
    shapes = {"separate-stored": (2, 3, 5, 4, 7), "separate-expanded": (2, 3, 4, 7), "shared": (2, 3, 4, 7),
              "separate-lookup": (2, 3, 11, 7), "all": (2, 3, 11, 7)}
    request = {"op": "scores", "sizes": sizes, "dtype": "f32", "table_dtype": "i64", "files": {}, "threads": 1}
    for case, shape in shapes.items():
        lent = {"query": np.ones((2, 3, 5, 7), "f"), "keys": np.ones(shape, "f"), "table": np.zeros((2, 3, 5, 4), int)}
        problem = peers.KeysProblem({**request, "case": case}, lent)
        for library in ("numpy", "torch") if peers.torch else ("numpy",):
            data = problem.data(library)
            assert ("table" in data) == (case == "separate-lookup")
            for role, array in data.items():
                assert np.shares_memory(np.asarray(array), lent[role]), (case, role, library)


def test_a_benchmark_leaves_the_interpreter_as_it_was():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    names = ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "TORCHINDUCTOR_COMPILE_THREADS")
    environment = [os.environ.get(name) for name in names]
    try:
        report = einfall.bench_keys(quick=True, peers=True, k=[3], op="scores", case="all", threads=1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert [os.environ.get(name) for name in names] == environment
    assert gc.isenabled() and not torch.is_inference_mode_enabled()
    assert "torch.matmul" in {row["engine"] for row in report.rows}


def test_benchmarks_are_reports():
    report = einfall.bench_keys(quick=True, k=[3, 5], op=["scores", "values"], case="shared", sizes={"q": 7})
    assert [(row["op"], row["k"]) for row in report.rows] == [("scores", 3), ("scores", 5), ("values", 3), ("values", 5)]
    assert all(row["engine"] == "einfall" and row["sizes"]["q"] == 7 and row["min_s"] > 0 for row in report.rows)
    assert report.rows == report.to_dict()["rows"] and report.to_dict()["settings"]["command"].startswith("einfall bench")
    assert "scores / shared" in str(report) and str(report) == repr(report)
    page = report._repr_html_()
    assert page.count("<svg ") == 2 and page.count("<tr>") == 5 and page.count("<td>einfall</td>") == 4
    xml.etree.ElementTree.fromstring(f"<div>{page}</div>")
    for wrong, options in (("floating-point", {"dtype": "i32"}), ("`k`|--k", {"k": [0]}), ("walk", {"op": "walk"})):
        with pytest.raises(ValueError, match=wrong):
            einfall.bench_keys(quick=True, **options)


def test_suites_are_reports():
    report = einfall.bench_dense(["matmul", "int-matmul"], quick=True, peers=True, no_compile=True)
    ours = [row for row in report.rows if row["engine"] == "einfall"]
    assert [row["name"] for row in ours] == ["matmul", "int-matmul"] and all(row["ok"] for row in report.rows)
    assert all(row["predicted_s"] > 0 and row["floor_s"] > 0 for row in ours)
    assert "numpy.einsum" in {row["engine"] for row in report.rows} and "Summary: 2 of 2 cases right" in str(report)
    page = report._repr_html_()
    assert page.count("<svg ") == 1 and page.count("<tr>") == 1 + len(report.rows)
    xml.etree.ElementTree.fromstring(f"<div>{page}</div>")
    lookups = einfall.bench_lookups(["thread/k10", "moe"], quick=True, peers=True, no_compile=True)
    assert {row["name"] for row in lookups.rows} == {"thread/k10", "moe"} and all(row["ok"] for row in lookups.rows)
    with pytest.raises(ValueError, match="did you mean `matmul`"):
        einfall.bench_dense("matmull", quick=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_benchmark_can_be_interrupted():
    code = """
import os, signal, threading, time
import einfall
signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells have it ignored
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.perf_counter()
try:
    einfall.bench_keys(budget=1.0)
except KeyboardInterrupt:
    print(time.perf_counter() - start)
"""
    seconds = float(subprocess.check_output([sys.executable, "-c", code], timeout=120))
    assert 0.4 < seconds < 60


def test_reports():
    report = einfall.explain("ab,bc,cd->ad", (20, 3), (3, 20), (20, 5), dtype="float64")
    values = report.to_dict()
    assert values["shape"] == (20, 5) and values["dtype"] == "f64" and len(values["steps"]) == 2
    assert all(step["kernel"] in [one["kernel"] for one in step["candidates"]] for step in values["steps"])
    assert "workspace" in str(report) and repr(report) == str(report)
    assert report._repr_html_().startswith("<table>") and "gemm" in report._repr_html_()
    path, report = einfall.contract_path("ab,bc,cd->ad", (20, 3), (3, 20), (20, 5))
    arrays = [np.arange(60.0).reshape(20, 3), np.arange(60.0).reshape(3, 20), np.arange(100.0).reshape(20, 5)]
    found = einfall.einsum("ab,bc,cd->ad", *arrays, optimize=path)
    np.testing.assert_array_equal(found, arrays[0] @ arrays[1] @ arrays[2])
    assert path == [tuple(step) for step in np.einsum_path("ab,bc,cd->ad", *arrays, optimize="optimal")[0][1:]]


def test_types_are_checked():
    # Their types are part of what is checked.
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    pytest.importorskip("mypy")
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(ROOT / "python/einfall")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout
