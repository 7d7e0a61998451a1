"""Times einfall on networks of 50 to 2000 operands beside opt_einsum and cotengra, both with torch:
python networks.py [--only WORD ...] [--rounds 3] [--no-peers] [--json FILE] [--list]

Instances come from the generators of `einsum-benchmark`: lattices, random regular graphs, matrix product states, language
models, trees and matrix chains. "First" is a call that has everything before it: the order is found, the plan is made, the
network is contracted; "kept" is the contraction alone, with the plan kept. Engines take turns, the best of some rounds
counts, and labels are renamed before every first call, so that nobody finds it in a cache. cotengra is asked twice, for its
default and for a search of a second, as an expert would. What takes more than LIMIT multiply-adds or LARGEST elements is
not run, and left out of the means. Elements are positive and scaled, so that the result is about 1 and nothing cancels;
results must agree to TOLERANCE. The exit code is 1 if one does not.

flops: log10 of the multiply-adds of the order; size: log2 of the elements of its largest intermediate result.
"""

import argparse
import json
import math
import sys
import time

import cotengra
import numpy as np
import opt_einsum
import torch
from einsum_benchmark.generators.language_model import p_first_and_last, sliding_likelihood
from einsum_benchmark.generators.quantum_computing import matrix_product_state
from einsum_benchmark.generators.random import regular
from einsum_benchmark.generators.structured import lattice, matrix_chain, tree

import einfall

TOLERANCE = 1e-4
LIMIT, LARGEST = 3e11, 2**28
SLOW_S = 2.0

INSTANCES = {
    "lattice 8x8": lambda: lattice([8, 8], d_min=2, d_max=4, seed=1),
    "lattice 5x40": lambda: lattice([5, 40], d_min=2, d_max=6, seed=2),
    "lattice 4x4x4": lambda: lattice([4, 4, 4], d_min=2, d_max=2, seed=3),
    "lattice 16x16": lambda: lattice([16, 16], d_min=2, d_max=2, seed=4),
    "lattice 4x250": lambda: lattice([4, 250], d_min=2, d_max=4, seed=5),
    "regular 50": lambda: regular(50, 3, 2, 4, seed=1),
    "regular 80": lambda: regular(80, 3, 2, 3, seed=2),
    "regular 120": lambda: regular(120, 3, 2, 2, seed=3),
    "regular 4, 50": lambda: regular(50, 4, 2, 2, seed=4),
    "mps 30": lambda: matrix_product_state(30, 10, 200, 20, seed=1),
    "mps 100": lambda: matrix_product_state(100, 2, 20, 64, seed=2),
    "mps 500": lambda: matrix_product_state(500, 2, 4, 16, seed=3),
    "mps 1000": lambda: matrix_product_state(1000, 2, 2, 4, seed=4),
    "model 52 ends": lambda: p_first_and_last(3, 3, 11),
    "model 240 ends": lambda: p_first_and_last(5, 2, 2),
    "model 84 batch": lambda: sliding_likelihood(3, 3, 8, 10),
    "model 180 batch": lambda: sliding_likelihood(4, 2, 8, 100),
    "tree 100": lambda: tree(100, 4, 12, 2, seed=1),
    "tree 500": lambda: tree(500, 4, 12, 2, seed=2),
    "tree 2000": lambda: tree(2000, 2, 8, 2, seed=3),
    "chain 50": lambda: matrix_chain(50, 10, 1000, True, seed=1),
    "chain 200": lambda: matrix_chain(200, 10, 300, True, seed=2),
    "chain 1000": lambda: matrix_chain(1000, 10, 100, True, seed=3),
}

LETTERS = [chr(c) for c in range(0x4E00, 0x4E00 + 12000)]


class Instance:
    """A network over numbered labels, its arguments, and its equation with other letters each time."""

    def __init__(self, text: str, shapes) -> None:
        inputs, output = text.split("->")
        numbers: dict[str, int] = {}
        read = lambda term: [numbers.setdefault(c, len(numbers)) for c in term]
        self.inputs = [read(term) for term in inputs.split(",")]
        self.output = read(output)
        self.lens = {l: int(n) for term, shape in zip(self.inputs, shapes) for l, n in zip(term, shape)}
        uses = [0] * len(numbers)
        for term in self.inputs:
            for l in term:
                uses[l] += 1
        rng = np.random.default_rng(0)
        self.arrays = []
        for term in self.inputs:
            shape = [self.lens[l] for l in term]
            scale = math.prod(self.lens[l] ** (-1 / uses[l]) for l in term if l not in self.output)
            self.arrays.append(torch.from_numpy((rng.uniform(0.5, 1.5, shape) * scale).astype(np.float32)))
        self.turn = 0

    def text(self) -> str:
        """The equation in letters that nobody has seen."""
        self.turn += 1
        name = lambda term: "".join(LETTERS[(l + 7 * self.turn) % len(LETTERS)] for l in term)
        return ",".join(map(name, self.inputs)) + "->" + name(self.output)

    def measure(self, path) -> tuple[float, float]:
        """Multiply-adds of a path as opt_einsum writes it, and its largest intermediate result."""
        uses: dict[int, int] = {}
        for l in [l for term in self.inputs for l in set(term)] + self.output:
            uses[l] = uses.get(l, 0) + 1
        # A label that one operand has alone is summed on the way to its first pair, by everybody.
        left = [{l for l in term if uses[l] > 1} for term in self.inputs]
        work = largest = 0.0
        for step in path:
            taken = [left[at] for at in step]
            left = [s for at, s in enumerate(left) if at not in set(step)]
            every = set().union(*taken)
            for s in taken:
                for l in s:
                    uses[l] -= 1
            kept = {l for l in every if uses[l] > 0}
            for l in kept:
                uses[l] += 1
            if len(step) > 1:
                work += math.prod(self.lens[l] for l in every)
                largest = max(largest, math.prod(self.lens[l] for l in kept))
            left.append(kept)
        return work, largest


class Engine:
    """`find()` is an equation and a path or a plan, `run(found)` the result."""

    def __init__(self, name, find, run, path, rounds=None):
        self.name, self.find, self.run, self.path, self.rounds = name, find, run, path, rounds
        self.first = self.kept = self.search = math.inf
        self.result = self.work = self.size = None
        self.note = ""


def engines(case: Instance, wanted: bool, hyper: float) -> list[Engine]:
    arrays = case.arrays
    shapes = [tuple(a.shape) for a in arrays]

    def ours(optimize):
        def find():
            return einfall.plan(case.text(), *arrays, optimize=optimize)

        def path(_found):
            return einfall.contract_path(case.text(), *arrays, optimize=optimize)[0]

        name = "einfall" if optimize == "auto" else f"einfall {optimize}"
        return Engine(name, find, lambda plan: plan(*arrays), path)

    found = [ours("auto"), ours("auto-hq")]
    if not wanted:
        return found

    def oe(optimize):
        def find():
            text = case.text()
            path, _ = opt_einsum.contract_path(text, *shapes, shapes=True, optimize=optimize)
            return text, path

        def run(found):
            if len(found) == 2:
                return opt_einsum.contract(found[0], *arrays, optimize=found[1], backend="torch")
            return found[2](*arrays, backend="torch")

        engine = Engine(f"oe {optimize}", find, run, lambda found: found[1])
        engine.keep = lambda found: (*found, opt_einsum.contract_expression(found[0], *shapes, optimize=found[1]))
        return engine

    def ctg(name, make, rounds=None):
        def find():
            text = case.text()
            left, right = text.split("->")
            sizes = {c: n for term, shape in zip(left.split(","), shapes) for c, n in zip(term, shape)}
            tree = cotengra.array_contract_tree(left.split(","), right, sizes, optimize=make())
            return (tree,)

        return Engine(name, find, lambda found: found[0].contract(arrays), lambda found: found[0].get_ssa_path(), rounds)

    slow = dict(max_time=hyper, max_repeats=10**6, parallel=False, progbar=False, minimize="flops")
    found += [
        oe("auto"),
        oe("auto-hq"),
        ctg("ctg auto", lambda: cotengra.AutoOptimizer()),
        ctg("ctg hyper", lambda: cotengra.HyperOptimizer(**slow), 1),
    ]
    return found


def from_ssa(path, operands: int):
    """opt_einsum's form of a path whose results have numbers of their own."""
    ids = list(range(operands))
    linear = []
    for number, step in enumerate(path):
        places = sorted(ids.index(at) for at in step)
        linear.append(tuple(places))
        for place in reversed(places):
            ids.pop(place)
        ids.append(operands + number)
    return linear


def once(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def time_case(case: Instance, found: list[Engine], rounds: int) -> None:
    plans = {}
    for turn in range(rounds):
        for engine in found:
            if engine.note or (turn and (engine.first > SLOW_S or engine.rounds is not None and turn >= engine.rounds)):
                continue
            search, plan = once(engine.find)
            engine.search = min(engine.search, search)
            plans[engine.name] = plan
            if engine.work is None:
                path = engine.path(plan)
                path = from_ssa(path, len(case.inputs)) if engine.name.startswith("ctg") else path
                engine.work, engine.size = case.measure(path)
            if engine.work > LIMIT or engine.size > LARGEST:
                engine.note = "too large, not run"
                continue
            seconds, result = once(lambda: engine.run(plan))
            engine.first, engine.result = min(engine.first, search + seconds), result
    for turn in range(3 * rounds):
        for engine in found:
            if engine.note or turn and engine.kept > SLOW_S / rounds:
                continue
            if turn == 0 and hasattr(engine, "keep"):
                plans[engine.name] = engine.keep(plans[engine.name])
            seconds, _ = once(lambda: engine.run(plans[engine.name]))
            engine.kept = min(engine.kept, seconds)


def geometric(ratios) -> float:
    ratios = list(ratios)
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="instances of these names, or whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--hyper", type=float, default=1.0, help="seconds of cotengra's long search")
    parser.add_argument("--json", help="append one line an instance to this file")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    asked = lambda name: name in options.only or any(word in name and word not in INSTANCES for word in options.only)
    names = [name for name in INSTANCES if asked(name)]
    if options.list:
        print("\n".join(names))
        return 0
    wrong, ratios = 0, {}
    for name in names:
        case = Instance(*INSTANCES[name]())
        # Imports, threads and allocators are warmed up by each on something small.
        found = engines(case, not options.no_peers, options.hyper)
        time_case(case, found, options.rounds)
        ours = found[0]
        reference = ours.result.to(torch.float64) if ours.result is not None else None
        print(f"{name}: {len(case.inputs)} operands, {len(case.lens)} labels")
        for engine in found:
            note = engine.note
            if engine.result is not None and reference is not None:
                error = ((engine.result.to(torch.float64) - reference).abs().max() / reference.abs().max()).item()
                if not error <= TOLERANCE:
                    note, wrong = f"{note} DIFFERS by {error:.1e}", wrong + 1
            print(
                f"  {engine.name:15} first {engine.first * 1e3:9.2f} ms, order and plan {engine.search * 1e3:9.2f}, "
                f"kept {engine.kept * 1e3:9.3f}, flops {math.log10(engine.work or 1):5.2f}, "
                f"size {math.log2(max(engine.size or 1, 1)):5.1f}, "
                f"x{engine.first / ours.first:7.2f} x{engine.kept / ours.kept:7.2f} {note}",
                flush=True,
            )
            if not engine.note and not ours.note:
                ratios.setdefault(engine.name, []).append((engine.first / ours.first, engine.kept / ours.kept))
        peers = [engine for engine in found if not engine.name.startswith("einfall")]
        if not ours.note and any(math.isfinite(engine.first) for engine in peers):
            best = min(engine.first for engine in peers), min(engine.kept for engine in peers)
            ratios.setdefault("best peer", []).append((best[0] / ours.first, best[1] / ours.kept))
            # A plan that is kept is worth a long search.
            ratios.setdefault("best peer, auto-hq", []).append((best[0] / found[1].first, best[1] / found[1].kept))
        if options.json:
            rows = {e.name: [e.first, e.search, e.kept, e.work, e.size, e.note] for e in found}
            with open(options.json, "a") as file:
                print(json.dumps({"name": name, "operands": len(case.inputs), "engines": rows}), file=file)
    for name, pairs in ratios.items():
        if name != "einfall":
            first, kept = geometric(a for a, _ in pairs), geometric(b for _, b in pairs)
            print(f"{name:18} over {len(pairs)}: first x{first:.2f}, kept x{kept:.2f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
