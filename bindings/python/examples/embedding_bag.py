"""A weighted embedding bag with lists of different lengths, trained: -1 pads a short list and is left out."""

import torch

import einfall


class EmbeddingBag(torch.nn.Module):
    """``Σ_k weight[b, k] · rows[ids[b, k]]``, for ``ids`` padded with -1."""

    def __init__(self, count: int, d: int) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.randn(count, d) / d**0.5)

    def forward(self, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return einfall.einsum("bk,[bk]d->bd", weights, self.rows, ids, bounds="skip")


def main() -> None:
    torch.manual_seed(0)
    bag, batch, k = EmbeddingBag(1000, 32), 64, 10
    lengths = torch.randint(1, k + 1, (batch,))
    ids = torch.randint(0, 1000, (batch, k))
    ids[torch.arange(k) >= lengths[:, None]] = -1
    weights = torch.rand(batch, k)

    reference = torch.nn.EmbeddingBag.from_pretrained(bag.rows.detach().clone(), freeze=False, mode="sum")
    kept = ids >= 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)[:-1]])
    expected = reference(ids[kept], offsets, per_sample_weights=weights[kept])

    found = bag(ids, weights)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(bag.rows.grad, reference.weight.grad, rtol=1e-4, atol=1e-5)

    goal, optimizer = torch.randn(batch, 32), torch.optim.Adam(bag.parameters(), lr=0.1)
    for step in range(60):
        optimizer.zero_grad()
        loss = (bag(ids, weights) - goal).square().mean()
        loss.backward()
        optimizer.step()
        if step in (0, 59):
            print(f"step {step}: loss {loss.item():.4f}")
    assert loss < 0.1


if __name__ == "__main__":
    main()
