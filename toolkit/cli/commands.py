"""The commands, in the order data flows. Each parses, calls its function in the pipeline, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.exchange import export, import_logits
from toolkit.cli.looking import doctor, ls
from toolkit.cli.noise import noise
from toolkit.cli.report import report
from toolkit.cli.score import score
from toolkit.cli.seeing import compare, inspect, show
from toolkit.cli.sweep import runs, sweep
from toolkit.core import defaults


@click.command()
@opt.data_set
@click.option("--workers", type=int, help="Writing processes.  [default: 2; of image folders, the CPUs there are]")
@opt.image_folder
@opt.force
@opt.common
@opt.example("kdtool pack --dataset imagefolder --data-dir pictures")
def pack(as_json: bool, **asked: Any) -> None:
    """Decode a data set once, into FFCV files.  Reads the source; writes data/<data set>/.

    While an image folder is packed, the disk holds up to twice what is left in the end.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.formats.dataset import is_image_folder
    from toolkit.pipeline.data import pack as run

    compared = " by names and sizes" if asked["data_dir"] and is_image_folder(asked["dataset"]) else ""
    result = run(**asked, progress=on_stderr)
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['train_rows']:,} training and {result['test_rows']:,} test images, "
        f"{result['classes']} classes, content {result['fingerprint']}"
        f"{_skipped(result['skipped'])}"
        f"{f', already there{compared}; --force reads it again' if result['unchanged'] else ''}",
    )


def _skipped(count: int) -> str:
    return f", {count:,} bad files left out (bad-files.json)" if count else ""


@click.command()
@opt.data_set
@opt.arch(defaults.TEACHER_ARCH)
@opt.optimisation
@click.option("--subset", help="Train on this subset's rows only.")
@click.option(
    "--dynamics/--no-dynamics", default=defaults.DYNAMICS, show_default=True, help="Record what scores are made from."
)
@click.option(
    "--seeds", default=defaults.SEEDS, show_default=True, help="Trainings to record; the first is the teacher."
)
@click.option("--snapshots", help="Epochs, like 2,10, after which features and logits of all rows are kept.")
@click.option("--name", help="Name of the teacher.  [default: from its settings]")
@opt.compute
@opt.memory_limit
@opt.force
@opt.common
@opt.example("kdtool train-teacher --arch resnet20 --epochs 25")
def train_teacher(as_json: bool, **asked: Any) -> None:
    """Train a teacher on labels (optional).  Reads data/; writes teachers/<name>/: teacher.pt, dynamics.h5."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.teacher import train_teacher as run

    result = run(**asked, progress=on_stderr, on_epoch=_epoch_line)
    opt.show(result, as_json, f"{result['path']}: {result['top1']:.2f} % on the test split, last epoch{_fed(result)}")


@click.command()
@opt.data_set
@opt.teacher
@click.option("--views", help="Views of each row: a number, all, or epochs:E.  [default: 2]")
@click.option(
    "--encoding",
    "--dtype",
    "encoding",
    default=defaults.ENCODING,
    help="Of the stored logits: float16, float32, int8 or topk:K.  [default: by the number of classes]",
)
@click.option("--subset", help="Run only over this subset's rows, and write its targets.")
@click.option("--batch-size", type=int, help="Images at a time.  [default: 128 on a CPU, 1024 on a GPU]")
@click.option("--dry-run", is_flag=True, help="Only say what it would cost, and how many students repay that.")
@click.option(
    "--verify/--no-verify", default=defaults.VERIFY, show_default=True, help="Ask the teacher again about a few rows."
)
@opt.compute
@opt.memory_limit
@opt.force
@opt.common
@opt.example("kdtool cache-teacher --views epochs:30")
def cache_teacher(as_json: bool, **asked: Any) -> None:
    """Run the teacher once.  Reads data/; writes teachers/<name>/cache.h5: logits of every view, features, scores."""
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
    opt.show(
        cost,
        as_json,
        f"{cost['path']}: {cost['passes']:,} teacher passes to run, {cost['bytes'] / 1e6:,.1f} MB "
        f"({cost['bytes_per_view']} bytes a view, {cost['encoding']}), about {cost['minutes']:.1f} minutes here",
        f"a live teacher would run as often for so many students of {cost['epochs_of_a_student']} epochs: {repaid}",
    )


@click.command()
@opt.data_set
@opt.teacher
@click.option("--subset", help="Verify this subset's targets.")
@click.option("--samples", default=defaults.SAMPLES, show_default=True, help="How many views to ask about.")
@click.option("--seed", default=defaults.SEED, show_default=True, help="Of the sample.")
@opt.compute
@opt.common
@opt.example("kdtool verify-cache --samples 1000")
def verify_cache(as_json: bool, **asked: Any) -> None:
    """Ask the live teacher again about random rows and views of its cache.  Fails past a bound; writes no cache."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.verify import verify_cache as run

    result = run(**asked, progress=on_stderr)
    opt.show(
        result,
        as_json,
        f"{result['path']}: what {result['teacher']} says{_deviation(result)} "
        f"(bounds: {result['mean_bound']:.2g} and {result['largest_bound']:.2g})",
    )


@click.command()
@click.option(
    "--montage",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="PNG file to draw into, in a folder that exists.",
)
@opt.data_set
@click.option("--subset", help="Draw only this subset's rows.")
@click.option(
    "--views", default=defaults.SHOWN_VIEWS, show_default=True, help="Slots of each row: a number, all, or epochs:E."
)
@click.option("--rows", default=defaults.SHOWN_ROWS, show_default=True, help="How many rows, from each class in turn.")
@click.option("--row", type=int, multiple=True, help="This row instead; may be given again.")
@click.option("--scale", type=int, help="Side of the square that a pixel becomes.  [default: tiles of about 64]")
@opt.common
@opt.example("kdtool views --montage views.png")
def views(as_json: bool, **asked: Any) -> None:
    """Draw what the teacher saw, row by slot; slot 0 is the canonical view.  Reads data/; writes one PNG file."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.views import views as run

    result = run(**asked, progress=on_stderr)
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['rows']} rows × {result['slots']} slots of {result['family']}, "
        f"{result['width']:,} × {result['height']:,} pixels",
    )


@click.command()
@click.option(
    "--frac",
    "fractions",
    type=float,
    multiple=True,
    help="Fraction of the training rows to keep, above 0 and at most 1. May be given again, for a subset each.",
)
@click.option(
    "--method",
    "methods",
    default=[defaults.METHOD],
    multiple=True,
    help="How to choose; see --list-methods. May be given again, for a subset each.  [default: random]",
)
@click.option("--list-methods", is_flag=True, help="Only tell every method's needs, cost and paper.")
@click.option("--score", help="Which of the teacher's scores says what is hard.  [default: el2n]")
@click.option("--teacher", help="Whose scores, features and targets.  [default: every cached teacher's targets]")
@click.option(
    "--balance/--no-balance", default=defaults.BALANCE, show_default=True, help="Keep the classes' proportions."
)
@click.option("--nested", is_flag=True, help="Make a smaller fraction part of a larger one.")
@click.option(
    "--min-per-class", default=defaults.MIN_PER_CLASS, show_default=True, help="Rows that every class keeps at least."
)
@click.option("--center", type=float, help="Of window: quantile of the score, 0 easiest, 1 hardest.  [default: 0.5]")
@click.option("--drop-hardest", type=float, help="Of stratified and d2: hardest share, left out first.  [default: 0.1]")
@click.option("--device", help="Where distances are computed: auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--seed", default=defaults.SEED, show_default=True, help="Of the choice, and of its order in plain FFCV.")
@click.option("--name", help="Name of the subset.  [default: from its settings]")
@click.option("--index-only", is_flag=True, help="Name the rows of the packed data instead of copying them.")
@opt.data_set
@opt.memory_limit
@opt.force
@opt.common
@opt.example("kdtool build-subset --frac 0.5")
def build_subset(as_json: bool, list_methods: bool, **asked: Any) -> None:
    """Keep a part of the data.  Reads data/ and the cache, if it is there; writes subsets/<name>/."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.random_beside import random_beside
    from toolkit.pipeline.subset import build_subsets as run

    if list_methods:
        _show_methods(as_json)
        return
    if not asked["fractions"]:
        raise click.UsageError("Missing option '--frac'.", click.get_current_context())

    def made(result: dict[str, Any]) -> None:
        targets = ", ".join(result["targets"])
        opt.show(
            result,
            as_json,
            f"{result['path']}: {result['rows']:,} rows ({result['fraction']:g}, {result['method']}), "
            f"{result['bytes'] / 1e6:,.1f} MB of images, "
            f"{f'targets of {targets}' if targets else 'no targets yet: see cache-teacher'}",
        )

    compare = random_beside(asked["workspace"], run(**asked, progress=on_stderr, on_made=made))
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
    opt.show(methods, as_json, table(["method", "needs", "weights", "cost", "paper"], rows))


@click.command()
@click.option("--subset", help="A name or a folder.  [default: the newest]")
@click.option("--teacher", help="Whose targets, where the subset holds several.")
@opt.arch(defaults.STUDENT_ARCH)
@opt.optimisation
@click.option("--iterations", type=int, help="Stop after this many steps instead of whole epochs.")
@click.option("--loss", default=defaults.LOSS, show_default=True, help="kd, dkd, dist, kd-std, mse or hard.")
@click.option("--beta", type=float, help="Weight of dkd's and dist's second part.  [default: 8 for dkd, 1 for dist]")
@click.option(
    "--alpha",
    type=opt.Alpha(),
    metavar="FLOAT|auto|search",
    default=defaults.ALPHA,
    show_default=True,
    help="Weight of the teacher: 0 labels only, 1 teacher only; auto by the fraction; search by short runs.",
)
@click.option(
    "--temperature", default=defaults.TEMPERATURE, show_default=True, help="Softens teacher and student alike."
)
@click.option(
    "--match",
    default=defaults.MATCH,
    show_default=True,
    help="Target of a shown view: exact (only cached views are shown), nearest or mean (any view is).",
)
@click.option("--views", type=int, help="Use only the first few cached views.  [default: all of them]")
@click.option("--weights", is_flag=True, help="Count each row as its method of selection weighs it.")
@click.option("--name", help="Name of the run.  [default: from its settings]")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="As in pack, for the test split.")
@opt.compute
@opt.memory_limit
@opt.force
@opt.common
@opt.example("kdtool distill --arch resnet8 --alpha 1 --temperature 4")
def distill(as_json: bool, **asked: Any) -> None:
    """Train a student from targets on disk.  Reads subsets/<name>/ and the test split; writes runs/<name>/."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.student import distill as run

    result = run(**asked, progress=on_stderr, on_start=opt.note, on_epoch=_epoch_line)
    agreement = "" if result["agreement"] is None else f", agrees with the teacher on {result['agreement']:.2f} %"
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['top1']:.2f} % on the test split, last epoch{agreement}; "
        f"alpha {result['alpha']:g}{_searched(result)}, {result['images_per_s']:,.0f} img/s{_fed(result)}, "
        f"{result['teacher_forward_passes']} teacher forward passes",
    )


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--dataset", help="Data set, as in pack.  [default: the one it was trained on]")
@click.option("--split", type=click.Choice(["train", "test"]), default=defaults.SPLIT, show_default=True)
@opt.network
@opt.class_map
@click.option("--size", type=int, help="Scale images to this side, of data shown in resized crops.  [default: theirs]")
@click.option("--crop", type=float, help="Share of the shorter side that the middle square has.  [default: 0.875]")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="As in pack.")
@click.option("--limit", type=int, help="As in pack.")
@opt.compute
@opt.common
@opt.example("kdtool evaluate kdtool-work/teachers/mine/teacher.pt")
def evaluate(as_json: bool, **asked: Any) -> None:
    """Accuracy of a teacher or student (a file, its folder, or torchvision:…).  Reads it and data/; writes nothing."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.evaluate import evaluate as run

    result = run(**asked, progress=on_stderr, on_note=opt.note)
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
]
