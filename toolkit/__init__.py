"""kdtool: knowledge distillation on pruned data, from a teacher that runs once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.distill.losses import soft_target_loss
    from toolkit.pipeline.knowledge import subset_loader

__all__ = ["soft_target_loss", "subset_loader"]


def __getattr__(name: str) -> Any:
    """Public functions are imported when first asked for, so that `import toolkit` costs nothing."""
    if name == "subset_loader":
        from toolkit.pipeline.knowledge import subset_loader

        return subset_loader
    if name == "soft_target_loss":
        from toolkit.distill.losses import soft_target_loss

        return soft_target_loss
    raise AttributeError(f"module 'toolkit' has no attribute '{name}'")
