"""kdtool noise."""

from __future__ import annotations

from typing import Any

from toolkit.cli import options as opt
from toolkit.cli.sections import command
from toolkit.core import defaults


@command()
@opt.data_set
@opt.option("--rate", type=float, required=True, help="Share of the training labels to flip, above 0 and below 1.")
@opt.option("--seed", default=defaults.SEED, show_default=True, help="Of the rows and their new labels.")
@opt.force
@opt.dry_run
@opt.common
@opt.about(
    reads="data/<data set>/, packed first where it is missing",
    writes="data/<data set>-noise-<rate>-s<seed>/",
    example="kdtool noise --rate 0.1",
)
def noise(as_json: bool, **asked: Any) -> None:
    """Flip a known share of the training labels."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.noise import noise as run

    result = run(**asked, progress=on_stderr)
    if asked["dry_run"]:
        opt.show_foreseen(result, as_json)
        return
    limit = "" if result["limit"] is None else f" --limit {result['limit']}"
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['flipped']:,} of {result['train_rows']:,} training labels flipped, kept in "
        f"noise.json. No teacher of such data comes with kdtool: "
        f"kdtool train-teacher --dataset {result['dataset']}{limit}",
    )
