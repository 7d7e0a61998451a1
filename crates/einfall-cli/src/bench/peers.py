"""Times NumPy, torch and opt_einsum on the problems of `einfall bench keys`.

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
# Calls in a CUDA graph, and replays in a turn: more change nothing.
CALLS, REPLAYS = 20, 9
ITEM_SIZE = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}

EQUATIONS = {
    # (operation, whether a query has its own keys): the einsum
    ("scores", True): "bhqd,bhqkd->bhqk",
    ("scores", False): "bhqd,bhkd->bhqk",
    ("values", True): "bhqk,bhqkd->bhqd",
    ("values", False): "bhqk,bhkd->bhqd",
}


# Filled by `load_packages`.
PACKAGES, MISSING = {}, {}
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
    """The data of one setup and the peers that can work on it."""

    def __init__(self, request, lent=None, absent=None):
        """`lent` are buffers of the case's own arrays by role, instead of files; `absent` says why packages are."""
        self.lent = lent
        self.absent = absent or {}
        self.op = request["op"]
        self.case = request["case"]
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
        b, h, q, n, k, d = (self.sizes[label] for label in "bhqnkd")
        if self.case == "all":
            k = n
        self.item = ITEM_SIZE[self.dtype]
        # Bytes of keys of one's own for every query: what a peer that materialises them has to hold.
        self.whole = b * h * q * k * d * self.item
        self.inputs = (b * h * (q * d + n * d * (2 if self.op == "attention" else 1)) + b * h * q * k) * self.item
        contractions = 2 if self.op == "attention" else 1
        self.base = self.inputs + (self.whole * contractions if self.case == "separate-stored" else 0)
        if lent is not None and not self.on_gpu:
            self.base = 0
        self.shape = {"query": (b, h, q, d), "weights": (b, h, q, k), "table": (b, h, q, k), "rows": (b, h, n, d)}
        self.k = k
        self.torch_data = None
        self.numpy_data = None
        self.ready = {}
        self.offered, self.skipped = [], {}
        for name in PEERS:
            reason = self.why_not(name)
            if reason == "":
                continue
            if reason is None:
                self.offered.append(name)
            else:
                self.skipped[name] = reason

    def why_not(self, name):
        """None if the peer can run, "" if it does not apply to this problem, else the reason."""
        peer = PEERS[name]
        if self.op not in peer.ops or self.case not in peer.cases:
            return ""
        if self.on_gpu and peer.library != "torch":
            return ""
        for package in peer.needs:
            if package not in PACKAGES:
                return f"{package} is not installed"
            if package in self.absent:
                return self.absent[package]
        if peer.needs == ("numpy",) and self.dtype == "bf16":
            return "numpy has no bfloat16"
        need = self.base + peer.extra(self) * self.whole
        if name == DENSE:
            need += self.inputs * self.sizes["n"] // max(self.k, 1)
        if need > self.limit:
            return f"it needs {megabytes(need)} and the limit is {megabytes(self.limit)}"
        return None

    def data(self, library):
        """Arrays of the library by role: query, weights, keys, values, table."""
        if library == "torch":
            if self.torch_data is None:
                self.torch_data = self.arrange(self.load_torch, torch)
            return self.torch_data
        if self.numpy_data is None:
            if torch is None:
                self.numpy_data = self.arrange(self.load_numpy, np)
            else:
                # The same memory under both names.
                self.numpy_data = {role: array.numpy() for role, array in self.data("torch").items()}
        return self.numpy_data

    def load_torch(self, role, shape, dtype):
        kind = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i32": "int32", "i64": "int64"}
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=getattr(torch, kind[dtype]), device=self.device)
        if self.lent is not None:
            with warnings.catch_warnings():
                # It may not be written, which torch has no word for; no peer does.
                warnings.simplefilter("ignore", UserWarning)
                array = torch.frombuffer(self.lent[role], dtype=getattr(torch, kind[dtype]))
            return array.reshape(shape).to(self.device)
        mapped = torch.from_file(self.files[role], shared=False, size=count, dtype=getattr(torch, kind[dtype]))
        # A copy: pages of a file are not what an expert computes on.
        return mapped.reshape(shape).to(self.device, copy=True)

    def load_numpy(self, role, shape, dtype):
        kind = {"f16": "<f2", "f32": "<f4", "f64": "<f8", "i32": "<i4", "i64": "<i8"}
        if math.prod(shape) == 0:
            return np.empty(shape, kind[dtype])
        if self.lent is not None:
            return np.frombuffer(self.lent[role], dtype=kind[dtype]).reshape(shape)
        return np.array(np.memmap(self.files[role], dtype=kind[dtype], mode="r", shape=shape))

    def arrange(self, load, xp):
        data = {}
        data["query" if self.op != "values" else "weights"] = None
        for role in list(data):
            data[role] = load(role, self.shape[role], self.dtype)
        table = None
        if self.case == "separate-lookup" or self.case == "separate-stored" and self.lent is None:
            table = load("table", self.shape["table"], self.table_dtype)
        if self.case == "separate-lookup":
            data["table"] = table
        for role in ("keys", "values"):
            if role == "keys" and self.op == "values" or role == "values" and self.op == "scores":
                continue
            data[role] = self.rows(load, xp, role, table)
        return data

    def rows(self, load, xp, role, table):
        """Keys or values as the case has them: those that are lent lie that way already."""
        b, h, q, _ = self.shape["weights"]
        whole = (b, h, q, self.k, self.sizes["d"])
        if self.case not in ("separate-stored", "separate-expanded", "shared"):
            return load(role, self.shape["rows"], self.dtype)
        if self.case == "separate-stored":
            if self.lent is not None:
                return load(role, whole, self.dtype)
            return select(xp, load(role, self.shape["rows"], self.dtype), table)
        if self.lent is not None:
            rows = load(role, (b, h, self.k, self.sizes["d"]), self.dtype)
        else:
            rows = load(role, self.shape["rows"], self.dtype)[:, :, : self.k]
            rows = rows.contiguous() if xp is torch else np.ascontiguousarray(rows)
        if self.case == "shared":
            return rows
        rows = rows[:, :, None]
        return rows.expand(whole) if xp is torch else np.broadcast_to(rows, whole)

    def prepare(self, name):
        """Builds and warms up a peer; the first call compiles where there is something to compile."""
        if name in self.ready:
            return self.ready[name]
        if name not in self.offered:
            raise Skip(self.skipped.get(name, f"no peer {name!r} for this problem"))
        peer = PEERS[name]
        call = peer.build(self)
        compile_s = None
        start = time.perf_counter_ns()
        result = call()
        self.wait()
        first = (time.perf_counter_ns() - start) * 1e-9
        start = time.perf_counter_ns()
        for _ in range(WARM_UPS):
            result = call()
        self.wait()
        if peer.compiled:
            compile_s = max(0.0, first - (time.perf_counter_ns() - start) * 1e-9 / WARM_UPS)
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
            seconds = []
            for _ in range(repeats):
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                graph.replay()
                after.record()
                after.synchronize()
                seconds.append(before.elapsed_time(after) * 1e-3 / calls)
            return seconds

    def summary(self, result):
        shape = list(result.shape)
        if torch is not None and isinstance(result, torch.Tensor):
            flat = result.detach().reshape(-1).to(torch.float64).cpu().numpy()
        else:
            flat = result.reshape(-1).astype(np.float64)
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


def finite(value):
    value = float(value)
    return value if math.isfinite(value) else None


def select(xp, rows, table):
    """rows[b, h, table[b, h, q, k]]: (b, h, q, k, d)."""
    b, h = rows.shape[:2]
    where = {"device": rows.device} if xp is torch else {}
    return rows[xp.arange(b, **where).reshape(b, 1, 1, 1), xp.arange(h, **where).reshape(1, h, 1, 1), table]


class Peer:
    """How one library is asked: which problems it takes, what it needs, and how to build the call to time."""

    def __init__(self, library, contract, *, needs, extra, compiled=False, ops=None, cases=None):
        self.library = library
        self.contract = contract
        self.needs = needs
        self.extra = extra
        self.compiled = compiled
        self.ops = ops or ("scores", "values", "attention")
        self.cases = cases or ("separate-stored", "separate-expanded", "separate-lookup", "shared", "all")

    def build(self, problem):
        data = problem.data(self.library)
        xp = torch if self.library == "torch" else np
        own = problem.case.startswith("separate")
        scale = 1.0 / math.sqrt(problem.sizes["d"])
        contract = self.contract
        table = data.get("table")

        def rows_of(rows, table):
            return rows if table is None else select(xp, rows, table)

        if contract is dense_gather:
            wide = table.to(torch.int64)
            query, keys = data["query"], data["keys"]
            return lambda: dense_gather(query, keys, wide)
        if problem.op == "scores":
            inputs = data["query"], data["keys"], table

            def run(query, keys, table):
                return contract("scores", own, query, rows_of(keys, table))

        elif problem.op == "values":
            inputs = data["weights"], data["values"], table

            def run(weights, values, table):
                return contract("values", own, weights, rows_of(values, table))

        elif contract is sdpa:
            inputs = data["query"], data["keys"], data["values"], table

            def run(query, keys, values, table):
                return sdpa(own, query, rows_of(keys, table), rows_of(values, table))

        else:
            inputs = data["query"], data["keys"], data["values"], table

            def run(query, keys, values, table):
                scores = contract("scores", own, query, rows_of(keys, table))
                return contract("values", own, softmax(xp, scores * scale), rows_of(values, table))

        if self.compiled:
            torch._dynamo.reset()
            run = torch.compile(run, dynamic=False)
        return lambda: run(*inputs)


def softmax(xp, scores):
    if xp is torch:
        return torch.softmax(scores, -1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def torch_einsum(op, own, left, rows):
    return torch.einsum(EQUATIONS[op, own], left, rows)


def torch_matmul(op, own, left, rows):
    if op == "scores":
        if own:
            return torch.matmul(rows, left.unsqueeze(-1)).squeeze(-1)
        return torch.matmul(left, rows.transpose(-1, -2))
    if own:
        return torch.matmul(left.unsqueeze(-2), rows).squeeze(-2)
    return torch.matmul(left, rows)


def torch_mul_sum(op, own, left, rows):
    if not own:
        rows = rows.unsqueeze(-3)
    if op == "scores":
        return (left.unsqueeze(-2) * rows).sum(-1)
    return (left.unsqueeze(-1) * rows).sum(-2)


def numpy_einsum(op, own, left, rows):
    return np.einsum(EQUATIONS[op, own], left, rows, optimize="optimal")


def opt_einsum_torch(op, own, left, rows):
    return opt_einsum.contract(EQUATIONS[op, own], left, rows, backend="torch")


def sdpa(own, query, keys, values):
    attention = torch.nn.functional.scaled_dot_product_attention
    if own:
        return attention(query.unsqueeze(-2), keys, values).squeeze(-2)
    return attention(query, keys, values)


def dense_gather(query, keys, table):
    return torch.matmul(query, keys.transpose(-1, -2)).gather(-1, table)


def copies_if_virtual(problem):
    return 1 if problem.case in ("separate-expanded", "separate-lookup") else 0


def product_too(problem):
    return 2 if problem.case == "separate-lookup" else 1


def always_a_copy(problem):
    return 1 if problem.case.startswith("separate") else 0


def nothing(problem):
    return 0


DENSE = "torch dense, gather"

PEERS = {
    "torch.einsum": Peer("torch", torch_einsum, needs=("torch",), extra=copies_if_virtual),
    "torch.matmul": Peer("torch", torch_matmul, needs=("torch",), extra=copies_if_virtual),
    "torch mul-sum": Peer("torch", torch_mul_sum, needs=("torch",), extra=product_too),
    "torch mul-sum compiled": Peer("torch", torch_mul_sum, needs=("torch",), extra=nothing, compiled=True),
    DENSE: Peer("torch", dense_gather, needs=("torch",), extra=nothing, ops=("scores",), cases=("separate-lookup",)),
    "torch SDPA": Peer("torch", sdpa, needs=("torch",), extra=copies_if_virtual, ops=("attention",)),
    "numpy.einsum": Peer("numpy", numpy_einsum, needs=("numpy",), extra=always_a_copy),
    "opt_einsum": Peer("torch", opt_einsum_torch, needs=("torch", "opt_einsum"), extra=copies_if_virtual),
}


class Session:
    """Answers requests; what it changes of the interpreter for that, `quit` changes back."""

    def __init__(self):
        self.problem = None
        self.absent = {}
        self.undo = []

    def answer(self, text, lent=None):
        """The reply to a request, both as JSON."""
        request = json.loads(text)
        command = {"hello": self.hello, "setup": self.setup, "time": self.time, "quit": self.quit}[request["cmd"]]
        try:
            # Functions of torch are there as soon as `hello` was answered.
            # What a library prints is no result of ours.
            with contextlib.redirect_stdout(sys.stderr):
                with contextlib.nullcontext() if torch is None else torch.inference_mode():
                    reply = command(request, lent)
        except Skip as reason:
            return json.dumps({"ok": False, "error": str(reason)})
        except Exception as error:
            text = " ".join(str(error).split())
            return json.dumps({"ok": False, "error": f"{type(error).__name__}: {text[:600]}"})
        return json.dumps({"ok": True, **reply})

    def hello(self, request, _lent):
        threads = request["threads"]
        loaded = set(sys.modules)
        before = set_environment(environment(threads))
        self.undo.append(lambda: set_environment(before))
        load_packages()
        if "torch" in loaded and torch is not None:
            count, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
            self.undo.append(lambda: torch.set_num_threads(count))
            self.undo.append(lambda: torch.set_float32_matmul_precision(precision))
        if "numpy" in loaded and np is not None:
            undo = limit_blas(threads)
            if undo is not None:
                self.undo.append(undo)
            elif threads != os.cpu_count():
                self.absent["numpy"] = "NumPy was imported before, and without threadpoolctl keeps its number of threads"
        versions = {name: getattr(package, "__version__", "unknown") for name, package in PACKAGES.items()}
        missing = dict(MISSING)
        try:
            # Only told: no peer uses it, and importing it would start threads.
            versions["jax"] = importlib.metadata.version("jax")
        except importlib.metadata.PackageNotFoundError:
            missing["jax"] = "it is not installed"
        return {"python": sys.version.split()[0], "packages": versions, "missing": missing}

    def setup(self, request, lent):
        self.problem = None
        gc.collect()
        self.problem = Problem(request, lent, self.absent)
        return {"peers": self.problem.offered, "skipped": self.problem.skipped}

    def time(self, request, _lent):
        if self.problem is None:
            raise Skip("nothing was set up")
        collects = gc.isenabled()
        gc.disable()
        try:
            return self.measure(request)
        finally:
            if collects:
                gc.enable()

    def measure(self, request):
        call, compile_s, summary = self.problem.prepare(request["peer"])
        budget = request.get("budget_s") or math.inf
        if self.problem.on_gpu:
            seconds = self.problem.replay(request["peer"], request["repeats"], budget)
            return {"seconds": seconds, "compile_s": compile_s, **summary}
        call()
        seconds = []
        started = time.perf_counter()
        for _ in range(request["repeats"]):
            start = time.perf_counter_ns()
            call()
            seconds.append((time.perf_counter_ns() - start) * 1e-9)
            if time.perf_counter() - started > budget:
                break
        return {"seconds": seconds, "compile_s": compile_s, **summary}

    def quit(self, _request=None, _lent=None):
        self.problem = None
        while self.undo:
            self.undo.pop()()
        return {}


def listen():
    """The requests as they come in. Their end is the end of the process, whatever it computes: nobody waits for it."""
    lines = queue.SimpleQueue()

    def read():
        # Without a buffer: its lock, held while reading, would disturb the end of the interpreter.
        with os.fdopen(os.dup(0), "rb", buffering=0) as requests:
            for line in requests:
                lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main():
    # Before packages are loaded, which may take long.
    requests = listen()
    # Whatever a library prints must not end up between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session()
    gc.disable()
    while True:
        line = requests.get()
        replies.write(session.answer(line) + "\n")
        replies.flush()
        if json.loads(line)["cmd"] == "quit":
            break


if __name__ == "__main__":
    main()
