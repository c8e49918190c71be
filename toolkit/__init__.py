"""kdtool: knowledge distillation on pruned data, from a teacher that runs once.

One function for each command of `kdtool --help`, of the same name and parameters: every option, with its default, as
`kdtool COMMAND --help` explains it. They are silent, return what the command prints with --json, and raise UsageError
and FailureError where it ends with exit code 2 and 1; `progress=toolkit.on_stderr` shows what the command line shows.
Beside them: the losses, and loaders for a loop of one's own. docs/python.md has a table and an example.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.core.errors import FailureError as FailureError
    from toolkit.core.errors import KdtoolError as KdtoolError
    from toolkit.core.errors import UsageError as UsageError
    from toolkit.core.interrupts import Stopped as Stopped
    from toolkit.core.progress import Progress as Progress
    from toolkit.core.progress import on_stderr as on_stderr
    from toolkit.core.versions import __version__ as __version__
    from toolkit.distill.decoupled import dkd_loss as dkd_loss
    from toolkit.distill.losses import distillation_loss as distillation_loss
    from toolkit.distill.plain import mse_loss as mse_loss
    from toolkit.distill.plain import pseudo_label_loss as pseudo_label_loss
    from toolkit.distill.relational import dist_loss as dist_loss
    from toolkit.distill.soft_targets import soft_target_loss as soft_target_loss
    from toolkit.distill.soft_targets import standardised_loss as standardised_loss
    from toolkit.pipeline.cache import cache_teacher as cache_teacher
    from toolkit.pipeline.compare import compare as compare
    from toolkit.pipeline.data import pack as pack
    from toolkit.pipeline.doctor import doctor as doctor
    from toolkit.pipeline.evaluate import evaluate as evaluate
    from toolkit.pipeline.export import export as export
    from toolkit.pipeline.export import load_network as load_network
    from toolkit.pipeline.import_logits import import_logits as import_logits
    from toolkit.pipeline.inspect import inspect as inspect
    from toolkit.pipeline.knowledge import subset_loader as subset_loader
    from toolkit.pipeline.listing import ls as ls
    from toolkit.pipeline.noise import noise as noise
    from toolkit.pipeline.report import report as report
    from toolkit.pipeline.runs import runs as runs
    from toolkit.pipeline.score import score as score
    from toolkit.pipeline.show import show as show
    from toolkit.pipeline.shown import row_labels as row_labels
    from toolkit.pipeline.shown import slot_images as slot_images
    from toolkit.pipeline.shown import test_batches as test_batches
    from toolkit.pipeline.student import distill as distill
    from toolkit.pipeline.subset import build_subset as build_subset
    from toolkit.pipeline.subset import list_methods as list_methods
    from toolkit.pipeline.sweep.command import sweep as sweep
    from toolkit.pipeline.teacher import train_teacher as train_teacher
    from toolkit.pipeline.verify import verify_cache as verify_cache
    from toolkit.pipeline.views import views as views
    from toolkit.training.loop import EpochResult as EpochResult

COMMANDS = {
    "doctor": "pipeline.doctor",
    "pack": "pipeline.data",
    "noise": "pipeline.noise",
    "train_teacher": "pipeline.teacher",
    "cache_teacher": "pipeline.cache",
    "import_logits": "pipeline.import_logits",
    "verify_cache": "pipeline.verify",
    "views": "pipeline.views",
    "score": "pipeline.score",
    "build_subset": "pipeline.subset",
    "show": "pipeline.show",
    "compare": "pipeline.compare",
    "distill": "pipeline.student",
    "sweep": "pipeline.sweep.command",
    "runs": "pipeline.runs",
    "report": "pipeline.report",
    "evaluate": "pipeline.evaluate",
    "export": "pipeline.export",
    "ls": "pipeline.listing",
    "inspect": "pipeline.inspect",
}
_LIES_IN = {
    **COMMANDS,
    "list_methods": "pipeline.subset",
    "load_network": "pipeline.export",
    "row_labels": "pipeline.shown",
    "slot_images": "pipeline.shown",
    "subset_loader": "pipeline.knowledge",
    "test_batches": "pipeline.shown",
    "dist_loss": "distill.relational",
    "distillation_loss": "distill.losses",
    "dkd_loss": "distill.decoupled",
    "mse_loss": "distill.plain",
    "pseudo_label_loss": "distill.plain",
    "soft_target_loss": "distill.soft_targets",
    "standardised_loss": "distill.soft_targets",
    "FailureError": "core.errors",
    "KdtoolError": "core.errors",
    "Stopped": "core.interrupts",
    "UsageError": "core.errors",
    "EpochResult": "training.loop",
    "Progress": "core.progress",
    "on_stderr": "core.progress",
    "__version__": "core.versions",
}
__all__ = list(_LIES_IN)


if not TYPE_CHECKING:  # which would take every misspelt name for one that this function finds

    def __getattr__(name: str) -> Any:
        """Public names are imported when first asked for, so that `import toolkit` costs nothing."""
        if name not in _LIES_IN:
            raise AttributeError(f"module 'toolkit' has no attribute '{name}'")
        return getattr(import_module(f"toolkit.{_LIES_IN[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class _Toolkit(ModuleType):
    """Three commands are called as rooms are: whoever imports toolkit.distill.losses would find the room bound over
    toolkit.distill, the function. `from toolkit.distill.losses import …` reaches the rooms all the same."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _LIES_IN):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Toolkit
