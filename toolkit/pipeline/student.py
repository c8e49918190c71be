"""kdtool distill: a student from a bundle, with no teacher forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.locks import only_writer
from toolkit.core.memory import within_memory
from toolkit.core.processes import ALONE, Processes, in_processes, refuse_in_processes
from toolkit.core.progress import Progress, silent
from toolkit.distill.losses import LOSSES, distillation_loss
from toolkit.formats.bundle import Bundle
from toolkit.formats.dataset import PackedData
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import images_seen
from toolkit.pipeline.alpha_search import settled_alpha
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.foresee.foreseen import already_there
from toolkit.pipeline.foresee.training import foreseen_student
from toolkit.pipeline.knowledge import Knowledge
from toolkit.pipeline.known_networks import new_network
from toolkit.pipeline.run_folder import ALREADY_TRAINED, earlier_result, forget, images_before, keep, timing
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sources import check_single_rows, check_source, open_source
from toolkit.pipeline.student_request import StudentRequest, open_student_request
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import EpochResult, Trainer
from toolkit.training.run import check_minutes, run_to_end


@within_memory
@in_processes
def distill(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    subset: str | None = None,
    teacher: str | None = None,
    arch: str = defaults.STUDENT_ARCH,
    width: int = defaults.WIDTH,
    recipe: str = defaults.RECIPE,
    epochs: int | None = None,
    iterations: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    label_smoothing: float | None = None,
    ema: float | None = None,
    loss: str = defaults.LOSS,
    beta: float | None = None,
    alpha: float | str = defaults.ALPHA,
    temperature: float | None = defaults.TEMPERATURE,
    match: str = defaults.MATCH,
    views: int | None = None,
    weights: bool = False,
    seed: int = defaults.SEED,
    name: str | None = None,
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    source: str = defaults.SOURCE,
    compile: bool = False,
    memory_limit: str | int | None = None,
    data_dir: Place | None = None,
    force: bool = False,
    checkpoint_minutes: float = defaults.CHECKPOINT_MINUTES,
    dry_run: bool = False,
    processes: Processes = ALONE,
    progress: Progress = silent,
    on_start: Callable[[str], None] = lambda line: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> dict[str, Any]:
    """Trains a student on a bundle (default: the newest) and its cached targets: (1 − alpha)·CE + alpha·loss.

    `alpha` is a number, "auto" (by the fraction kept) or "search" (by short runs); `loss` is one of LOSSES, `beta` its
    second weight. `match` says what target a shown view gets, `views` uses only the first few cached ones, `weights`
    counts each row as the method of selection says. `iterations`, instead of `epochs`, ends the run after that many
    steps; `epochs`, `batch_size`, `lr`, `label_smoothing` and `ema` stand in for the recipe's.

    A killed run resumes, from its last epoch or `checkpoint_minutes`; SIGINT and SIGTERM save it and raise Stopped. A
    finished one with the same settings is returned as it is. Started by torchrun, several processes train one student
    together. `top1` and `agreement` (percent, test split) are the last epoch's, never the best one's. `source` is one
    of pipeline.sources.SOURCES, `compile` goes through torch.compile, `memory_limit` is a size, such as "8G", that all
    processes of this machine together keep to. With `dry_run` nothing is written, and no more than a few steps are
    tried: the result is `Foreseen.told`. Raises UsageError or FailureError.
    """
    workspace, data_dir = Workspace.at(workspace), as_path(data_dir)
    compute = compute_on(device, precision, threads, processes)
    check_source(source)
    check_minutes(checkpoint_minutes)
    if not processes.first:
        progress, on_start = silent, _unsaid
    request = open_student_request(
        workspace,
        compute,
        subset,
        teacher,
        arch,
        width,
        recipe,
        epochs,
        iterations,
        batch_size,
        lr,
        label_smoothing,
        ema,
        loss,
        beta,
        alpha,
        temperature,
        match,
        views,
        weights,
        seed,
        compile,
    )
    bundle, knowledge, settings = request.bundle, request.knowledge, request.settings
    _check_processes(request, processes)
    check_source(source, bundle.data.plan)
    taken = f"subset {bundle.folder} ({bundle.record.rows:,} rows)"  # said once nothing is wrong with what was asked
    first = ", compiling first: up to a minute" if compile else ""
    folder = workspace.run(request.name if name is None else name)
    if dry_run:
        if earlier_result(folder / "run.json", settings, force) is not None:
            return already_there(folder)
        _network(request, compute)
        return foreseen_student(folder, request, compute, source, 0 if force else images_before(folder))
    with only_writer(folder / "student.pt", processes):
        earlier = processes.first_only(lambda: earlier_result(folder / "run.json", settings, force))
        if earlier is not None:
            on_start(taken)
            on_start(f"{folder}: {ALREADY_TRAINED}")
            return earlier
        test_data = processes.first_before(lambda: _test_data(workspace, bundle, data_dir, progress))
        _network(request, compute)  # refused, if it is, before anything is touched
        if force:
            processes.first_only(lambda: forget(folder))
        settled, search = settled_alpha(request, compute, source, folder, progress=progress, on_trial=on_start)
        seen_before = images_seen()
        targets = knowledge.targets if knowledge else None
        how = (request.recipe.batch_size, settings["seed"], compute, targets, source, request.weights_m)
        fed = open_source(bundle.images(), bundle.indices_m, bundle.data, *how)
        model = _network(request, compute)
        on_start(taken + first)
        how_taught = (request.asked.temperature, request.asked.loss, request.asked.beta)
        taught = distillation_loss(settled, *how_taught, request.recipe.label_smoothing)
        run = (request.recipe, request.steps, compute.device, compute.precision, compile)
        trainer = Trainer(model, fed, taught, *run, seed=settings["seed"], processes=processes)
        found = {"alpha": settled} if search else None
        history = run_to_end(
            trainer,
            folder,
            settings,
            progress,
            on_epoch,
            minutes=checkpoint_minutes,
            found=found,
            on_note=on_start,
        )
        passes = processes.total(images_seen() - seen_before - images_seen(model))
        speed = timing(history, fed.name, trainer.compile_s)
        trained = _Trained(model, settled, alpha, search, history, speed, passes)
        return processes.first_only(lambda: _ended(folder, request, trained, test_data, compute))


@dataclass(frozen=True)
class _Trained:
    """A student after its last step; `asked_alpha` may be a word, and `passes` are the teacher's since the search."""

    model: nn.Module
    alpha: float
    asked_alpha: float | str
    search: dict[str, Any] | None
    history: list[dict[str, Any]]
    speed: dict[str, Any]
    passes: int


def _ended(
    folder: Path, request: StudentRequest, trained: _Trained, test_data: PackedData, compute: Compute
) -> dict[str, Any]:
    """Evaluates the student and writes all that is kept of it; gives the result."""
    settings, knowledge, search = request.settings, request.knowledge, trained.search
    passes = trained.passes + (search["teacher_forward_passes"] if search else 0)
    result: dict[str, Any] = {
        "path": str(folder),
        "name": folder.name,
        **{key: settings[key] for key in ("subset", "teacher")},
        **_test_scores(trained.model, test_data, knowledge, compute),
        "alpha": trained.alpha,
        **{key: settings[key] for key in ("temperature", "match", "views", "epochs", "seed")},
        **{key: settings[key] for key in ("loss", "beta", "label_smoothing", "ema") if key in settings},
        **({"alpha_search": {key: search[key] for key in search if key != "trials"}} if search else {}),
        **trained.speed,
        "teacher_forward_passes": passes,
    }
    more = {
        "teacher_images_behind_targets": knowledge.record.teacher_images if knowledge else 0,
        "student_images": sum(epoch["images"] for epoch in trained.history),
        "threads": compute.threads,
        "alpha_asked": trained.asked_alpha,  # auto is a number in the settings
        "subset": {key: value for key, value in asdict(request.bundle.record).items() if key != "data"},
        **({"alpha_search": search} if search else {}),
    }
    data = request.bundle.data
    keep(folder / "run.json", folder / "student.pt", trained.model, data, settings, result, **more)
    return result


def _network(request: StudentRequest, compute: Compute) -> nn.Module:
    settings, data = request.settings, request.bundle.data
    model = new_network(settings["arch"], settings["width"], settings["seed"], data, compute)
    check_single_rows(model, request.bundle.record.rows, request.recipe.batch_size, data, compute.processes.count)
    return model


def _unsaid(line: str) -> None:
    """The first of several processes speaks for all."""


def _check_processes(request: StudentRequest, processes: Processes) -> None:
    """Raises UsageError for what several processes can't do."""
    asked = request.asked
    if asked.alpha == "search":
        refuse_in_processes(processes.count, "--alpha search", "Search first, then give its --alpha to torchrun")
    if asked.alpha != 0 and not LOSSES[asked.loss].rows_apart:
        why = "it compares the rows of a batch, of which each process sees its share"
        refuse_in_processes(processes.count, f"--loss {asked.loss} ({why})", "Use another --loss, or no torchrun")


def _test_data(workspace: Workspace, bundle: Bundle, data_dir: Path | None, progress: Progress) -> PackedData:
    """The packed test split. Raises FailureError when it is not the one the subset knows."""
    known = bundle.data
    packed = ensure_packed(workspace, known.dataset, data_dir, known.limit, progress=progress, from_file=True)
    packed.test_split_of(known)  # a damaged or another one is refused before hours of training, not after
    return packed


def _test_scores(
    model: nn.Module, data: PackedData, knowledge: Knowledge | None, compute: Compute
) -> dict[str, float | None]:
    """`top1`, and `agreement` with the teacher's own predictions (None where they are not known), in percent."""
    test, record = data.split("test"), data.record
    predicted_n = predict(model, test, record.plan, record.mean, record.std, compute.device, compute.precision)
    taught = None if knowledge is None else knowledge.test_classes
    agreement = None if taught is None else top1(predicted_n, taught)
    return {"top1": top1(predicted_n, test.labels_n), "agreement": agreement}
