"""kdtool distill: a student from a bundle, with no teacher forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.core.errors import FailureError
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.distill.losses import distillation_loss
from toolkit.formats.bundle import Bundle
from toolkit.formats.dataset import PackedData, pack_command
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model, images_seen
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.knowledge import Knowledge
from toolkit.pipeline.run_folder import earlier_result, forget, keep, timing
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sources import check_source, open_source
from toolkit.pipeline.student_request import open_student_request
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import EpochResult, Trainer
from toolkit.training.run import run_to_end


def distill(
    workspace: Workspace,
    name: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    source: str = "auto",
    compiled: bool = False,
    data_dir: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
    on_start: Callable[[str], None] = lambda line: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    **asked: Any,
) -> dict[str, Any]:
    """Trains a student on a bundle and its cached targets; `asked` are the keywords of `open_student_request`.

    A killed run resumes; a finished one with the same settings is returned as it is. `top1` and `agreement` (percent,
    test split) are the last epoch's, never the best one's. `source` is one of pipeline.sources.SOURCES, `compiled`
    goes through torch.compile. Raises UsageError or FailureError.
    """
    compute = compute_on(device, precision, threads)
    check_source(source)
    request = open_student_request(workspace, compute, compiled=compiled, **asked)
    bundle, knowledge, settings = request.bundle, request.knowledge, request.settings
    check_source(source, bundle.data.plan)
    taken = f"subset {bundle.folder} ({bundle.record.rows:,} rows)"  # said once nothing is wrong with what was asked
    first = ", compiling first: up to a minute" if compiled else ""
    folder = workspace.run(request.name if name is None else name)
    student, finished = folder / "student.pt", folder / "run.json"
    with only_writer(student):
        earlier = earlier_result(finished, settings, force)
        if earlier is not None:
            on_start(taken)
            return earlier
        test_data = _test_data(workspace, bundle, data_dir, progress)
        images_before = images_seen()
        targets = knowledge.targets if knowledge else None
        how = (request.recipe.batch_size, settings["seed"], compute, targets, source, request.weights_m)
        fed = open_source(bundle.images(), bundle.indices_m, bundle.data, *how)
        model = compute.place(build_model(settings["arch"], bundle.data.classes, settings["width"], settings["seed"]))
        if force:
            forget(folder)
        on_start(taken + first)
        loss = distillation_loss(request.asked.alpha, request.asked.temperature)
        run = (request.recipe, request.steps, compute.device, compute.precision, compiled)
        trainer = Trainer(model, fed, loss, *run)
        history = run_to_end(trainer, folder, settings, progress, on_epoch)
        result = {
            "path": str(folder),
            "name": folder.name,
            **{key: settings[key] for key in ("subset", "teacher")},
            **_test_scores(model, test_data, knowledge, compute),
            **{key: settings[key] for key in ("alpha", "temperature", "match", "views", "epochs", "seed")},
            **timing(history, fed.name, trainer.compile_s),
            "teacher_forward_passes": images_seen() - images_before - images_seen(model),
        }
        keep(
            finished,
            student,
            model,
            bundle.data,
            settings,
            result,
            teacher_images_behind_targets=knowledge.record.teacher_images if knowledge else 0,
            student_images=sum(epoch["images"] for epoch in history),
            threads=compute.threads,
            subset={key: value for key, value in asdict(bundle.record).items() if key != "data"},
        )
    return result


def _test_data(workspace: Workspace, bundle: Bundle, data_dir: Path | None, progress: Progress) -> PackedData:
    """The packed test split. Raises FailureError when it is not the one the subset knows."""
    known = bundle.data
    packed = ensure_packed(workspace, known.dataset, data_dir, known.limit, progress=progress)
    if packed.record.test_fingerprint != known.test_fingerprint:
        raise FailureError(
            f"{packed.folder}: its test split ({packed.record.test_fingerprint}) is not the one the subset knows "
            f"({known.test_fingerprint}). Run: {pack_command(known.key)}"
        )
    packed.split("test")  # a damaged one is refused before hours of training, not after
    return packed


def _test_scores(
    model: nn.Module, data: PackedData, knowledge: Knowledge | None, compute: Compute
) -> dict[str, float | None]:
    """`top1`, and `agreement` with the teacher's own predictions (None without a teacher), in percent."""
    test, record = data.split("test"), data.record
    predicted_n = predict(model, test, record.plan, record.mean, record.std, compute.device, compute.precision)
    agreement = None if knowledge is None else top1(predicted_n, knowledge.test_classes)
    return {"top1": top1(predicted_n, test.labels_n), "agreement": agreement}
