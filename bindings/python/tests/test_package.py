"""The package as a whole: documentation, types, examples, the command."""

import doctest
import pathlib
import runpy
import subprocess
import sys

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


def test_the_benchmark_finds_the_peers_of_this_python(tmp_path):
    ran = command("bench", "keys", "--quick", "--peers", "--k", "3", "--op", "scores", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert "torch" in (tmp_path / "keys.json").read_text()


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
