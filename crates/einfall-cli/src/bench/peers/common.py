"""Times NumPy, torch, opt_einsum and JAX on the problems of `einfall bench`.

This is one script of several files: common.py, keys.py and suite.py with the problems, session.py.

A request is one JSON object, and so is its reply; peers.rs documents them. As a program this reads them from standard
input, one a line; in an interpreter that is there already, `Session.answer` takes them, with arrays that are shared and
not read from files. Every peer is used as someone who knows it would: contiguous arrays, inference mode, no garbage
collection while timing. Selecting rows through the table is part of the work, so it happens inside of the timed call.

On a GPU arrays are copied there once, and calls are captured into a CUDA graph: what is timed is the GPU, not the host.
"""

import contextlib
import gc
import importlib
import importlib.metadata
import json
import math
import os
import queue
import sys
import threading
import time
import warnings

WARM_UPS = 2
# Seconds after which a call is slow enough to need no more warming up.
SLOW = 0.2
# Calls in a CUDA graph, and replays in a turn: more change nothing.
CALLS, REPLAYS = 20, 9
ITEM_SIZE = {"f16": 2, "bf16": 2, "i32": 4, "f32": 4, "i64": 8, "f64": 8, "c64": 8, "c128": 16}
TORCH_TYPE = {
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64",
    "c64": "complex64", "c128": "complex128", "i32": "int32", "i64": "int64",
}
NUMPY_TYPE = {"f16": "<f2", "f32": "<f4", "f64": "<f8", "c64": "<c8", "c128": "<c16", "i32": "<i4", "i64": "<i8"}

# Filled by `load_packages`.
PACKAGES, MISSING = {}, {}
# What `quit` does besides.
UNDO = []
np = torch = opt_einsum = None


def environment(threads):
    """Variables that libraries read once, when they are loaded; None is for those that must not be set."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Left set, these two make a current OpenBLAS use the kernels and blocks of another processor.
        "OPENBLAS_CORETYPE": None,
        "OPENBLAS_L2_SIZE": None,
        # Compile in the process itself, so that no idle workers stay around while we time.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # XLA takes it for the number of processors.
        "NPROC": str(threads),
    }


def set_environment(values):
    """Sets variables, and returns what they were."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


def load_packages():
    global np, torch, opt_einsum
    for name in ("numpy", "torch", "opt_einsum"):
        try:
            PACKAGES[name] = importlib.import_module(name)
        except Exception as error:  # a broken installation is as good as none
            MISSING[name] = f"{type(error).__name__}: {error}"
    np, torch, opt_einsum = (PACKAGES.get(name) for name in ("numpy", "torch", "opt_einsum"))


def limit_blas(threads):
    """Limits the BLAS of a NumPy that was loaded before us; gives what undoes it, or None where that cannot be done."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    return threadpool_limits(threads, user_api="blas").restore_original_limits


class Skip(Exception):
    """A peer that cannot take part, and why."""


def megabytes(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


class Problem:
    """The data of one setup and the peers that can work on it; each kind of problem says more."""

    peers = {}

    def __init__(self, request, lent=None, absent=None):
        """`lent` are buffers of arrays by role, instead of files; `absent` says why packages are."""
        self.lent = lent
        self.absent = absent or {}
        self.sizes = request["sizes"]
        self.dtype = request["dtype"]
        self.limit = request.get("memory_limit") or math.inf
        self.sample = request.get("sample", 0)
        self.files = request["files"]
        self.table_dtype = request.get("table_dtype") or "i32"
        self.device = request.get("device") or "cpu"
        self.on_gpu = self.device != "cpu"
        if self.on_gpu:
            if torch is None or not torch.cuda.is_available():
                raise Skip(f"there is no torch that knows {self.device}")
            torch.cuda.empty_cache()
            self.limit = torch.cuda.mem_get_info(self.device)[0] // 2
        self.graphs = {}
        if self.dtype not in ITEM_SIZE:
            raise Skip(f"peers are not timed in {self.dtype}")
        if torch is not None:
            torch.set_num_threads(request["threads"])
            torch.set_float32_matmul_precision("highest")
        self.item = ITEM_SIZE[self.dtype]
        self.ready = {}
        self.offered, self.skipped = [], {}

    def offer(self):
        for name in self.peers:
            reason = self.why_not(name)
            if reason is None:
                self.offered.append(name)
            elif reason != "":
                self.skipped[name] = reason

    def why_not(self, name):
        """None if the peer can run, "" if it does not apply to this problem, else the reason."""
        raise NotImplementedError

    def missing(self, packages):
        for package in packages:
            if package not in PACKAGES:
                return f"{package} is not installed"
            if package in self.absent:
                return self.absent[package]
        return None

    def build(self, name):
        """The call to time."""
        raise NotImplementedError

    def load_torch(self, role, shape, dtype):
        kind = getattr(torch, TORCH_TYPE[dtype])
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=kind, device=self.device)
        if self.lent is not None:
            with warnings.catch_warnings():
                # It may not be written, which torch has no word for; no peer does.
                warnings.simplefilter("ignore", UserWarning)
                array = torch.frombuffer(self.lent[role], dtype=kind)
            return array.reshape(shape).to(self.device)
        mapped = torch.from_file(self.files[role], shared=False, size=count, dtype=kind)
        # A copy: pages of a file are not what an expert computes on.
        return mapped.reshape(shape).to(self.device, copy=True)

    def load_numpy(self, role, shape, dtype):
        kind = NUMPY_TYPE[dtype]
        if math.prod(shape) == 0:
            return np.empty(shape, kind)
        if self.lent is not None:
            return np.frombuffer(self.lent[role], dtype=kind).reshape(shape)
        return np.array(np.memmap(self.files[role], dtype=kind, mode="r", shape=tuple(shape)))

    def prepare(self, name):
        """Builds and warms up a peer; the first call compiles where there is something to compile."""
        if name in self.ready:
            return self.ready[name]
        if name not in self.offered:
            raise Skip(self.skipped.get(name, f"no peer {name!r} for this problem"))
        call = self.build(name)
        compile_s = None
        start = time.perf_counter_ns()
        result = call()
        self.wait()
        first = (time.perf_counter_ns() - start) * 1e-9
        compiled = self.peers[name].compiled
        warm_ups = WARM_UPS if first < SLOW else int(compiled)
        start = time.perf_counter_ns()
        for _ in range(warm_ups):
            result = call()
        self.wait()
        if compiled:
            compile_s = max(0.0, first - (time.perf_counter_ns() - start) * 1e-9 / warm_ups)
        self.ready[name] = call, compile_s, self.summary(result)
        return self.ready[name]

    def wait(self):
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def replay(self, name, repeats, budget):
        """Seconds a call in each of some replays of a CUDA graph, about as long as the budget says."""
        call = self.ready[name][0]
        repeats = max(1, min(repeats, REPLAYS))
        with torch.cuda.device(self.device):
            if not self.peers[name].graph:
                return [self.between_events(call, 1) for _ in range(repeats)]
            if name not in self.graphs:
                # Libraries take their workspaces in the first call on a stream, which must not be the captured one.
                with torch.cuda.stream(torch.cuda.Stream()):
                    call()
                    self.wait()
                    start = time.perf_counter_ns()
                    call()
                    self.wait()
                    once = (time.perf_counter_ns() - start) * 1e-9
                calls = int(max(1, min(CALLS, budget / repeats / once)))
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    for _ in range(calls):
                        call()
                graph.replay()
                self.wait()
                self.graphs[name] = graph, calls
            graph, calls = self.graphs[name]
            return [self.between_events(graph.replay, calls) for _ in range(repeats)]

    def between_events(self, run, calls):
        """Seconds of one of the calls that `run` makes of the GPU."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) * 1e-3 / calls

    def summary(self, result):
        shape = list(result.shape)
        if torch is not None and isinstance(result, torch.Tensor):
            result = torch.view_as_real(result.resolve_conj()) if result.is_complex() else result
            flat = result.detach().reshape(-1).to(torch.float64).cpu().numpy()
        else:
            # Complex numbers are two real ones, as for torch.
            flat = np.ascontiguousarray(result).reshape(-1)
            flat = flat.view(flat.real.dtype) if np.iscomplexobj(flat) else flat
            flat = flat.astype(np.float64)
        total = flat.size
        # Knuth's multiplier spreads the positions over the array.
        positions = [i * 2654435761 % total for i in range(min(self.sample, total))]
        return {
            "shape": shape,
            "sum": finite(flat.sum()),
            "abs_sum": finite(abs(flat).sum()),
            "positions": positions,
            "sample": [finite(flat[position]) for position in positions],
        }


def nothing(_problem):
    return 0


def finite(value):
    value = float(value)
    return value if math.isfinite(value) else None
