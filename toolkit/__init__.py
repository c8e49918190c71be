"""kdtool: knowledge distillation on pruned data, from a teacher that runs once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.distill.decoupled import dkd_loss
    from toolkit.distill.losses import distillation_loss
    from toolkit.distill.plain import mse_loss, pseudo_label_loss
    from toolkit.distill.relational import dist_loss
    from toolkit.distill.soft_targets import soft_target_loss, standardised_loss
    from toolkit.pipeline.export import load_network
    from toolkit.pipeline.knowledge import subset_loader
    from toolkit.pipeline.shown import row_labels, slot_images, test_batches

__all__ = [
    "dist_loss",
    "distillation_loss",
    "dkd_loss",
    "load_network",
    "mse_loss",
    "pseudo_label_loss",
    "row_labels",
    "slot_images",
    "soft_target_loss",
    "standardised_loss",
    "subset_loader",
    "test_batches",
]

_LIES_IN = {
    "dist_loss": "toolkit.distill.relational",
    "distillation_loss": "toolkit.distill.losses",
    "dkd_loss": "toolkit.distill.decoupled",
    "load_network": "toolkit.pipeline.export",
    "mse_loss": "toolkit.distill.plain",
    "pseudo_label_loss": "toolkit.distill.plain",
    "row_labels": "toolkit.pipeline.shown",
    "slot_images": "toolkit.pipeline.shown",
    "soft_target_loss": "toolkit.distill.soft_targets",
    "standardised_loss": "toolkit.distill.soft_targets",
    "subset_loader": "toolkit.pipeline.knowledge",
    "test_batches": "toolkit.pipeline.shown",
}


def __getattr__(name: str) -> Any:
    """Public functions are imported when first asked for, so that `import toolkit` costs nothing."""
    if name not in _LIES_IN:
        raise AttributeError(f"module 'toolkit' has no attribute '{name}'")
    return getattr(import_module(_LIES_IN[name]), name)
