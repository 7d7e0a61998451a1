

# The problems of `einfall bench keys`.

EQUATIONS = {
    # (operation, whether a query has its own keys): the einsum
    ("scores", True): "bhqd,bhqkd->bhqk",
    ("scores", False): "bhqd,bhkd->bhqk",
    ("values", True): "bhqk,bhqkd->bhqd",
    ("values", False): "bhqk,bhkd->bhqd",
}


class KeysProblem(Problem):
    """A problem of `einfall bench keys`."""

    def __init__(self, request, lent=None, absent=None):
        super().__init__(request, lent, absent)
        self.peers = PEERS
        self.op = request["op"]
        self.case = request["case"]
        b, h, q, n, k, d = (self.sizes[label] for label in "bhqnkd")
        if self.case == "all":
            k = n
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
        self.offer()

    def why_not(self, name):
        peer = PEERS[name]
        if self.op not in peer.ops or self.case not in peer.cases:
            return ""
        if self.on_gpu and peer.library != "torch":
            return ""
        reason = self.missing(peer.needs)
        if reason is not None:
            return reason
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

    def build(self, name):
        return self.peers[name].build(self)


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
        self.graph = True
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
