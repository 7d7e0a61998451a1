

# The problems of `einfall bench dense` and `einfall bench lookups`.


class SuiteProblem(Problem):
    """A contraction of the suites: an equation and its arguments, or a kind of lookup with its scope."""

    def __init__(self, request, lent=None, absent=None):
        super().__init__(request, lent, absent)
        self.kind = request["kind"]
        self.peers = SUITE_PEERS[self.kind]
        self.equation = request["equation"]
        self.scope = request["scope"]
        self.backward = request["backward"]
        self.compile = request["compile"]
        self.threads = request["threads"]
        self.arguments = {role: (shape, dtype) for role, shape, dtype in request["arguments"]}
        self.loaded = {}
        self.base = 0
        if lent is None or self.on_gpu:
            self.base = sum(math.prod(shape) * ITEM_SIZE[dtype] for shape, dtype in self.arguments.values())
        self.offer()

    def why_not(self, name):
        peer = self.peers[name]
        if self.on_gpu and peer.library != "torch" or not peer.fits(self) or peer.compiled and not self.compile:
            return ""
        if peer.library == "jax":
            reason = load_jax()
            if reason is not None:
                return reason
        reason = self.missing(peer.needs)
        if reason is not None:
            return reason
        if peer.library == "numpy" and self.dtype == "bf16":
            return "numpy has no bfloat16"
        need = self.base + peer.extra(self)
        if need > self.limit:
            return f"it needs {megabytes(need)} and the limit is {megabytes(self.limit)}"
        return None

    def array(self, library, role):
        """An argument as an array of a library; the same memory for all as far as they allow it."""
        if (library, role) not in self.loaded:
            shape, dtype = self.arguments[role]
            if library == "torch":
                array = self.load_torch(role, shape, dtype)
            elif library == "numpy":
                array = self.load_numpy(role, shape, dtype) if torch is None else self.array("torch", role).numpy()
            elif dtype == "bf16":
                array = jax.dlpack.from_dlpack(self.array("torch", role))
            else:
                array = jax.numpy.array(self.load_numpy(role, shape, dtype))
            self.loaded[library, role] = array
        return self.loaded[library, role]

    def arrays(self, library):
        return [self.array(library, role) for role in self.arguments]

    def build(self, name):
        peer = self.peers[name]
        if not self.backward:
            return self.forward(peer, self.arrays(peer.library))
        # Tensors that know their gradients are not made in inference mode.
        with torch.inference_mode(False):
            arrays = [array.clone() for array in self.arrays(peer.library)]
            *arrays, grad_out = arrays
            leaves = [array.requires_grad_() for array in arrays[:3]]
            call = self.forward(peer, arrays)

        def both():
            with torch.inference_mode(False), torch.enable_grad():
                return torch.autograd.grad(call(), leaves, grad_out)[1]

        return both

    def forward(self, peer, arrays):
        run = peer.build(self, *arrays)
        if peer.compiled and peer.library == "torch":
            torch._dynamo.reset()
            run = torch.compile(run, dynamic=False)
        return lambda: run(*arrays)


jax = None


def load_jax():
    """Loads JAX with all its types; None, or why that cannot be done."""
    global jax
    if jax is None:
        try:
            jax = importlib.import_module("jax")
            importlib.import_module("jax.numpy")
            importlib.import_module("jax.dlpack")
        except Exception as error:
            return "jax is not installed" if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    if not jax.config.jax_enable_x64:
        jax.config.update("jax_enable_x64", True)
        UNDO.append(lambda: jax.config.update("jax_enable_x64", False))
    return None


def always(_problem):
    return True


class SuitePeer:
    """How one library is asked: `build` takes the problem and its arrays, and gives a function of the arrays."""

    def __init__(self, library, build, *, needs=None, compiled=False, fits=always, extra=nothing, graph=True):
        self.library = library
        self.build = build
        self.needs = needs if needs is not None else (library,) if library != "jax" else ()
        self.compiled = compiled
        self.fits = fits
        self.extra = extra
        # Whether a CUDA graph can hold it: not what waits for the GPU to tell it a length.
        self.graph = graph


def only_moves(problem):
    """Whether nothing is computed: then libraries give a view of their argument, and the copy is the work."""
    return "," not in problem.equation


def dense_torch(problem, *_arrays):
    if only_moves(problem):
        return lambda array: torch.einsum(problem.equation, array).contiguous()
    return lambda *arrays: torch.einsum(problem.equation, *arrays)


def dense_numpy(problem, *_arrays):
    if only_moves(problem):
        return lambda array: np.ascontiguousarray(np.einsum(problem.equation, array, optimize=True))
    return lambda *arrays: np.einsum(problem.equation, *arrays, optimize=True)


def dense_opt_einsum(problem, *_arrays):
    if only_moves(problem):
        return lambda array: opt_einsum.contract(problem.equation, array, backend="torch").contiguous()
    return lambda *arrays: opt_einsum.contract(problem.equation, *arrays, backend="torch")


def dense_jax(problem, *_arrays):
    run = jax.jit(lambda *arrays: jax.numpy.einsum(problem.equation, *arrays, precision="highest"))
    return lambda *arrays: run(*arrays).block_until_ready()


def rows_at(problem, rows, table):
    """The rows that a table names: (b, g, q, k, d)."""
    if problem.scope in ("qk", "window"):
        return rows[:, :, table]
    table = table[:, None] if problem.scope == "bqk" else table
    b, g = rows.shape[:2]
    where = {"device": rows.device}
    return rows[torch.arange(b, **where).reshape(b, 1, 1, 1), torch.arange(g, **where).reshape(1, g, 1, 1), table]


def gathered(problem):
    """Bytes of the rows that are looked up, stored whole."""
    sizes = problem.sizes
    lists = sizes.get("b", 1) * sizes.get("g", sizes.get("h", 1)) * sizes.get("q", 1) * sizes.get("k", 1)
    width = sizes.get("d", 1) + (sizes.get("dv", sizes["d"]) if problem.kind == "attention" else 0)
    return lists * width * problem.item * (3 if problem.backward else 1)


def gathered_twice(problem):
    return 2 * gathered(problem)


def every_score(problem):
    """Bytes of the scores of all queries with all keys."""
    sizes = problem.sizes
    return sizes["b"] * sizes["h"] * sizes["q"] * sizes["n"] * problem.item


def pairs_are_few(problem):
    """Whether all queries meet all keys in less than a second or so: longer says no more."""
    sizes = problem.sizes
    return sizes["b"] * sizes["h"] * sizes["q"] * sizes["n"] < 2e10


def scores_einsum(problem, *_arrays):
    return lambda query, keys, table: torch.einsum("bhqd,bhqkd->bhqk", query, rows_at(problem, keys, table))


def scores_mul_sum(problem, *_arrays):
    return lambda query, keys, table: (query.unsqueeze(-2) * rows_at(problem, keys, table)).sum(-1)


def scores_dense(problem, _query, _keys, table):
    sizes = problem.sizes
    table = table[:, None] if problem.scope == "bqk" else table
    wide = table.to(torch.int64).expand(sizes["b"], sizes["h"], sizes["q"], sizes["k"])
    return lambda query, keys, _table: torch.matmul(query, keys.transpose(-1, -2)).gather(-1, wide)


def values_einsum(problem, *_arrays):
    return lambda weights, values, table: torch.einsum("bhqk,bhqkd->bhqd", weights, rows_at(problem, values, table))


def values_mul_sum(problem, *_arrays):
    return lambda weights, values, table: (weights.unsqueeze(-1) * rows_at(problem, values, table)).sum(-2)


def embedding_bag(_problem, *_arrays):
    bag = torch.nn.functional.embedding_bag
    return lambda weights, values, table: bag(
        table, values[0, 0], per_sample_weights=weights[0, 0], mode="sum"
    )[None, None]


def is_bag(problem):
    return problem.scope == "qk" and problem.sizes["b"] == problem.sizes["h"] == 1


def spmm_coo(problem, *_arrays):
    size = problem.sizes["rows"], problem.sizes["n"]

    def run(values, dense, column, row):
        return torch.sparse.mm(torch.sparse_coo_tensor(torch.stack((row, column)), values, size), dense)

    return run


def spmm_csr(problem, values, _dense, column, row):
    size = problem.sizes["rows"], problem.sizes["n"]
    where = torch.stack((row, column)).to(torch.int64)
    matrix = torch.sparse_coo_tensor(where, values, size).coalesce().to_sparse_csr()
    return lambda _values, dense, _column, _row: matrix @ dense


def spmm_index_add(problem, *_arrays):
    rows, d = problem.sizes["rows"], problem.sizes["d"]

    def run(values, dense, column, row):
        out = torch.zeros((rows, d), dtype=dense.dtype, device=dense.device)
        return out.index_add_(0, row, values[:, None] * dense[column])

    return run


def products_of_entries(problem):
    return 2 * problem.sizes["e"] * problem.sizes["d"] * problem.item


def moe_einsum(_problem, *_arrays):
    return lambda tokens, weights, expert: torch.einsum("td,tdf->tf", tokens, weights[expert])


def moe_loop(problem, *_arrays):
    def run(tokens, weights, expert):
        out = torch.empty((tokens.shape[0], weights.shape[2]), dtype=tokens.dtype, device=tokens.device)
        for number in range(weights.shape[0]):
            mine = (expert == number).nonzero().squeeze(1)
            out[mine] = tokens[mine] @ weights[number]
        return out

    return run


def moe_sorted(problem, *_arrays):
    grouped = problem.on_gpu and problem.dtype == "bf16" and hasattr(torch, "_grouped_mm")

    def run(tokens, weights, expert):
        order = torch.argsort(expert)
        ends = torch.bincount(expert, minlength=weights.shape[0]).cumsum(0)
        sorted_tokens = tokens[order]
        if grouped:
            results = torch._grouped_mm(sorted_tokens, weights, offs=ends.to(torch.int32))
        else:
            results = torch.empty((tokens.shape[0], weights.shape[2]), dtype=tokens.dtype, device=tokens.device)
            start = 0
            for number, end in enumerate(ends.tolist()):
                torch.mm(sorted_tokens[start:end], weights[number], out=results[start:end])
                start = end
        out = torch.empty_like(results)
        out[order] = results
        return out

    return run


def weights_of_tokens(problem):
    return problem.sizes["t"] * problem.sizes["d"] * problem.sizes["f"] * problem.item


def window_table(problem, device):
    """Of each query the keys around it, and which of them there are."""
    q, n, k = (problem.sizes[label] for label in "qnk")
    at = torch.arange(q, device=device)[:, None] + torch.arange(k, device=device)[None] - k // 2
    return at.clamp(0, n - 1), (at >= 0) & (at < n)


def attention_by(problem, query, scores_of, values_of):
    """Attention on gathered rows, the query's heads in groups that share keys."""
    sizes = problem.sizes
    b, h, q, d = query.shape
    g = sizes.get("g", h)
    scale = 1.0 / math.sqrt(d)
    table, there = window_table(problem, query.device) if problem.scope == "window" else (None, None)

    def run(query, keys, values, *given):
        at = given[0] if given else table
        scores = scores_of(query.reshape(b, g, h // g, q, d), rows_at(problem, keys, at)) * scale
        if there is not None:
            scores = scores.masked_fill(~there, -math.inf)
        out = values_of(torch.softmax(scores, -1), rows_at(problem, values, at))
        return out.reshape(b, h, q, out.shape[-1])

    return run


def attention_einsum(problem, query, *_arrays):
    return attention_by(
        problem,
        query,
        lambda query, keys: torch.einsum("bgrqd,bgqkd->bgrqk", query, keys),
        lambda weights, values: torch.einsum("bgrqk,bgqkd->bgrqd", weights, values),
    )


def attention_mul_sum(problem, query, *_arrays):
    return attention_by(
        problem,
        query,
        lambda query, keys: (query.unsqueeze(-2) * keys.unsqueeze(2)).sum(-1),
        lambda weights, values: (weights.unsqueeze(-1) * values.unsqueeze(2)).sum(-2),
    )


def sdpa_all(problem, *_arrays):
    attention = torch.nn.functional.scaled_dot_product_attention
    shared = problem.sizes.get("g", problem.sizes["h"]) != problem.sizes["h"]
    return lambda query, keys, values, *_table: attention(query, keys, values, enable_gqa=shared)


def sdpa_mask(problem, query, _keys, _values, *given):
    attention = torch.nn.functional.scaled_dot_product_attention
    sizes = problem.sizes
    b, h, q, n = (sizes[label] for label in "bhqn")
    if problem.scope == "window":
        at = torch.arange(n, device=query.device)[None] - torch.arange(q, device=query.device)[:, None]
        mask = (at >= -(sizes["k"] // 2)) & (at < sizes["k"] - sizes["k"] // 2)
    else:
        table = given[0].to(torch.int64)
        if problem.scope == "bqk":
            table = table[:, None]
        elif problem.scope == "bgqk":
            table = table.repeat_interleave(h // table.shape[1], 1)
        mask = torch.zeros((*table.shape[:-1], n), dtype=torch.bool, device=query.device)
        mask.scatter_(-1, table, True)
    shared = sizes.get("g", h) != h
    return lambda query, keys, values, *_table: attention(query, keys, values, attn_mask=mask, enable_gqa=shared)


def flex(problem, *_arrays):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    k = problem.sizes["k"]

    def near(_b, _h, query, key):
        return (key - query >= -(k // 2)) & (key - query < k - k // 2)

    mask = create_block_mask(near, None, None, problem.sizes["q"], problem.sizes["n"], device=problem.device)
    return lambda query, keys, values: flex_attention(query, keys, values, block_mask=mask)


def is_window_on_gpu(problem):
    return problem.on_gpu and problem.scope == "window"


SUITE_PEERS = {
    "dense": {
        "torch.einsum": SuitePeer("torch", dense_torch),
        "torch.einsum compiled": SuitePeer("torch", dense_torch, compiled=True),
        "numpy.einsum": SuitePeer("numpy", dense_numpy),
        "opt_einsum": SuitePeer("torch", dense_opt_einsum, needs=("torch", "opt_einsum")),
        "jax.jit": SuitePeer("jax", dense_jax, compiled=True),
    },
    "scores": {
        "torch.einsum": SuitePeer("torch", scores_einsum, extra=gathered),
        "torch mul-sum compiled": SuitePeer("torch", scores_mul_sum, compiled=True),
        "torch dense, gather": SuitePeer("torch", scores_dense, extra=every_score),
    },
    "values": {
        "torch.einsum": SuitePeer("torch", values_einsum, extra=gathered),
        "torch mul-sum compiled": SuitePeer("torch", values_mul_sum, compiled=True),
        "torch embedding_bag": SuitePeer("torch", embedding_bag, fits=is_bag),
    },
    "spmm": {
        "torch.sparse.mm": SuitePeer("torch", spmm_coo, extra=products_of_entries, graph=False),
        "torch CSR, prepared": SuitePeer("torch", spmm_csr, graph=False),
        "torch index_add": SuitePeer("torch", spmm_index_add, extra=products_of_entries),
        "torch index_add compiled": SuitePeer("torch", spmm_index_add, compiled=True),
    },
    "moe": {
        "torch.einsum": SuitePeer("torch", moe_einsum, extra=weights_of_tokens),
        "torch loop over experts": SuitePeer("torch", moe_loop, graph=False),
        "torch sorted, grouped": SuitePeer("torch", moe_sorted, graph=False),
    },
    "attention": {
        "torch.einsum": SuitePeer("torch", attention_einsum, extra=gathered),
        "torch mul-sum compiled": SuitePeer("torch", attention_mul_sum, compiled=True, extra=nothing),
        "torch SDPA, mask": SuitePeer("torch", sdpa_mask, extra=every_score),
        "torch FlexAttention": SuitePeer("torch", flex, compiled=True, fits=is_window_on_gpu),
        # Another problem: what attending to every key takes.
        "torch SDPA, all keys": SuitePeer("torch", sdpa_all, fits=pairs_are_few),
    },
}
