"""Times einfall on an NVIDIA GPU beside torch: python time_gpu.py [--json FILE] [--only WORD ...] [--no-peers]

A time is that of a call in replays of a CUDA graph of up to 20 calls, the median of 9, in microseconds: the GPU alone,
the same inputs each time. The floor is the largest of three, all measured here first: the distinct bytes at the speed of
a copy (one in the L2 where they fit there), the arithmetic at the speed of torch's matrix product, and an empty launch.
What is looked up again and again counts once in it, so a floor need not be reachable; the column TB/s is the rate at
which looked-up rows pass. Each result is compared with that of the first peer. The exit code is 1 if one is wrong.
"""

import argparse
import gc
import json
import math
import sys
import time
from dataclasses import dataclass, field
from typing import Callable, Iterator

import torch

import einfall

CALLS, ROUNDS, BUDGET_S = 20, 9, 0.5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
B, Q, N, D = 8, 1000, 1000, 32
LISTS = (1, 3, 10, 30, 100, 300, 1000)


@dataclass
class Case:
    """One call: `multiply_adds` as the equation is written, `visited` bytes of looked-up rows, peers by name."""

    name: str
    equation: str
    operands: tuple
    multiply_adds: float
    visited: float | None = None
    sizes: dict | None = None
    peers: dict[str, Callable] = field(default_factory=dict)

    def call(self):
        if self.sizes is None:
            return einfall.einsum(self.equation, *self.operands)
        return einfall.einsum(self.equation, *self.operands, sizes=self.sizes)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def lists(k: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """k of n rows for each query, none twice."""
    return torch.rand(B, 1, Q, N, device="cuda").argsort(-1)[..., :k].to(dtype).contiguous()


def rows_of(keys: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return keys[torch.arange(B, device="cuda").view(B, 1, 1, 1), 0, table]


def looked_up(k: int, dtype: torch.dtype, table_dtype: torch.dtype) -> Iterator[Case]:
    query, keys = random(B, 1, Q, D, dtype=dtype), random(B, 1, N, D, dtype=dtype)
    weights = random(B, 1, Q, k, dtype=dtype)
    table, work = lists(k, table_dtype), B * Q * k * D
    wide, kind = table.long(), f"k={k} {name_of(dtype)} {name_of(table_dtype)}"
    visited = work * keys.element_size()
    yield Case(
        f"scores looked up {kind}",
        "bhqd,bh[bhqk]d->bhqk",
        (query, keys, table),
        work,
        visited,
        peers={
            "dense, gather": lambda: torch.matmul(query, keys.mT).gather(-1, wide),
            "select, mul-sum": lambda: (query[:, :, :, None] * rows_of(keys, wide)).sum(-1),
        },
    )
    yield Case(
        f"values looked up {kind}",
        "bhqk,bh[bhqk]d->bhqd",
        (weights, keys, table),
        work,
        visited,
        peers={"select, matmul": lambda: torch.matmul(weights[:, :, :, None], rows_of(keys, wide))[:, :, :, 0]},
    )


def given_keys(k: int) -> Iterator[Case]:
    """Stored keys, a list for all queries, an expanded one, all rows."""
    query, keys, weights, work = random(B, 1, Q, D), random(B, 1, N, D), random(B, 1, Q, k), B * Q * k * D
    stored = random(B, 1, Q, k, D)
    for name, equation, first in (
        ("scores", "bhqd,bhqkd->bhqk", query),
        ("values", "bhqk,bhqkd->bhqd", weights),
    ):
        peers = {"einsum": lambda equation=equation, first=first: torch.einsum(equation, first, stored)}
        yield Case(f"{name} stored k={k}", equation, (first, stored), work, peers=peers)
    shared = keys[:, :, :k].contiguous()
    expanded = shared[:, :, None].expand(B, 1, Q, k, D)
    for name, equation, rows in (
        (f"scores shared k={k}", "bhqd,bhkd->bhqk", shared),
        (f"scores expanded k={k}", "bhqd,bhqkd->bhqk", expanded),
        (f"scores all n={N}", "bhqd,bhnd->bhqn", keys),
    ):
        peers = {"einsum": lambda equation=equation, rows=rows: torch.einsum(equation, query, rows)}
        yield Case(name, equation, (query, rows), B * Q * rows.shape[-2] * D, peers=peers)


def far_rows(name: str, queries: int, k: int, rows: int, d: int) -> Iterator[Case]:
    """Rows out of one set for all queries."""
    query, keys = random(queries, d), random(rows, d)
    table, work = torch.randint(0, rows, (queries, k), device="cuda"), queries * k * d
    peers = {"select, bmm": lambda: torch.bmm(keys[table], query[:, :, None])[:, :, 0]}
    yield Case(f"{name} {queries}x{k} of {rows}x{d}", "qd,[qk]d->qk", (query, keys, table), work, work * 4, peers=peers)


def embedding_bag() -> Iterator[Case]:
    bags, k, rows, d = 65536, 32, 100000, 64
    table, weights, ids = random(rows, d), random(bags, k), torch.randint(0, rows, (bags, k), device="cuda")
    bag = torch.nn.functional.embedding_bag
    peers = {"embedding_bag": lambda: bag(ids, table, per_sample_weights=weights, mode="sum")}
    work = bags * k * d
    name = f"embedding-bag {bags}x{k} of {rows}x{d}"
    yield Case(name, "qk,[qk]d->qd", (weights, table, ids), work, work * 4, peers=peers)


def sparse_times_dense() -> Iterator[Case]:
    entries, rows, d = 2_000_000, 100_000, 64
    values, dense = random(entries), random(rows, d)
    column, row = (torch.randint(0, rows, (entries,), device="cuda") for _ in range(2))
    order = row.argsort(stable=True)
    starts = torch.searchsorted(row[order], torch.arange(rows + 1, device="cuda"))
    compressed = torch.sparse_csr_tensor(starts, column[order], values[order], (rows, rows))
    yield Case(
        f"spmm-coo {entries} entries {rows}x{d}",
        "e,[e]d->[e]d",
        (values, dense, column, row),
        entries * d,
        entries * d * 4,
        sizes={"[e]": rows},
        peers={
            "index_add": lambda: torch.zeros_like(dense).index_add_(0, row, values[:, None] * dense[column]),
            "sorted before, CSR": lambda: compressed @ dense,
        },
    )


def experts() -> Iterator[Case]:
    tokens, count, d, f = 4096, 16, 256, 512
    x, weights = random(tokens, d, dtype=torch.bfloat16), random(count, d, f, dtype=torch.bfloat16)
    expert = torch.randint(0, count, (tokens,), device="cuda")
    peers = {"select, bmm": lambda: torch.bmm(x[:, None], weights[expert])[:, 0]}
    name = f"moe {tokens} tokens {count}x{d}x{f} bfloat16"
    yield Case(name, "td,[t]df->tf", (x, weights, expert), tokens * d * f, peers=peers)


def plain() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for m in (1000, 4096):
            a, b = random(m, m, dtype=dtype), random(m, m, dtype=dtype)
            name = f"gemm {m} {name_of(dtype)}"
            yield Case(name, "ij,jk->ik", (a, b), m**3, peers={"matmul": lambda a=a, b=b: a @ b})
    a = random(4096, 4096)
    yield Case("permute 4096x4096", "ij->ji", (a,), 0, peers={"contiguous": lambda: a.mT.contiguous()})
    yield Case("sum rows 4096x4096", "ij->i", (a,), 0, peers={"sum": lambda: a.sum(1)})
    yield Case("sum columns 4096x4096", "ij->j", (a,), 0, peers={"sum": lambda: a.sum(0)})
    yield Case("sum all 4096x4096", "ij->", (a,), 0, peers={"sum": lambda: a.sum()})


def every_case() -> Iterator[Case]:
    for table_dtype in (torch.int64, torch.int32):
        for k in LISTS:
            yield from looked_up(k, torch.float32, table_dtype)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        yield from looked_up(100, dtype, torch.int64)
    yield from given_keys(100)
    yield from far_rows("raft-lookup", 7040, 81, 7040, 256)
    yield from far_rows("rerank", 10000, 100, 200000, 96)
    yield from embedding_bag()
    yield from sparse_times_dense()
    yield from experts()
    yield from plain()


def replayed_us(call: Callable) -> float:
    """Microseconds of a call on the GPU alone."""
    # Libraries take their workspaces in the first call on a stream, which must not be the captured one.
    with torch.cuda.stream(torch.cuda.Stream()):
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        once = time.perf_counter() - start
    calls = int(max(1, min(CALLS, BUDGET_S / ROUNDS / once)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(ROUNDS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / calls)
    return sorted(times)[ROUNDS // 2]


@dataclass
class Machine:
    """What this GPU does, measured: bytes and operations a microsecond, microseconds of a launch."""

    name: str
    l2_bytes: int
    launch_us: float
    memory: float
    cached: float
    flops: dict[str, float]

    @classmethod
    def measured(cls) -> "Machine":
        about = torch.cuda.get_device_properties(0)

        def copying(count: int) -> float:
            source = torch.ones(count, device="cuda")
            target = torch.empty_like(source)
            return 2 * 4 * count / replayed_us(lambda: target.copy_(source))

        def multiplying(m: int, dtype: torch.dtype) -> float:
            a, b = random(m, m, dtype=dtype), random(m, m, dtype=dtype)
            return 2 * m**3 / replayed_us(lambda: a @ b)

        one = torch.zeros(1, device="cuda")
        sizes = {torch.float32: 4096, torch.float64: 4096, torch.float16: 8192, torch.bfloat16: 8192}
        return cls(
            about.name,
            about.L2_cache_size,
            replayed_us(lambda: one.add_(1)),
            copying(1 << 28),
            copying(about.L2_cache_size // 32),
            {name_of(dtype): multiplying(m, dtype) for dtype, m in sizes.items()},
        )

    def floor_us(self, case: Case, result: torch.Tensor) -> float:
        bytes_ = sum(distinct_bytes(array) for array in (*case.operands, result))
        rate = self.cached if bytes_ < 0.6 * self.l2_bytes else self.memory
        return max(self.launch_us, bytes_ / rate, 2 * case.multiply_adds / self.flops[name_of(result.dtype)])


def distinct_bytes(array: torch.Tensor) -> int:
    """Bytes of the elements, those that stride 0 repeats counted once."""
    lengths = (length for length, stride in zip(array.shape, array.stride()) if stride != 0)
    return math.prod(lengths) * array.element_size()


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.double()
    return float((result.double() - expected).abs().max() / expected.abs().max())


def timed(case: Case, machine: Machine, with_peers: bool) -> dict:
    """A row of the report."""
    row: dict = {"case": case.name, "equation": case.equation, "peers": {}, "errors": {}, "ok": True}
    result = case.call()
    row["floor_us"] = machine.floor_us(case, result)
    for name, peer in case.peers.items() if with_peers else ():
        try:
            if "max_error" not in row:
                row["max_error"], row["compared_with"] = relative_error(result, peer()), name
                row["ok"] = row["max_error"] <= TOLERANCE[result.dtype]
            row["peers"][name] = replayed_us(peer)
        except RuntimeError as error:
            # Such as no memory, or what cannot be captured.
            row["errors"][name] = str(error).splitlines()[0]
            torch.cuda.synchronize()
    del result
    row["us"] = replayed_us(case.call)
    row["share_of_floor"] = row["floor_us"] / row["us"]
    row["visited_bytes_per_us"] = case.visited and case.visited / row["us"]
    return row


def host_us(call: Callable) -> float:
    """Microseconds that an eager call keeps the host, the best of many."""
    best = math.inf
    for _ in range(30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            call()
        best = min(best, (time.perf_counter() - start) / 20 * 1e6)
    return best


def host_times() -> dict[str, float]:
    query, keys, table = random(B, 1, Q, D), random(B, 1, N, D), lists(10)
    shared = keys[:, :, :10].contiguous()
    return {
        "einfall.einsum, looked up": host_us(lambda: einfall.einsum("bhqd,bh[bhqk]d->bhqk", query, keys, table)),
        "einfall.einsum, shared": host_us(lambda: einfall.einsum("bhqd,bhkd->bhqk", query, shared)),
        "torch.einsum, shared": host_us(lambda: torch.einsum("bhqd,bhkd->bhqk", query, shared)),
        "torch.matmul, shared": host_us(lambda: torch.matmul(query, shared.mT)),
    }


def line(row: dict) -> str:
    rate = row["visited_bytes_per_us"]
    visited = f"{rate / 1e6:6.2f}" if rate else " " * 6
    peers = [f"{name} {us:.1f}" for name, us in row["peers"].items()]
    peers += [f"{name}: {why[:50]}" for name, why in row["errors"].items()]
    wrong = "" if row["ok"] else f"WRONG by {row['max_error']:.2g}  "
    figures = f"{row['us']:9.2f} {row['floor_us']:8.2f} {row['share_of_floor']:6.0%} {visited}"
    return f"{row['case']:44} {figures}  {wrong}{'; '.join(peers)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="where to write everything as JSON")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose name has one of these words")
    parser.add_argument("--no-peers", action="store_true", help="einfall alone; nothing is compared then")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        machine = Machine.measured()
        print(f"{machine.name}, torch {torch.__version__}, einfall {einfall.__version__}")
        print(
            f"measured: copies {machine.memory / 1e6:.2f} TB/s, in the L2 {machine.cached / 1e6:.2f} TB/s; "
            + "matrix products "
            + ", ".join(f"{name} {rate / 1e6:.0f} TFLOP/s" for name, rate in machine.flops.items())
            + f"; a launch {machine.launch_us:.2f} us"
        )
        print(f"{'case':44} {'us':>9} {'floor':>8} {'share':>6} {'TB/s':>6}  torch, us", flush=True)
        rows = []
        for case in every_case():
            if arguments.only and not any(word in case.name for word in arguments.only):
                continue
            try:
                rows.append(timed(case, machine, not arguments.no_peers))
                print(line(rows[-1]), flush=True)
            except Exception as error:  # the others are worth their time
                rows.append({"case": case.name, "ok": False, "failed": f"{type(error).__name__}: {error}"})
                print(f"{case.name:44} FAILED: {str(error).splitlines()[0]}", flush=True)
            del case
            gc.collect()
        hosts = host_times()
    for name, us in hosts.items():
        print(f"{'host, ' + name:44} {us:9.2f}")
    if arguments.json:
        document = {
            "format": 1,
            "torch": torch.__version__,
            "einfall": einfall.__version__,
            "machine": vars(machine),
            "rows": rows,
            "host_us": hosts,
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
