"""A layer of a graph network: messages along edges, summed where they arrive, and the same as sparse × dense."""

import numpy as np

import einfall


def layer(features, weight, source, target, edge_weight):
    """``relu(features + Σ over incoming edges of weighted neighbours) @ weight``; features ``(n, d)``, edges ``(e,)``."""
    n = len(features)
    arrived = einfall.einsum("e,[e]d->[e]d", edge_weight, features, source, target, sizes={"[e]": n})
    return np.maximum(einfall.einsum("nd,df->nf", features + arrived, weight), 0)


def main() -> None:
    rng = np.random.default_rng(0)
    n, edges, d, f = 300, 2000, 16, 8
    source, target = rng.integers(0, n, edges), rng.integers(0, n, edges)
    features, weight = rng.normal(size=(n, d)), rng.normal(size=(d, f))
    edge_weight = rng.random(edges)

    out = layer(features, weight, source, target, edge_weight)

    # With a dense adjacency matrix.
    adjacency = np.zeros((n, n))
    np.add.at(adjacency, (target, source), edge_weight)
    np.testing.assert_allclose(out, np.maximum((features + adjacency @ features) @ weight, 0), rtol=1e-9, atol=1e-9)

    # A score for every edge reads both of its ends where they lie.
    scores = einfall.einsum("[e]d,[e]d->e", features, source, features, target)
    np.testing.assert_allclose(scores, (features[source] * features[target]).sum(1), rtol=1e-9, atol=1e-9)
    print(f"{n} nodes, {edges} edges: mean activation {out.mean():.4f}, mean edge score {scores.mean():.4f}")


if __name__ == "__main__":
    main()
