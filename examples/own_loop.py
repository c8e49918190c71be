"""A student of one's own in a plain PyTorch loop, on the rows, views and targets of a subset.

First: kdtool cache-teacher --dataset digits, then kdtool build-subset --dataset digits --frac 0.5
Run: python examples/own_loop.py kdtool-work/subsets/digits-random-0.5-s0 --epochs 30

Nothing here is kdtool's but the batches and the loss. The teacher does not run: its logits come with each batch.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import toolkit


def student(classes: int) -> nn.Module:
    """Any module that maps (b, 3, h, w) to logits (b, classes) will do."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )


def accuracy(network: nn.Module, subset: str) -> float:
    """On the whole test split, in percent."""
    network.eval()
    right = seen = 0
    with torch.inference_mode():
        for images_bchw, labels_b in toolkit.test_batches(subset):
            right += int((network(images_bchw).argmax(dim=1) == labels_b).sum())
            seen += len(labels_b)
    return 100 * right / seen


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a student on a subset and its teacher's logits.")
    parser.add_argument("subset", help="its folder")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--alpha", type=float, default=0.9, help="weight of the teacher")
    parser.add_argument("--temperature", type=float, default=4.0)
    asked = parser.parse_args()

    torch.manual_seed(0)
    loader = toolkit.subset_loader(asked.subset, batch_size=64)
    network = student(classes=int(toolkit.row_labels(asked.subset).max()) + 1)
    network(next(toolkit.test_batches(asked.subset))[0])  # lazy layers learn their size
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)

    for epoch in range(1, asked.epochs + 1):
        network.train()
        losses = []
        for batch in loader:  # each pass is an epoch, with its own views and order
            if batch.logits_bc is None:
                parser.error(f"{asked.subset} holds no teacher's logits. Run kdtool cache-teacher with its --subset")
            logits_bc = network(batch.images_bchw)
            taught = toolkit.soft_target_loss(logits_bc, batch.logits_bc, asked.temperature)
            told = F.cross_entropy(logits_bc, batch.labels_b)
            loss = asked.alpha * taught + (1 - asked.alpha) * told
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}")
    print(f"{accuracy(network, asked.subset):.2f} % of the test split")


if __name__ == "__main__":
    main()
