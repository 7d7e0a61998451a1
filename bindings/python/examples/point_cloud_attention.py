"""Attention of every point of a cloud to its nearest neighbours, without storing a neighbour's features twice."""

import torch

import einfall


def nearest(points: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest points of each point, itself included."""
    return torch.cdist(points, points).topk(k, largest=False).indices


def attend(query, key, value, offset_bias, table):
    """Softmax attention over the rows that ``table`` selects; ``(h, n, d)`` features, an ``(n, k)`` table."""
    scores = einfall.einsum("hqd,h[qk]d->hqk", query, key, table) * query.shape[-1] ** -0.5
    return einfall.einsum("hqk,h[qk]d->hqd", (scores + offset_bias).softmax(-1), value, table)


def main() -> None:
    torch.manual_seed(0)
    n, heads, d, k = 500, 4, 16, 12
    points = torch.rand(n, 3)
    table = nearest(points, k)
    query, key, value = (torch.randn(heads, n, d, requires_grad=True) for _ in range(3))

    # Distances to the neighbours, looked up by the same table: |p - q|² in three einsums.
    norms = (points**2).sum(-1)
    cross = einfall.einsum("qd,[qk]d->qk", points, points, table)
    distances = norms[:, None] - 2 * cross + einfall.einsum("[qk]->qk", norms, table)
    bias = -distances

    out = attend(query, key, value, bias, table)
    out.square().mean().backward()

    # The same, storing every neighbour of every point.
    keys, values = key.detach()[:, table], value.detach()[:, table]
    weights = (torch.einsum("hqd,hqkd->hqk", query.detach(), keys) * d**-0.5 + bias).softmax(-1)
    expected = torch.einsum("hqk,hqkd->hqd", weights, values)
    torch.testing.assert_close(out.detach(), expected, rtol=1e-4, atol=1e-5)
    print(f"{n} points, {k} neighbours: largest gradient of a key {key.grad.abs().max():.2e}")
    print(einfall.explain("hqd,h[qk]d->hqk", query.detach(), key.detach(), table))


if __name__ == "__main__":
    main()
