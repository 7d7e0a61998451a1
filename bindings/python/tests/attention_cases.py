"""Attention in plain steps, and the cases that every library is tested on."""

import itertools

import numpy as np


class Case:
    """A call: shapes of the operands, the options, and the position of every key."""

    def __init__(
        self,
        name,
        *,
        b=2,
        h=4,
        g=4,
        q=7,
        n=11,
        k=5,
        d=6,
        e=6,
        scope=None,
        pads=0.0,
        window=None,
        dilation=1,
        axes=None,
        bias=None,
        causal=False,
        scale=None,
        table_dtype="int64",
        duplicates=False,
    ):
        self.name, self.b, self.h, self.g, self.d, self.e = name, b, h, g, d, e
        self.axes = axes or (q,)
        self.q = int(np.prod(self.axes))
        self.n = self.q if window is not None else n
        self.k, self.scope, self.pads, self.window, self.dilation = k, scope, pads, window, dilation
        self.bias, self.causal, self.scale, self.table_dtype = bias, causal, scale, table_dtype
        self.duplicates = duplicates

    def __repr__(self):
        return self.name

    def arrays(self, seed=0, dtype=np.float64):
        """Query, key, value, table, bias; those that the case has not are `None`."""
        rng = np.random.default_rng(seed)
        axes = self.axes if self.window is not None else None
        query = rng.normal(size=(self.b, self.h, *(axes or (self.q,)), self.d))
        key = rng.normal(size=(self.b, self.g, *(axes or (self.n,)), self.d))
        value = rng.normal(size=(self.b, self.g, *(axes or (self.n,)), self.e))
        table = None
        if self.scope is not None:
            lead = [{"b": self.b, "h": self.h, "g": self.g, "1": 1}[letter] for letter in self.scope]
            shape = (*lead, self.q, self.k)
            if self.duplicates or self.k > self.n:
                table = rng.integers(0, max(self.n, 1), size=shape)
            else:
                table = rng.random((*shape[:-1], self.n)).argsort(-1)[..., : self.k]
            table = np.where(rng.random(shape) < self.pads, -1, table).astype(self.table_dtype)
        bias = None
        if self.bias is not None:
            keys = {"k": self.widths(), "1": [1] * len(self.widths())}
            places = axes or (self.q,)
            queries = {"q": list(places), "1": [1] * len(places)}
            lead = [{"b": self.b, "h": self.h, "1": 1}[letter] for letter in self.bias[:2]]
            bias = rng.normal(size=(*lead, *queries[self.bias[2]], *keys[self.bias[3]])).astype(dtype)
        return query.astype(dtype), key.astype(dtype), value.astype(dtype), table, bias

    def widths(self):
        """Lengths of the key axes."""
        if self.window is not None:
            return [self.window] * len(self.axes) if isinstance(self.window, int) else list(self.window)
        return [self.n] if self.scope is None else [self.k]

    def options(self):
        found = {"scale": self.scale, "causal": self.causal}
        if self.window is not None:
            found |= {"window": self.window, "dilation": self.dilation}
        return found

    def places(self, table):
        """The position of every key among n, (b, h, q, k); -1 where there is none."""
        if self.window is not None:
            lens = self.widths()
            steps = [self.dilation] * len(lens) if isinstance(self.dilation, int) else self.dilation
            found = np.full((self.q, int(np.prod(lens))), -1)
            for at, place in enumerate(np.ndindex(*self.axes)):
                for slot, offset in enumerate(np.ndindex(*lens)):
                    before = [length - 1 if self.causal else length // 2 for length in lens]
                    key = [p + s * (o - w) for p, s, o, w in zip(place, steps, offset, before)]
                    if all(0 <= one < length for one, length in zip(key, self.axes)):
                        found[at, slot] = np.ravel_multi_index(key, self.axes)
            found = found[None, None]
        elif self.scope is None:
            found = np.broadcast_to(np.arange(self.n), (1, 1, self.q, self.n))
        else:
            found = np.asarray(table).reshape((1,) * (4 - np.ndim(table)) + np.shape(table)).astype(np.int64)
            if found.shape[1] == self.g != self.h:
                found = np.repeat(found, self.h // self.g, 1)
        if self.causal and self.window is None:
            last = np.arange(self.q)[:, None]
            found = np.where(found <= last, found, -1)
        found = np.where((found >= 0) & (found < self.n), found, -1)
        return np.broadcast_to(found, (self.b, self.h, *found.shape[2:]))


def selected(case, table):
    """For every pair: batch and head of the keys, position, and whether there is a key; each (b, h, q, k) or less."""
    places = case.places(table)
    repeat = case.h // case.g if case.g else 1
    batch, head = np.arange(case.b)[:, None, None, None], np.arange(case.h)[None, :, None, None] // repeat
    return batch, head, np.where(places >= 0, places, 0), places >= 0


def reference(case, query, key, value, table, bias):
    """Keys and values gathered, then a softmax: the output and the log-sum-exp, in NumPy."""
    batch, head, rows, inside = selected(case, table)
    shape = (*query.shape[:-1], case.e)
    query = query.reshape(case.b, case.h, case.q, case.d)
    if case.n == 0 or inside.shape[-1] == 0:
        return np.zeros(shape), np.full(shape[:-1], -np.inf)
    keys = key.reshape(case.b, case.g, case.n, case.d)[batch, head, rows]
    values = value.reshape(case.b, case.g, case.n, case.e)[batch, head, rows]
    scores = (case.d**-0.5 if case.scale is None else case.scale) * (query[:, :, :, None] * keys).sum(-1)
    if bias is not None:
        scores = scores + flat(case, bias)
    scores = np.where(inside, scores, -np.inf)
    some = inside.any(-1)
    most = np.where(some, scores.max(-1), 0)
    weights = np.exp(scores - most[..., None])
    total = np.where(some, weights.sum(-1), 1)
    out = (weights[..., None] * np.where(inside[..., None], values, 0)).sum(-2) / total[..., None]
    return out.reshape(shape), np.where(some, np.log(total) + most, -np.inf).reshape(shape[:-1])


def flat(case, bias):
    """A bias with one axis of queries and one of keys."""
    axes = len(case.axes) if case.window is not None else 1
    queries, keys = bias.shape[2 : 2 + axes], bias.shape[2 + axes :]
    return bias.reshape(*bias.shape[:2], int(np.prod(queries)), int(np.prod(keys)))


def reference_in_torch(torch, case, query, key, value, table, bias):
    """The same, for torch to derive."""
    batch, head, rows, inside = (torch.as_tensor(one, device=query.device) for one in selected(case, table))
    shape = (*query.shape[:-1], case.e)
    query = query.reshape(case.b, case.h, case.q, case.d)
    if case.n == 0 or inside.shape[-1] == 0:
        return (query.sum() + key.sum() + value.sum()) * 0 + query.new_zeros(shape)
    keys = key.reshape(case.b, case.g, case.n, case.d)[batch, head, rows]
    values = value.reshape(case.b, case.g, case.n, case.e)[batch, head, rows]
    scores = (case.d**-0.5 if case.scale is None else case.scale) * (query[:, :, :, None] * keys).sum(-1)
    if bias is not None:
        scores = scores + flat(case, bias)
    some = inside.any(-1, keepdim=True)
    scores = scores.masked_fill(~inside, -torch.inf).masked_fill(~some, 0.0)
    weights = scores.softmax(-1) * some
    return (weights[..., None] * values).sum(-2).reshape(shape)


CASES = [
    Case("list per query and head", scope="bh"),
    Case("one batch", b=1, scope="bh"),
    Case("one list for all heads", scope="b1"),
    Case("one list for all batches", scope="1h"),
    Case("one list for all", scope="11"),
    Case("no batch axis", scope="h"),
    Case("queries and keys alone", scope=""),
    Case("int32", scope="bh", table_dtype="int32"),
    Case("padded", scope="bh", pads=0.4),
    Case("mostly padded", scope="b1", pads=0.8),
    Case("all padded", scope="bh", pads=1.0),
    Case("duplicates", scope="bh", k=40, duplicates=True),
    Case("groups, list per head", h=6, g=2, scope="bh", pads=0.2),
    Case("groups, list per group", h=6, g=2, scope="bg", pads=0.2),
    Case("groups, list for all", h=6, g=3, scope="b1", pads=0.2),
    Case("groups, list alone", h=6, g=3, scope=""),
    Case("one group", h=5, g=1, scope="b1"),
    Case("one head", h=1, g=1, scope="bh"),
    Case("wide value", scope="bh", d=3, e=17),
    Case("narrow value", scope="bh", d=33, e=1),
    Case("depth 1", scope="bh", d=1, e=1),
    Case("depth 64", scope="bh", d=64, e=64, h=2, g=2),
    Case("depth 128", scope="bh", d=128, e=128, h=2, g=1),
    Case("depth 257", b=1, scope="bh", d=257, e=257, h=1, g=1),
    Case("one key", scope="bh", k=1),
    Case("31 keys", scope="bh", k=31, n=50),
    Case("130 keys", b=1, scope="bh", k=130, n=150, pads=0.1),
    Case("no queries", q=0, scope="bh"),
    Case("no keys in the lists", k=0, scope="bh"),
    Case("no keys at all", n=0, k=3, scope="bh", pads=1.0),
    Case("no batch", b=0, scope="1h"),
    Case("no heads", h=0, g=0, scope="b1"),
    Case("no width", e=0, scope="bh"),
    Case("scaled", scope="bh", scale=0.3),
    Case("negative scale", scope="bh", scale=-1.7),
    Case("causal table", scope="bh", q=11, causal=True),
    Case("causal table, fewer queries", scope="bh", q=4, causal=True, pads=0.2),
    Case("biased", scope="bh", bias="bhqk", pads=0.2),
    Case("bias for all heads", scope="bh", bias="b1qk"),
    Case("bias for all batches", scope="bh", bias="1hqk"),
    Case("bias for all", scope="bh", bias="11qk"),
    Case("bias of keys", scope="bh", bias="bh1k"),
    Case("biased groups", h=6, g=2, scope="bg", bias="bhqk"),
    Case("dense"),
    Case("dense, groups", h=6, g=2, q=9, n=40),
    Case("dense, one query", q=1, n=40),
    Case("dense, causal", q=11, causal=True),
    Case("dense, causal, fewer queries", q=4, n=11, causal=True),
    Case("dense, causal, more queries", q=11, n=4, causal=True),
    Case("dense, biased", bias="bhqk", causal=True, q=11),
    Case("dense, no keys", n=0),
    Case("window", window=5, axes=(13,)),
    Case("window, even", window=4, axes=(13,)),
    Case("window of one", window=1, axes=(5,)),
    Case("window, wider than all", window=9, axes=(3,)),
    Case("window, dilated", window=5, dilation=3, axes=(13,)),
    Case("window, causal", window=5, axes=(13,), causal=True),
    Case("window, causal, dilated", window=3, dilation=2, axes=(13,), causal=True),
    Case("window, groups", h=6, g=2, window=5, axes=(13,)),
    Case("window, biased", window=5, axes=(13,), bias="1h1k"),
    Case("window in two axes", window=3, axes=(5, 7)),
    Case("window in two axes, each its own", window=(3, 5), dilation=(2, 1), axes=(5, 7)),
    Case("window in two axes, causal", window=(3, 2), axes=(5, 7), causal=True),
    Case("window in two axes, biased", window=(3, 5), axes=(5, 7), bias="bhqk"),
    Case("window in three axes", b=1, h=2, g=1, window=3, axes=(4, 3, 5)),
]

#: A part of them, for what takes long.
FEW = [
    case
    for case in CASES
    if case.name
    in (
        "list per query and head",
        "padded",
        "all padded",
        "duplicates",
        "groups, list per head",
        "groups, list per group",
        "groups, list for all",
        "one group",
        "wide value",
        "no keys in the lists",
        "scaled",
        "causal table",
        "biased",
        "bias for all",
        "dense",
        "dense, groups",
        "dense, causal",
        "window",
        "window, dilated",
        "window, causal",
        "window, biased",
        "window in two axes",
    )
]


def scopes():
    """Every scope of a table with groups."""
    return ["".join(pair) for pair in itertools.product("b1", "hg1")] + ["h", "g", "1", ""]
