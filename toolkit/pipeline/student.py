"""kdtool distill: a student from a bundle, with no teacher forward pass. Shapes: m rows, k slots, c classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import checked_seed
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import Recipe, resolve_recipe
from toolkit.distill.losses import distillation_loss, tail_weights
from toolkit.distill.settings import DistillSettings
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.dataset import PackedData, pack_command
from toolkit.formats.encodings import TopLogits
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model, images_seen
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.knowledge import Knowledge, load_knowledge
from toolkit.pipeline.run_folder import compiled_settings, earlier_result, forget, keep, timing, trained_name
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sources import check_source, open_source
from toolkit.selection.methods import METHODS
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import EpochResult, Trainer
from toolkit.training.run import run_to_end


def distill(
    workspace: Workspace,
    subset: str | None = None,
    teacher: str | None = None,
    arch: str = "resnet8",
    width: int = 16,
    recipe: str = "fast",
    epochs: int | None = None,
    iterations: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    alpha: float = 1.0,
    temperature: float = 4.0,
    match: str = "exact",
    views: int | None = None,
    weights: bool = False,
    seed: int = 0,
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
) -> dict[str, Any]:
    """Trains a student on a bundle (default: the newest) and its cached targets; `views` uses only the first few slots,
    `weights` counts each row as the method of selection says.

    `iterations`, instead of `epochs`, ends the run after that many steps. A killed run resumes; a finished one with
    the same settings is returned as it is. `top1` and `agreement` (percent, test split) are the last epoch's, never the
    best one's. `source` is one of pipeline.sources.SOURCES, `compiled` goes through torch.compile. Raises UsageError or
    FailureError.
    """
    asked = DistillSettings(alpha, temperature, match, iterations)
    compute = compute_on(device, precision, threads)
    settled = resolve_recipe(recipe, epochs, batch_size, lr)
    checked_seed(seed)
    check_source(source)
    if epochs is not None and iterations is not None:
        raise UsageError(f"--epochs {epochs} and --iterations {iterations} both say how long: give one of them")
    bundle = open_bundle(workspace.subset(subset) if subset is not None else workspace.newest_subset())
    taken = f"subset {bundle.folder} ({bundle.record.rows:,} rows)"  # said once nothing is wrong with what was asked
    first = ", compiling first: up to a minute" if compiled else ""
    check_source(source, bundle.data.plan)
    weights_m = _weights(bundle, teacher) if weights else None
    batches_per_epoch = -(-bundle.record.rows // settled.batch_size)
    steps = iterations or settled.epochs * batches_per_epoch
    settled = replace(settled, epochs=-(-steps // batches_per_epoch))
    knowledge = None if alpha == 0 else load_knowledge(bundle, teacher, match, views)
    if knowledge and isinstance(knowledge.targets.encoding, TopLogits):
        tail_weights(temperature)  # refuses a temperature that the rest's log-sum-exps do not reach
    settings = _settings(bundle, knowledge, asked, settled, compute, recipe, arch, width, seed, steps, compiled)
    if weights:  # only then: the runs of earlier versions have no such setting
        settings["weights"] = bundle.record.weights_fingerprint
    folder = workspace.run(_default_name(settings, iterations) if name is None else name)
    student, finished = folder / "student.pt", folder / "run.json"
    with only_writer(student):
        earlier = earlier_result(finished, settings, force)
        if earlier is not None:
            on_start(taken)
            return earlier
        test_data = _test_data(workspace, bundle, data_dir, progress)
        images_before = images_seen()
        targets = knowledge.targets if knowledge else None
        images, rows_m = bundle.images(), bundle.indices_m
        fed = open_source(images, rows_m, bundle.data, settled.batch_size, seed, compute, targets, source, weights_m)
        model = compute.place(build_model(arch, bundle.data.classes, width, seed))
        if force:
            forget(folder)
        on_start(taken + first)
        loss = distillation_loss(alpha, temperature)
        trainer = Trainer(model, fed, loss, settled, steps, compute.device, compute.precision, compiled)
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


def _settings(
    bundle: Bundle,
    knowledge: Knowledge | None,
    asked: DistillSettings,
    settled: Recipe,
    compute: Compute,
    recipe: str,
    arch: str,
    width: int,
    seed: int,
    steps: int,
    compiled: bool,
) -> dict[str, Any]:
    """Everything that decides the student's weights, resolved: what run.json records and a resumed run must share."""
    return {
        "subset": bundle.record.name,
        "rows_fingerprint": bundle.record.rows_fingerprint,
        "data_fingerprint": bundle.data.train_fingerprint,
        "teacher": knowledge.record.teacher if knowledge else None,
        "teacher_fingerprint": knowledge.record.teacher_fingerprint if knowledge else None,
        "targets_fingerprint": knowledge.fingerprint if knowledge else None,
        "arch": arch,
        "width": width,
        "alpha": asked.alpha,
        "temperature": asked.temperature,
        "match": knowledge.targets.match if knowledge else None,
        "views": knowledge.targets.slots if knowledge else None,
        "iterations": steps,
        "seed": seed,
        "precision": compute.precision,
        "device": compute.device.type,
        "recipe": recipe,
        **asdict(settled),
        "milestones": list(settled.milestones),
        **compiled_settings(compiled),
    }


def _default_name(settings: dict[str, Any], iterations: int | None) -> str:
    wide = "" if settings["width"] == 16 else f"-w{settings['width']}"
    length = f"i{iterations}" if iterations else f"e{settings['epochs']}"
    taught = "no-kd"
    if settings["teacher"] is not None:
        taught = (
            f"{settings['teacher']}-a{settings['alpha']:g}-t{settings['temperature']:g}"
            f"-{settings['match']}{settings['views']}"
        )
    arch, trained = settings["arch"].replace(":", "-"), trained_name(settings)
    weighted = "-weighted" if "weights" in settings else ""
    return f"{settings['subset']}-{arch}{wide}-{taught}{trained}{weighted}-{length}-s{settings['seed']}"


def _weights(bundle: Bundle, teacher: str | None) -> np.ndarray:
    """The subset's weights. Raises UsageError where it has none, naming the methods that give them."""
    if bundle.weights_m is None:
        weighing = [name for name, method in METHODS.items() if method.weighted]
        known = [bundle.record.chosen_by, teacher, *bundle.teachers()]  # whose features and logits may be had
        command = bundle.record.like(weighing[0], next(filter(None, known), None))
        raise UsageError(
            f"--weights: subset {bundle.record.name} (by {bundle.record.method}) holds none. Leave it out, or use a "
            f"subset of a method that gives them ({', '.join(weighing)}). Run: {command}"
        )
    return bundle.weights_m


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
