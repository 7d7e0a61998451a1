"""Times NumPy, torch and opt_einsum on the problems of `einfall bench keys`.

One JSON object a line comes in on standard input, one goes out on standard output; peers.rs documents them. Every
peer is used as someone who knows it would: contiguous arrays, inference mode, no garbage collection while timing.
Selecting rows through the table is part of the work, so it happens inside of the timed call.
"""

import gc
import importlib.metadata
import json
import math
import os
import queue
import sys
import threading
import time

# Whatever a library prints must not end up between the replies.
REPLIES = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)



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


# Before the packages are loaded, which may take long.
REQUESTS = listen()

WARM_UPS = 2
ITEM_SIZE = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}

EQUATIONS = {
    # (operation, whether a query has its own keys): the einsum
    ("scores", True): "bhqd,bhqkd->bhqk",
    ("scores", False): "bhqd,bhkd->bhqk",
    ("values", True): "bhqk,bhqkd->bhqd",
    ("values", False): "bhqk,bhkd->bhqd",
}


def load_packages():
    packages, missing = {}, {}
    for name in ("numpy", "torch", "opt_einsum"):
        try:
            packages[name] = __import__(name)
        except Exception as error:  # a broken installation is as good as none
            missing[name] = f"{type(error).__name__}: {error}"
    return packages, missing


PACKAGES, MISSING = load_packages()
np = PACKAGES.get("numpy")
torch = PACKAGES.get("torch")
opt_einsum = PACKAGES.get("opt_einsum")


class Skip(Exception):
    """A peer that cannot take part, and why."""


def megabytes(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


class Problem:
    """The data of one setup and the peers that can work on it."""

    def __init__(self, request):
        self.op = request["op"]
        self.case = request["case"]
        self.sizes = request["sizes"]
        self.dtype = request["dtype"]
        self.limit = request.get("memory_limit") or math.inf
        self.sample = request.get("sample", 0)
        self.files = request["files"]
        self.table_dtype = request.get("table_dtype") or "i32"
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
        for package in peer.needs:
            if package not in PACKAGES:
                return f"{package} is not installed"
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
        path = self.files[role]
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=getattr(torch, kind[dtype]))
        mapped = torch.from_file(path, shared=False, size=count, dtype=getattr(torch, kind[dtype]))
        # A copy: pages of a file are not what an expert computes on.
        return mapped.reshape(shape).clone()

    def load_numpy(self, role, shape, dtype):
        kind = {"f16": "<f2", "f32": "<f4", "f64": "<f8", "i32": "<i4", "i64": "<i8"}
        if math.prod(shape) == 0:
            return np.empty(shape, kind[dtype])
        return np.array(np.memmap(self.files[role], dtype=kind[dtype], mode="r", shape=shape))

    def arrange(self, load, xp):
        data = {}
        data["query" if self.op != "values" else "weights"] = None
        for role in list(data):
            data[role] = load(role, self.shape[role], self.dtype)
        if self.case in ("separate-stored", "separate-lookup"):
            data["table"] = load("table", self.shape["table"], self.table_dtype)
        for role in ("keys", "values"):
            if role == "keys" and self.op == "values" or role == "values" and self.op == "scores":
                continue
            rows = load(role, self.shape["rows"], self.dtype)
            if self.case == "separate-stored":
                rows = select(xp, rows, data["table"])
            elif self.case in ("separate-expanded", "shared"):
                rows = rows[:, :, : self.k]
                rows = rows.contiguous() if xp is torch else np.ascontiguousarray(rows)
                if self.case == "separate-expanded":
                    b, h, q, _ = self.shape["weights"]
                    shape = (b, h, q, self.k, self.sizes["d"])
                    rows = rows[:, :, None]
                    rows = rows.expand(shape) if xp is torch else np.broadcast_to(rows, shape)
            data[role] = rows
        if self.case == "separate-stored":
            del data["table"]
        return data

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
        first = (time.perf_counter_ns() - start) * 1e-9
        start = time.perf_counter_ns()
        for _ in range(WARM_UPS):
            result = call()
        if peer.compiled:
            compile_s = max(0.0, first - (time.perf_counter_ns() - start) * 1e-9 / WARM_UPS)
        self.ready[name] = call, compile_s, self.summary(result)
        return self.ready[name]

    def summary(self, result):
        shape = list(result.shape)
        if torch is not None and isinstance(result, torch.Tensor):
            flat = result.detach().reshape(-1).to(torch.float64).numpy()
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
    return rows[xp.arange(b).reshape(b, 1, 1, 1), xp.arange(h).reshape(1, h, 1, 1), table]


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
    """Answers requests until `quit` or the end of the input."""

    def __init__(self):
        self.problem = None

    def hello(self, _request):
        versions = {name: getattr(package, "__version__", "unknown") for name, package in PACKAGES.items()}
        missing = dict(MISSING)
        try:
            # Only told: no peer uses it, and importing it would start threads.
            versions["jax"] = importlib.metadata.version("jax")
        except importlib.metadata.PackageNotFoundError:
            missing["jax"] = "it is not installed"
        return {"python": sys.version.split()[0], "packages": versions, "missing": missing}

    def setup(self, request):
        self.problem = None
        gc.collect()
        self.problem = Problem(request)
        return {"peers": self.problem.offered, "skipped": self.problem.skipped}

    def time(self, request):
        if self.problem is None:
            raise Skip("nothing was set up")
        call, compile_s, summary = self.problem.prepare(request["peer"])
        call()
        seconds = []
        budget = request.get("budget_s") or math.inf
        started = time.perf_counter()
        for _ in range(request["repeats"]):
            start = time.perf_counter_ns()
            call()
            seconds.append((time.perf_counter_ns() - start) * 1e-9)
            if time.perf_counter() - started > budget:
                break
        return {"seconds": seconds, "compile_s": compile_s, **summary}


def main():
    session = Session()
    gc.disable()
    handlers = {"hello": session.hello, "setup": session.setup, "time": session.time}
    while True:
        request = json.loads(REQUESTS.get())
        if request["cmd"] == "quit":
            break
        try:
            reply = {"ok": True, **handlers[request["cmd"]](request)}
        except Skip as reason:
            reply = {"ok": False, "error": str(reason)}
        except Exception as error:
            text = " ".join(str(error).split())
            reply = {"ok": False, "error": f"{type(error).__name__}: {text[:600]}"}
        REPLIES.write(json.dumps(reply) + "\n")
        REPLIES.flush()


if torch is None:
    main()
else:
    with torch.inference_mode():
        main()
