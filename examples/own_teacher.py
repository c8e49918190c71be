"""A teacher that is no PyTorch network: two of scikit-learn's classifiers together, kept as a teacher of kdtool's.

First: kdtool pack --dataset digits
Run: python examples/own_teacher.py kdtool-work/data/digits --out ensemble
Then: kdtool import-logits --dataset digits --name ensemble --logits ensemble/logits.npy --test-logits ensemble/test.npy
Then: kdtool build-subset --dataset digits --frac 0.5 --teacher ensemble --name taught
Then: kdtool distill --subset taught --teacher ensemble --epochs 30

It shows the way and gains nothing here: its student had 96.90 % in a trial, one without a teacher (--alpha 0) 99.15 %.
Of a network, an API or another framework only `Ensemble` would differ: what it is shown is `toolkit.slot_images`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression

import toolkit


class Ensemble:
    """Fitted on the training rows as they are; its logits are the logarithms of its mean probabilities."""

    def __init__(self, images_nhwc: np.ndarray, labels_n: np.ndarray) -> None:
        self.members = [ExtraTreesClassifier(200, random_state=0), LogisticRegression(max_iter=1000)]
        for member in self.members:
            member.fit(flat(images_nhwc), labels_n)

    def logits(self, images_nhwc: np.ndarray) -> np.ndarray:
        """(n, h, w, 3) uint8 to (n, c) float32."""
        mean_nc = np.mean([member.predict_proba(flat(images_nhwc)) for member in self.members], axis=0)
        return np.log(np.maximum(mean_nc, 1e-6)).astype(np.float32)


def flat(images_nhwc: np.ndarray) -> np.ndarray:
    return images_nhwc.reshape(len(images_nhwc), -1) / 255


def shown(folder: Path, slot: int, split: str = "train") -> np.ndarray:
    """What kdtool shows in a slot, all rows in order: (n, h, w, 3) uint8. Larger data go batch by batch."""
    return np.concatenate([images_bhwc for images_bhwc, rows_b in toolkit.slot_images(folder, slot, split)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an ensemble's logits for kdtool import-logits.")
    parser.add_argument("data", type=Path, help="folder of packed data")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npy files")
    parser.add_argument("--slots", type=int, default=4, help="views of each row")
    asked = parser.parse_args()

    teacher = Ensemble(shown(asked.data, 0), toolkit.row_labels(asked.data))
    logits_knc = np.stack([teacher.logits(shown(asked.data, slot)) for slot in range(asked.slots)])
    test_mc = teacher.logits(shown(asked.data, 0, "test"))
    asked.out.mkdir(exist_ok=True)
    np.save(asked.out / "logits.npy", logits_knc)
    np.save(asked.out / "test.npy", test_mc)
    right_m = test_mc.argmax(axis=1) == toolkit.row_labels(asked.data, "test")
    print(f"{asked.out}: {asked.slots} slots; the ensemble has {100 * right_m.mean():.2f} % of the test split")


if __name__ == "__main__":
    main()
