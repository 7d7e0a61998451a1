"""Attention to a window around each position: the keys of neighbouring queries overlap, and none is stored twice."""

import numpy as np

import einfall


def attend(query, key, value, reach):
    """Attention of position q to the positions q-reach … q+reach; features ``(b, h, n, d)``."""
    n, width = query.shape[2], 2 * reach + 1
    sizes = {"w": width}
    scores = einfall.einsum(f"bhqd,bh[q+w-{reach}]d->bhqw", query, key, sizes=sizes) * query.shape[-1] ** -0.5
    # Positions outside are left out of the sums; they must not get a weight either.
    position = np.arange(n)[:, None] + np.arange(width) - reach
    scores[..., (position < 0) | (position >= n)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return einfall.einsum(f"bhqw,bh[q+w-{reach}]d->bhqd", weights, value)


def main() -> None:
    rng = np.random.default_rng(0)
    b, h, n, d, reach = 2, 3, 200, 16, 5
    query, key, value = (rng.normal(size=(b, h, n, d)) for _ in range(3))
    out = attend(query, key, value, reach)

    # All scores, and a mask.
    scores = np.einsum("bhqd,bhkd->bhqk", query, key) * d**-0.5
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    scores[..., distance > reach] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(out, np.einsum("bhqk,bhkd->bhqd", weights, value), rtol=1e-9, atol=1e-12)

    flops = [einfall.explain("bhqd,bhkd->bhqk", query, key), None]
    flops[1] = einfall.explain(f"bhqd,bh[q+w-{reach}]d->bhqw", query, key, sizes={"w": 2 * reach + 1})
    dense, window = (report.to_dict()["total"]["flops"] for report in flops)
    print(f"scores: {dense / 1e6:.2f} MFLOP for all keys, {window / 1e6:.2f} for the window")


if __name__ == "__main__":
    main()
