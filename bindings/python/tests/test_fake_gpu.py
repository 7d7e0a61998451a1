"""What the host does for a GPU, counted by a driver that does nothing: no GPU takes part, and no CuPy."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent / "fake"
COMPILER = shutil.which("cc")
SORT = "invert_keys invert_count invert_scan invert_scatter invert_begins"
SUMS = "segments segment_parts segment_joins"


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    if COMPILER is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    folder = tmp_path_factory.mktemp("driver")
    for library in ("libcuda.so", "libnvrtc.so"):
        command = [COMPILER, "-shared", "-fPIC", "-w", "-o", folder / library, HERE / "cuda.c"]
        subprocess.run(command, check=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "EINFALL_NVRTC": str(folder),
        "EINFALL_CACHE": str(folder / "kernels"),
        "XDG_CACHE_HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, HERE / "run.py"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "call,launches",
    [
        ("plain", f"{SORT} invert_places {SUMS}"),
        ("first", f"{SORT} invert_places {SUMS}"),
        ("second", SUMS),
        ("row alone", f"{SORT} invert_places {SUMS}"),
        ("row alone again", f"invert_places {SUMS}"),
        ("other call", f"{SORT} invert_places {SUMS}"),
        ("both", SUMS),
        ("other stream", f"{SORT} invert_places {SUMS}"),
        ("other stream again", SUMS),
        ("captured", SUMS),
        ("captured unknown", f"{SORT} invert_places {SUMS}"),
        ("after the capture", SUMS),
        ("after a bad table", f"{SORT} invert_places {SUMS}"),
    ],
)
def test_a_table_is_inverted_once(counted, call, launches):
    assert counted[call] == launches


def test_a_bad_table_is_raised(counted):
    assert counted["raised"].startswith("a table of an earlier call on this GPU holds a value outside")


def test_scratch_memory_is_taken_once(counted):
    # What the two operands and the result take, call after call; and once, if at all, what the call needs beside them.
    taken = [int(one) for one in counted["allocations"].split()]
    assert sorted(taken)[: 3 * 3] == sorted([24000, 24000, 1200] * 3) and len(taken) <= 10
