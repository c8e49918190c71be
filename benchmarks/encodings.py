"""What each encoding of cached logits loses, on 100 and on 1,000 classes of printed kanji.

    python -m benchmarks.encodings              # runs what is missing (hours), appends to results/encodings.jsonl
    python -m benchmarks.encodings --table      # prints the tables of what is there

Two kinds of records. `fidelity` trains nothing: the loss and its gradient with respect to a student's logits, by each
encoding, beside those by full float32 logits, on random training rows × views; the student is a ResNet-8 at
initialisation, and the same half way through its training on full logits. `student` is the accuracy on the test split
(a family of typefaces that nobody saw) of a ResNet-8 taught by nothing but the encoded logits, with a cached view for
every epoch. The students of a seed share subset, initialisation, views and order, and one run of the teacher.

Shapes: k slots, n rows, c classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import RESULTS, append, facts, in_words, read_lines
from toolkit.core.device import autocast
from toolkit.core.errors import FailureError
from toolkit.core.hashing import rng_for
from toolkit.core.locks import only_writer
from toolkit.core.progress import on_stderr
from toolkit.core.recipes import resolve_recipe
from toolkit.distill.losses import distillation_loss, soft_target_loss
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.cache import open_cache
from toolkit.formats.dataset import open_packed
from toolkit.formats.encodings import TAIL_TEMPERATURES, Encoding, TopLogits
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import FeatureReader, build_model
from toolkit.pipeline.cache import cache_teacher
from toolkit.pipeline.cache_request import open_request
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sources import open_source
from toolkit.pipeline.subset import build_subset
from toolkit.pipeline.teacher import train_teacher
from toolkit.report.statistics import mean_and_sigma, paired_difference
from toolkit.report.tables import table
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import Trainer
from toolkit.training.targets import Targets, TopK
from toolkit.views.render import normalise

WORKSPACE = Workspace(Path("kdtool-work/glyphs"))
FILE = RESULTS / "encodings.jsonl"
FIRST_SEEDS, MORE_SEEDS = range(3), range(3, 5)
FULL, NO_KD = "float16", "no KD"
STATES = ("half way", "at initialisation")
TEMPERATURE, UNSTORED_TEMPERATURE = 4.0, 3.0
SAMPLE_ROWS, SAMPLE_SLOTS = 1000, 4
_KEPT = (14, 64, 8, 4, 32, 128, 256, 16)
_SALT = 0xE2C0


@dataclass(frozen=True)
class Study:
    """`teacher_epochs` are of a ResNet-20; the rest is the student's."""

    dataset: str
    classes: int
    teacher_epochs: int
    fraction: float
    epochs: int
    batch_size: int
    kept: tuple[int, ...]
    arch: str = "resnet8"
    width: int = 16

    @property
    def teacher(self) -> str:
        return f"{self.dataset}-resnet20"

    @property
    def encodings(self) -> list[str]:
        """Those that are studied, in the order they are run."""
        return [FULL, "int8", *(f"topk:{kept}" for kept in self.kept if kept < self.classes)]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset, "fraction": self.fraction, "arch": self.arch, "width": self.width,
            "epochs": self.epochs, "batch_size": self.batch_size, "temperature": TEMPERATURE,
        }  # fmt: skip


STUDIES = [
    Study("glyphs-1000", 1000, teacher_epochs=15, fraction=0.1, epochs=10, batch_size=32, kept=_KEPT),
    Study("glyphs-100", 100, teacher_epochs=20, fraction=0.1, epochs=30, batch_size=64, kept=_KEPT),
    # three times as long: does what the first students lost come with time?
    Study("glyphs-1000", 1000, teacher_epochs=15, fraction=0.1, epochs=30, batch_size=32, kept=(14, 64)),
]


def taught_bundle(study: Study, seed: int) -> tuple[Bundle, np.ndarray]:
    """A seed's subset, and the teacher's float32 logits (k, n, c) of a view for each epoch."""
    name = f"{study.dataset}-random-{study.fraction:g}-s{seed}"
    build_subset(WORKSPACE, frac=study.fraction, dataset=study.dataset, seed=seed, name=name)
    asked = {"subset": name, "teacher": study.teacher, "views": f"epochs:{study.epochs}", "encoding": "float32"}
    cache_teacher(WORKSPACE, **asked, threads=1, progress=on_stderr)
    bundle = open_bundle(WORKSPACE.subset(name))
    with open_cache(bundle.targets_path(study.teacher)) as cache:
        return bundle, cache.encoded(min(study.epochs, cache.slots))["logits"].in_memory()


def encoded(logits_knc: np.ndarray, name: str) -> Targets:
    """The logits as a cache of the encoding `name` would hold them."""
    encoding = Encoding.parse(name, logits_knc.shape[2])
    slots = [encoding.encode(logits_nc) for logits_nc in logits_knc]
    return Targets(encoding, {array: np.stack([slot[array] for slot in slots]) for array in slots[0]}, "exact")


def trained(
    study: Study, bundle: Bundle, targets: Targets | None, seed: int, compute: Compute, epochs: int | None = None
) -> nn.Module:
    """A student after all its epochs, or after the first `epochs` of them. Without targets it learns from labels."""
    recipe = resolve_recipe("fast", study.epochs, study.batch_size)
    source = open_source(bundle.images(), bundle.indices_m, bundle.data, recipe.batch_size, seed, compute, targets)
    model = compute.place(build_model(study.arch, bundle.data.classes, study.width, seed))
    loss = distillation_loss(0.0 if targets is None else 1.0, TEMPERATURE)
    steps = study.epochs * len(source)
    trainer = Trainer(model, source, loss, recipe, steps, compute.device, compute.precision)
    for _ in range(study.epochs if epochs is None else epochs):
        trainer.run_epoch()
    return model


def test_top1(study: Study, model: nn.Module, compute: Compute) -> float:
    data = open_packed(WORKSPACE.data(study.dataset))
    test, record = data.split("test"), data.record
    shown = (record.plan, record.mean, record.std, compute.device, compute.precision)
    return top1(predict(model, test, *shown), test.labels_n)


@dataclass(frozen=True)
class Sample:
    """Logits of the same random views of random training rows, (n, c) float32: the teacher's and each student's."""

    teacher_nc: np.ndarray
    student_nc: dict[str, Tensor]
    _felt: dict[tuple[str, float], tuple[float, Tensor]] = field(default_factory=dict)

    def felt_by_full(self, state: str, temperature: float) -> tuple[float, Tensor]:
        """What `felt` says of the full logits; asked once."""
        key = state, temperature
        if key not in self._felt:
            self._felt[key] = felt(self.student_nc[state], torch.from_numpy(self.teacher_nc), temperature)
        return self._felt[key]


def sample(study: Study, students: dict[str, nn.Module], compute: Compute) -> Sample:
    request = open_request(WORKSPACE, dataset=study.dataset, teacher=study.teacher, views=str(SAMPLE_SLOTS), threads=1)
    train, record = request.data.split("train"), request.data.record
    rows_n = np.sort(rng_for(0, _SALT).choice(len(train), SAMPLE_ROWS, replace=False))
    views = request.teacher.reader(train, record.plan)
    mean_c, std_c = (torch.tensor(values, dtype=compute.dtype) for values in (record.mean, record.std))
    student_nc = {}
    for name, model in students.items():
        read = FeatureReader(model.train())  # normalised by the batch's own statistics, as it is while it learns
        logits = []
        with torch.no_grad(), autocast(compute.device, compute.precision):
            for slot in range(SAMPLE_SLOTS):
                logits += [read(normalise(x_bhwc, mean_c, std_c))[1] for x_bhwc in views.slot(rows_n, slot)]
        student_nc[name] = torch.cat(logits)
    teacher = [request.teacher.run(views, rows_n, slot)[0] for slot in range(SAMPLE_SLOTS)]
    return Sample(np.concatenate(teacher), student_nc)


def felt(student_nc: Tensor, teacher: Tensor | TopK, temperature: float) -> tuple[float, Tensor]:
    """The loss, and its gradient with respect to the student's logits, (n, c)."""
    leaf_nc = student_nc.clone().requires_grad_()
    loss = soft_target_loss(leaf_nc, teacher, temperature)
    (gradient_nc,) = torch.autograd.grad(loss, leaf_nc)
    return loss.item(), gradient_nc


def compared(felt_nc: tuple[float, Tensor], full: tuple[float, Tensor]) -> dict[str, float]:
    """How loss and gradient differ from those by the full logits: means over the rows."""
    (loss, gradient_nc), (full_loss, full_gradient_nc) = felt_nc, full
    ratio_n = gradient_nc.norm(dim=1) / full_gradient_nc.norm(dim=1)
    cosine_n = F.cosine_similarity(gradient_nc.double(), full_gradient_nc.double(), dim=1, eps=1e-30)
    return {
        "loss": loss,
        "full_loss": full_loss,
        "gradient_cosine": float(cosine_n.mean()),
        "gradient_length": float(ratio_n.mean()),
    }


def outcome_error(full_nc: Tensor, stored: Tensor | TopK, temperature: float) -> float:
    """KL, in nats, from the stored outcomes to the true ones: what rounding and the tail's interpolation add."""
    return float(soft_target_loss(full_nc.double(), stored, temperature)) / temperature**2


def mass_kept(full_nc: Tensor, kept: int, temperature: float) -> float:
    return float((full_nc / temperature).softmax(dim=1).topk(kept, dim=1).values.sum(dim=1).mean())


def fidelity(study: Study, found: Sample, name: str, state: str) -> dict[str, Any]:
    targets = encoded(found.teacher_nc[None], name)
    everything = torch.arange(targets.rows)
    full_nc, student_nc, cpu = torch.from_numpy(found.teacher_nc), found.student_nc[state], torch.device("cpu")
    stored = targets.table(cpu, torch.float32).gather(everything)
    precise = targets.table(cpu, torch.float64).gather(everything)
    kept = targets.encoding.kept if isinstance(targets.encoding, TopLogits) else study.classes
    at = {}
    for tau in map(float, TAIL_TEMPERATURES):
        same = compared(felt(student_nc, stored, tau), found.felt_by_full(state, tau))
        at[f"{tau:g}"] = {**same, "mass_kept": mass_kept(full_nc, kept, tau)}
    errors = {f"{tau:g}": outcome_error(full_nc, precise, tau) for tau in (UNSTORED_TEMPERATURE, TEMPERATURE)}
    return {
        "kind": "fidelity", "dataset": study.dataset, "classes": study.classes, "encoding": name, "student": state,
        "bytes": targets.encoding.bytes_per_view, "rows": SAMPLE_ROWS, "views": SAMPLE_SLOTS, "at": at,
        "outcome_kl": errors,
    }  # fmt: skip


def ensure_teacher(study: Study) -> None:
    settings = {"arch": "resnet20", "width": 16, "epochs": study.teacher_epochs}
    train_teacher(WORKSPACE, dataset=study.dataset, name=study.teacher, threads=1, progress=on_stderr, **settings)


def done(study: Study, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of this study: students of other settings are another's."""
    wanted = study.settings
    return [
        line
        for line in lines
        if line["dataset"] == study.dataset
        and (line["kind"] == "fidelity" or all(line[key] == value for key, value in wanted.items()))
    ]


def missing_fidelity(study: Study) -> list[tuple[str, str]]:
    lines = done(study, read_lines(FILE))
    there = {(line["student"], line["encoding"]) for line in lines if line["kind"] == "fidelity"}
    return [(state, name) for state in STATES for name in study.encodings if (state, name) not in there]


def missing_students(study: Study, seed: int) -> list[str]:
    lines = done(study, read_lines(FILE))
    there = {line["encoding"] for line in lines if line["kind"] == "student" and line["seed"] == seed}
    return [name for name in [*study.encodings, NO_KD] if name not in there]


def run_fidelity(study: Study, bundle: Bundle, logits_knc: np.ndarray, missing: list[tuple[str, str]]) -> None:
    compute = compute_on(threads=1)
    full = Targets.of_logits(logits_knc, "exact")
    half_way, fresh = (trained(study, bundle, full, 0, compute, epochs) for epochs in (study.epochs // 2, 0))
    found = sample(study, dict(zip(STATES, (half_way, fresh), strict=True)), compute)
    for state, name in missing:
        line = fidelity(study, found, name, state)
        append(FILE, {**line, "machine": facts()})
        cosines = " ".join(f"{at['gradient_cosine']:.4f}" for at in line["at"].values())
        print(f"{study.dataset} {name} {state}: gradient cosine {cosines}", flush=True)


def run_seed(study: Study, seed: int) -> None:
    students, fidelities = missing_students(study, seed), missing_fidelity(study) if seed == 0 else []
    if not students and not fidelities:
        return
    ensure_teacher(study)
    bundle, logits_knc = taught_bundle(study, seed)
    compute = compute_on(threads=1)
    for name in students:
        targets = None if name == NO_KD else encoded(logits_knc, name)
        accuracy = test_top1(study, trained(study, bundle, targets, seed, compute), compute)
        size = None if targets is None else targets.encoding.bytes_per_view
        line = {"kind": "student", **study.settings, "classes": study.classes, "encoding": name, "seed": seed}
        append(FILE, {**line, "bytes": size, "rows": len(bundle.rows_m), "top1": accuracy, "machine": facts()})
        print(f"{study.dataset} seed {seed} {name}: {accuracy:.2f}", flush=True)
    if fidelities:
        run_fidelity(study, bundle, logits_knc, fidelities)


def run_all() -> None:
    """Whatever is missing and no other process is running: start this several times to use several cores."""
    for seeds in (FIRST_SEEDS, MORE_SEEDS):
        for seed in seeds:
            for study in STUDIES:
                try:
                    with only_writer(WORKSPACE.root / "claims" / f"encodings-{study.dataset}-e{study.epochs}-s{seed}"):
                        run_seed(study, seed)
                except FailureError as error:
                    if "is being written by" not in str(error):
                        raise


def by_encoding(lines: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Accuracies of the students: {encoding: {seed: top1}}."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["kind"] == "student":
            found.setdefault(line["encoding"], {})[line["seed"]] = line["top1"]
    return found


def versus_full(accuracy: dict[int, float], full: dict[int, float]) -> list[str]:
    """Cells: the paired difference to full logits ± its standard error, whether that is within one, and seeds."""
    seeds = sorted(accuracy.keys() & full.keys())
    if len(seeds) < 2 or accuracy is full:
        return ["", "", str(len(accuracy))]
    found = paired_difference([accuracy[seed] for seed in seeds], [full[seed] for seed in seeds])
    error = found.sigma / math.sqrt(found.n)
    return [f"{found.mean:+.2f} ± {error:.2f}", "yes" if found.mean >= -error else "no", str(len(seeds))]


def in_order(names: list[str]) -> list[str]:
    """Full logits, int8, then the largest K first, and no KD."""
    fixed = [name for name in (FULL, "int8") if name in names]
    kept = sorted((name for name in names if name.startswith("topk:")), key=lambda name: -int(name[5:]))
    return [*fixed, *kept, *(name for name in (NO_KD,) if name in names)]


def slashed(line: dict[str, Any] | None, field: str, digits: int) -> str:
    return "" if line is None else " ".join(f"{at[field]:.{digits}f}" for at in line["at"].values())


def rows_of(study: Study, lines: list[dict[str, Any]]) -> Iterator[list[str]]:
    accuracies = by_encoding(lines)
    half_way = {line["encoding"]: line for line in lines if line["kind"] == "fidelity" and line["student"] == STATES[0]}
    for name in in_order([*study.encodings, NO_KD]):
        size = "" if name == NO_KD else str(Encoding.parse(name, study.classes).bytes_per_view)
        accuracy = accuracies.get(name, {})
        shown = mean_and_sigma([accuracy[seed] for seed in sorted(accuracy)]) if accuracy else ""
        cosines = slashed(half_way.get(name), "gradient_cosine", 3)
        yield [name, size, cosines, shown, *versus_full(accuracy, accuracies.get(FULL, {}))]


def fidelity_rows(study: Study, lines: list[dict[str, Any]]) -> Iterator[list[str]]:
    found = {(line["encoding"], line["student"]): line for line in lines if line["kind"] == "fidelity"}
    for name in in_order(study.encodings):
        half_way, fresh = (found.get((name, state)) for state in STATES)
        if half_way is None:
            continue
        share = " ".join(f"{at['loss'] / at['full_loss']:.3f}" for at in half_way["at"].values())
        length = slashed(half_way, "gradient_length", 3)
        errors = [f"{half_way['outcome_kl'][f'{tau:g}']:.1e}" for tau in (UNSTORED_TEMPERATURE, TEMPERATURE)]
        fresh_cosines = slashed(fresh, "gradient_cosine", 3)
        yield [name, slashed(half_way, "mass_kept", 2), share, length, fresh_cosines, *errors]


def show(study: Study, lines: list[dict[str, Any]]) -> None:
    taus = ", ".join(map(str, TAIL_TEMPERATURES))
    students = [line for line in lines if line["kind"] == "student"]
    images = round(mean(line["rows"] for line in students)) if students else "no"
    print(
        f"\n{study.dataset}: {study.classes:,} classes, {study.arch} width {study.width} on a random "
        f"{study.fraction:g} ({images} images), {study.epochs} epochs, batch {study.batch_size}, α 1, τ "
        f"{TEMPERATURE:g}, a cached view for each epoch; teacher {study.teacher}. The gradient's cosine to that by "
        f"full logits is of a student half way, at τ {taus}; differences are paired, ± their standard error.\n"
    )
    header = ["encoding", "bytes", "gradient cosine", "accuracy, %", "less full", "within one", "seeds"]
    print(table(header, list(rows_of(study, lines))))


def show_fidelity(study: Study, lines: list[dict[str, Any]]) -> None:
    taus = ", ".join(map(str, TAIL_TEMPERATURES))
    print(
        f"\n{study.dataset}: what the encodings change on random training rows, per τ {taus} unless said. Mass, loss "
        "and length (of the gradient, both relative to full logits) are of the student half way, the last cosine of "
        "one at initialisation; KL is from the stored outcomes to the true ones.\n"
    )
    header = ["encoding", "mass kept", "loss / full", "length", "cosine at start", "KL, τ 3", "KL, τ 4"]
    print(table(header, list(fidelity_rows(study, lines))))


def main() -> None:
    if "--table" not in sys.argv:
        run_all()
    lines = read_lines(FILE)
    if not lines:
        sys.exit(f"{FILE}: no results yet. Run: python -m benchmarks.encodings")
    for study in STUDIES:
        show(study, done(study, lines))
    for study in STUDIES[:2]:
        show_fidelity(study, done(study, lines))
    print(
        "\nBeside them, on 1,000 classes: FKD keeps 57 bytes a view (the top 5, softmaxed at a temperature that is "
        "then fixed), TinyViT 404 (the top 100).\n"
        f"{in_words(lines[0]['machine'])}."
    )


if __name__ == "__main__":
    main()
