"""The commands, in the order data flows. Each parses, calls its function in the pipeline, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.completion import completion
from toolkit.cli.exchange import export, import_logits
from toolkit.cli.looking import doctor, ls
from toolkit.cli.noise import noise
from toolkit.cli.report import report
from toolkit.cli.score import score
from toolkit.cli.sections import command
from toolkit.cli.seeing import compare, inspect, show
from toolkit.cli.sweep import runs, sweep
from toolkit.core import defaults


@command()
@opt.data_set
@opt.option("--workers", type=int, help="Writing processes.  [default: 2; of image folders, the CPUs there are]")
@opt.image_folder
@opt.dry_run
@opt.force
@opt.common
@opt.about(
    reads="the source: --data-dir, this machine's copy, or a download",
    writes="data/<data set>/: train.beton, test.beton, data.json",
    example="kdtool pack --dataset imagefolder --data-dir pictures",
)
def pack(as_json: bool, **asked: Any) -> None:
    """Decode a data set once, into FFCV files.

    While an image folder is packed, the disk holds up to twice what is left in the end.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.formats.dataset import is_image_folder
    from toolkit.pipeline.data import pack as run

    compared = " by names and sizes" if asked["data_dir"] and is_image_folder(asked["dataset"]) else ""
    result = run(**asked, progress=on_stderr)
    if asked["dry_run"]:
        rows = f"  rows    {result['train_rows']:,} for training, {result['test_rows']:,} to test on"
        opt.show_foreseen(result, as_json, *([] if result["there"] else [rows]))
        return
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['train_rows']:,} training and {result['test_rows']:,} test images, "
        f"{result['classes']} classes, {result['height']} × {result['width']} in {result['family']}, "
        f"content {result['fingerprint']}"
        f"{_skipped(result['skipped'])}"
        f"{f', already there{compared}; --force reads it again' if result['unchanged'] else ''}",
    )


def _skipped(count: int) -> str:
    return f", {count:,} bad files left out (bad-files.json)" if count else ""


@command()
@opt.data_set
@opt.arch(defaults.TEACHER_ARCH)
@opt.optimisation
@opt.option("--subset", help="Train on this subset's rows only.")
@opt.option(
    "--dynamics/--no-dynamics", default=defaults.DYNAMICS, show_default=True, help="Record what scores are made from."
)
@opt.option("--seeds", default=defaults.SEEDS, show_default=True, help="Trainings to record; the first is the teacher.")
@opt.option("--snapshots", help="Epochs, like 2,10, after which features and logits of all rows are kept.")
@opt.option("--name", help="Name of the teacher.  [default: from its settings]")
@opt.compute
@opt.memory_limit
@opt.dry_run
@opt.force
@opt.common
@opt.about(
    reads="data/<data set>/, packed first where it is missing",
    writes="teachers/<name>/: teacher.pt, train.json, metrics.jsonl, dynamics.h5",
    example="kdtool train-teacher --arch resnet20 --epochs 25",
)
def train_teacher(as_json: bool, **asked: Any) -> None:
    """Train a teacher on labels (optional)."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.teacher import train_teacher as run

    result = run(**asked, progress=on_stderr, on_epoch=_epoch_line, on_note=opt.note)
    if asked["dry_run"]:
        opt.show_foreseen(result, as_json)
        return
    opt.show(result, as_json, f"{result['path']}: {result['top1']:.2f} % on the test split, last epoch{_fed(result)}")


@command()
@opt.data_set
@opt.teacher
@opt.option("--views", help="Views of each row: a number, all, or epochs:E.  [default: 2]")
@opt.option(
    "--encoding",
    "--dtype",
    "encoding",
    default=defaults.ENCODING,
    help="Of the stored logits: float16, float32, int8 or topk:K.  [default: by the number of classes]",
)
@opt.option("--subset", help="Run only over this subset's rows, and write its targets.")
@opt.option("--batch-size", type=int, help="Images at a time.  [default: 128 on a CPU, 1024 on a GPU]")
@opt.dry_run
@opt.option(
    "--verify/--no-verify", default=defaults.VERIFY, show_default=True, help="Ask the teacher again about a few rows."
)
@opt.compute
@opt.memory_limit
@opt.force
@opt.common
@opt.about(
    reads="data/<data set>/ and a teacher: the one that comes with kdtool, teachers/<name>/, a file or a library's",
    writes="teachers/<name>/cache.h5: logits of every view, features, scores; of a --subset, its targets",
    example="kdtool cache-teacher --views epochs:30",
)
def cache_teacher(as_json: bool, **asked: Any) -> None:
    """Run the teacher once, and keep what it says."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.cache import cache_teacher as run

    result = run(**asked, progress=on_stderr, on_note=opt.note)
    if asked["dry_run"]:
        _show_cost(result, as_json)
        return
    done = "already there" if result["unchanged"] else f"{result['images_per_s']:,.0f} img/s"
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['rows']:,} rows × {result['views']} views × {result['classes']} classes from "
        f"{result['teacher']} ({result['teacher_top1']:.2f} % on the test split), "
        f"{result['bytes_per_view']} bytes a view, {done}{_deviation(result.get('verified'))}{_features(result)}",
    )


def _features(result: dict[str, Any]) -> str:
    logits = result.get("features_are") == "logits"
    return "; no linear layer makes its logits, so they stand for features too" if logits else ""


def _deviation(verified: dict[str, Any] | None) -> str:
    if verified is None:
        return ""
    return (
        f"; asked again about {verified['samples']} views, the teacher deviates by {verified['mean']:.2g} logits on "
        f"average and {verified['largest']:.2g} at most"
    )


def _show_cost(cost: dict[str, Any], as_json: bool) -> None:
    repaid = ", ".join(
        f"{students} on {float(fraction):.0%} of the rows" for fraction, students in cost["students_to_repay"].items()
    )
    opt.show_foreseen(
        cost,
        as_json,
        f"  stored  {cost['rows']:,} rows × {cost['views']} views, {cost['encoding']}: {cost['bytes_per_view']} "
        "bytes a view",
        f"  repaid  a live teacher runs as often for so many students of {cost['epochs_of_a_student']} "
        f"epochs: {repaid}",
    )


@command()
@opt.data_set
@opt.teacher
@opt.option("--subset", help="Verify this subset's targets.")
@opt.option("--samples", default=defaults.SAMPLES, show_default=True, help="How many views to ask about.")
@opt.option("--seed", default=defaults.SEED, show_default=True, help="Of the sample.")
@opt.compute
@opt.dry_run
@opt.common
@opt.about(
    reads="data/<data set>/, the teacher, and teachers/<name>/cache.h5 or a subset's targets",
    writes="nothing",
    example="kdtool verify-cache --samples 1000",
)
def verify_cache(as_json: bool, **asked: Any) -> None:
    """Ask the teacher again about some of its cache.

    Random rows and views are asked about, and a deviation past a bound is a failure.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.verify import verify_cache as run

    result = run(**asked, progress=on_stderr)
    if asked["dry_run"]:
        opt.show_foreseen(result, as_json)
        return
    opt.show(
        result,
        as_json,
        f"{result['path']}: what {result['teacher']} says{_deviation(result)} "
        f"(bounds: {result['mean_bound']:.2g} and {result['largest_bound']:.2g})",
    )


@command()
@opt.option(
    "--montage",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="PNG file to draw into, in a folder that exists.",
)
@opt.data_set
@opt.option("--subset", help="Draw only this subset's rows.")
@opt.option(
    "--views", default=defaults.SHOWN_VIEWS, show_default=True, help="Slots of each row: a number, all, or epochs:E."
)
@opt.option("--rows", default=defaults.SHOWN_ROWS, show_default=True, help="How many rows, from each class in turn.")
@opt.option("--row", type=int, multiple=True, help="This row instead; may be given again.")
@opt.option("--scale", type=int, help="Side of the square that a pixel becomes.  [default: tiles of about 64]")
@opt.common
@opt.about(
    reads="data/<data set>/, or a subset",
    writes="one PNG file",
    example="kdtool views --montage views.png",
)
def views(as_json: bool, **asked: Any) -> None:
    """Draw what the teacher saw.

    Row by slot; slot 0 is the canonical view.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.views import views as run

    result = run(**asked, progress=on_stderr)
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['rows']} rows × {result['slots']} slots of {result['family']}, "
        f"{result['width']:,} × {result['height']:,} pixels",
    )


@command()
@opt.option(
    "--frac",
    "fractions",
    type=float,
    multiple=True,
    help="Fraction of the training rows to keep, above 0 and at most 1. May be given again, for a subset each.",
)
@opt.option(
    "--method",
    "methods",
    default=[defaults.METHOD],
    multiple=True,
    help="How to choose; see --list-methods. May be given again, for a subset each.  [default: random]",
)
@opt.option("--list-methods", is_flag=True, help="Only tell every method's needs, cost and paper.")
@opt.option("--score", help="Which of the teacher's scores says what is hard.  [default: el2n]")
@opt.option("--teacher", help="Whose scores, features and targets.  [default: every cached teacher's targets]")
@opt.option(
    "--balance/--no-balance", default=defaults.BALANCE, show_default=True, help="Keep the classes' proportions."
)
@opt.option("--nested", is_flag=True, help="Make a smaller fraction part of a larger one.")
@opt.option(
    "--min-per-class", default=defaults.MIN_PER_CLASS, show_default=True, help="Rows that every class keeps at least."
)
@opt.option("--center", type=float, help="Of window: quantile of the score, 0 easiest, 1 hardest.  [default: 0.5]")
@opt.option("--drop-hardest", type=float, help="Of stratified and d2: hardest share, left out first.  [default: 0.1]")
@opt.option("--device", help="Where distances are computed: auto, cpu, cuda or cuda:N.  [default: auto]")
@opt.option("--seed", default=defaults.SEED, show_default=True, help="Of the choice, and of its order in plain FFCV.")
@opt.option("--name", help="Name of the subset.  [default: from its settings]")
@opt.option("--index-only", is_flag=True, help="Name the rows of the packed data instead of copying them.")
@opt.data_set
@opt.memory_limit
@opt.dry_run
@opt.force
@opt.common
@opt.about(
    reads="data/<data set>/; teachers/<name>/cache.h5 and scores/ where they are there, or the method needs them",
    writes="subsets/<name>/: subset.json, loader.json, images.beton, targets/, weights.h5 of some methods",
    example="kdtool build-subset --frac 0.5",
)
def build_subset(as_json: bool, list_methods: bool, **asked: Any) -> None:
    """Keep a part of the data, with its cached targets."""
    from toolkit.core.progress import on_stderr
    from toolkit.core.sizes import in_words
    from toolkit.pipeline.random_beside import random_beside
    from toolkit.pipeline.subset import build_subsets as run

    if list_methods:
        _show_methods(as_json)
        return
    if not asked["fractions"]:
        raise click.UsageError(
            "--frac is missing: which fraction of the training rows to keep, such as --frac 0.5",
            click.get_current_context(),
        )

    def made(result: dict[str, Any]) -> None:
        targets = ", ".join(result["targets"])
        none_yet = f"no targets yet: kdtool cache-teacher --subset {result['name']} makes them"
        opt.show(
            result,
            as_json,
            f"{result['path']}: {result['rows']:,} rows ({result['fraction']:g}, {result['method']}), "
            f"{in_words(result['bytes'])} of images, "
            f"{f'targets of {targets}' if targets else none_yet}",
        )

    results = run(**asked, progress=on_stderr, on_made=made)
    if asked["dry_run"]:
        for result in results:
            opt.show_foreseen(result, as_json, *([] if result["there"] else [f"  rows    {result['rows']:,}"]))
        return
    compare = random_beside(asked["workspace"], results)
    if compare and not as_json:
        opt.note(f"compare with: {compare}")


def _show_methods(as_json: bool) -> None:
    from toolkit.pipeline.subset import list_methods
    from toolkit.report.tables import table

    methods = list_methods()
    rows = [
        [name, ", ".join(how["needs"]) or "nothing", "yes" if how["weights"] else "", how["cost"], how["paper"]]
        for name, how in methods.items()
    ]
    header = ["method", "needs", "weights", "cost", "paper"]
    opt.show(methods, as_json, table(header, rows, header))


@command()
@opt.option("--subset", help="A name or a folder.  [default: the newest]")
@opt.option("--teacher", help="Whose targets, where the subset holds several.")
@opt.arch(defaults.STUDENT_ARCH)
@opt.optimisation
@opt.option("--iterations", type=int, help="Stop after this many steps instead of whole epochs.")
@opt.option("--loss", default=defaults.LOSS, show_default=True, help="kd, dkd, dist, kd-std, mse or hard.")
@opt.option("--beta", type=float, help="Weight of dkd's and dist's second part.  [default: 8 for dkd, 1 for dist]")
@opt.option(
    "--alpha",
    type=opt.Alpha(),
    metavar="FLOAT|auto|search",
    default=defaults.ALPHA,
    show_default=True,
    help="Weight of the teacher: 0 labels only, 1 teacher only; auto by the fraction; search by short runs.",
)
@opt.option("--temperature", default=defaults.TEMPERATURE, show_default=True, help="Softens teacher and student alike.")
@opt.option(
    "--match",
    default=defaults.MATCH,
    show_default=True,
    help="Target of a shown view: exact (only cached views are shown), nearest or mean (any view is).",
)
@opt.option("--views", type=int, help="Use only the first few cached views.  [default: all of them]")
@opt.option("--weights", is_flag=True, help="Count each row as its method of selection weighs it.")
@opt.option("--name", help="Name of the run.  [default: from its settings]")
@opt.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="As in pack, for the test split.")
@opt.compute
@opt.memory_limit
@opt.dry_run
@opt.force
@opt.common
@opt.about(
    reads="subsets/<name>/, and of data/<data set>/ the test split",
    writes="runs/<name>/: student.pt, run.json, metrics.jsonl",
    example="kdtool distill --arch resnet8 --alpha 1 --temperature 4",
)
def distill(as_json: bool, **asked: Any) -> None:
    """Train a student from targets on disk."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.student import distill as run

    result = run(**asked, progress=on_stderr, on_start=opt.note, on_epoch=_epoch_line)
    if asked["dry_run"]:
        opt.show_foreseen(result, as_json)
        return
    agreement = "" if result["agreement"] is None else f", agrees with the teacher on {result['agreement']:.2f} %"
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['top1']:.2f} % on the test split, last epoch{agreement}; "
        f"alpha {result['alpha']:g}{_searched(result)}, {result['images_per_s']:,.0f} img/s{_fed(result)}, "
        f"{result['teacher_forward_passes']} teacher forward passes",
    )


@command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@opt.option("--dataset", help="Data set, as in pack.  [default: the one it was trained on]")
@opt.option(
    "--split", type=click.Choice(["train", "test"]), default=defaults.SPLIT, show_default=True, help="Of the data set."
)
@opt.network
@opt.class_map
@opt.option("--size", type=int, help="Scale images to this side, of data shown in resized crops.  [default: theirs]")
@opt.option("--crop", type=float, help="Share of the shorter side that the middle square has.  [default: 0.875]")
@opt.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="As in pack.")
@opt.option("--limit", type=int, help="As in pack.")
@opt.compute
@opt.dry_run
@opt.common
@opt.about(
    reads="the checkpoint and data/<data set>/",
    writes="nothing",
    example="kdtool evaluate kdtool-work/teachers/mine/teacher.pt",
)
def evaluate(as_json: bool, **asked: Any) -> None:
    """Tell the accuracy of a teacher or student.

    CHECKPOINT is a file, its folder, or torchvision:NETWORK@WEIGHTS.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.evaluate import evaluate as run

    result = run(**asked, progress=on_stderr, on_note=opt.note)
    if asked["dry_run"]:
        opt.show_foreseen(result, as_json)
        return
    shown = {name: "     –  " if found is None else f"{found:6.2f} %" for name, found in result["per_class"].items()}
    classes = [f"  {accuracy}  {name}" for name, accuracy in shown.items()]
    summary = f"{result['path']}: {result['top1']:.2f} % of {result['rows']:,} {result['split']} images"
    height, width = result["size"]
    opt.show(result, as_json, f"{summary} of {result['dataset']}, {height} × {width} pixels", *classes)


def _fed(result: dict[str, Any]) -> str:
    """From which source, and how long compiling took: runs of earlier versions do not say."""
    compiled = f", after {result['compile_s']:.0f} s of compiling" if result.get("compile_s") else ""
    return f" ({result['source']}{compiled})" if "source" in result else ""


def _searched(result: dict[str, Any]) -> str:
    found = result.get("alpha_search")
    if not found:
        return ""
    tied = ", by the rule among equals" if found.get("decided_by") == "rule" else ""
    return f" (searched with {found['images']:,} images, {found['share_of_run']:.2f} times the run's{tied})"


def _epoch_line(result: Any) -> None:
    opt.note(
        f"epoch {result.epoch}: loss {result.loss:.4f}, train {100 * result.train_top1:.2f} %, "
        f"lr {result.lr:.4f}, {result.images_per_s:,.0f} img/s, {result.wait_s / result.elapsed_s:.1%} waiting for data"
    )


COMMANDS = [
    doctor,
    pack,
    noise,
    train_teacher,
    cache_teacher,
    import_logits,
    verify_cache,
    views,
    score,
    build_subset,
    show,
    compare,
    distill,
    sweep,
    runs,
    report,
    evaluate,
    export,
    ls,
    inspect,
    completion,
]
