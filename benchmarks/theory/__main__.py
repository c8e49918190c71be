"""The theory, in numbers, tables and pictures: python -m benchmarks.theory [--quick] [--out FOLDER]

Writes results/theory.json and the pictures beside it, and the tables into README.md. --quick takes a few draws and
writes only where --out says.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.filling import filled
from benchmarks.machine import facts, in_words
from benchmarks.theory.study import BASE, CELL_FRACTIONS, claims, numbers, series
from toolkit.report.charts import save_png
from toolkit.report.tables import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
ERROR, PARTS = "error ‖θ̂ − θ*‖²", (("error", 0), ("bias²", 1), ("variance", 2))


def stars(points: list[dict[str, Any]]) -> list[float]:
    return [one["best_alpha"] for one in points]


def where(claim: dict[str, Any]) -> str:
    """At which (λ, γ) a claim holds, naming the fewer."""
    holds, fails = claim["holds_at"], claim["fails_at"]
    fewer, word = (holds, "only at") if len(holds) < len(fails) else (fails, "not at")
    named = f": {word} {', '.join(f'({lam:g}, {gamma:g})' for lam, gamma in fewer)}" if fewer else ""
    return f"{len(holds)} of {len(holds) + len(fails)}{named}"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Every table of the README by its name."""
    judged = [[c["claim"], c["verdict"], where(c)] for c in found["claims"]]
    by_f = [
        [f"{f:g}", *(f"{one['at'][a][part]:.4f}" for part in (0, 1, 2) for a in "01"),
         f"{one['gain']:+.4f} ± {one['gain_se']:.4f}", f"{one['best_alpha']:.2f}"]
        for f, one in zip(found["f"]["f"], found["f"]["full"], strict=True)
    ]  # fmt: skip
    by_teacher = [[f, *(f"{value:.3f}" for f_t, value, _, _ in rows if f_t in (float(f), 0.5, 1.0))]
                  for f, rows in found["f_t"].items()]  # fmt: skip
    own = [[f"{lam:g}", *(f"{one['at'][a][0]:.3f}" for a in "01*"), f"{one['best_alpha']:.2f}"]
           for lam, one in zip(found["lam"]["lam"], found["lam"]["self"], strict=True)]  # fmt: skip
    regimes = [[name, *(f"{star:.2f}" for star in stars(points)), f"{series(points, '1')[1]:.3f}"]
               for name, points in found["regimes"].items()]  # fmt: skip
    worst = max(found["agreement"], key=lambda row: abs(row["z"]))
    agree = [[f"{r['f']:g}, {r['f_t']:g}, {r['lam']:g}, {r['alpha']:g}{'*' if r['lam_t'] else ''}",
              f"{r['closed_form']:.4f}",
              f"{r['simulated']:.4f} ± {r['standard_error']:.4f}", f"{r['z']:+.1f}"]
             for r in found["agreement"] if r["alpha"] == 1 or r is worst]  # fmt: skip
    heads = [f"{name}, α = {a}" for name, _ in PARTS for a in "01"]
    return {
        "claims": table(["claim", f"at λ = {BASE.lam:g}, γ = {BASE.gamma:g}", "at how many (λ, γ)"], judged),
        "agreement": table(["f, f_t, λ, α", "closed form", "simulated ± s.e. over X", "apart, s.e."], agree),
        "f": table(["f", *heads, "gain of α = 1 ± s.e.", "α*"], by_f),
        "f_t": table(["f", "f_t = f", "f_t = 0.5", "f_t = 1"], by_teacher),
        "self": table(["λ", "α = 0", "α = 1", "α = α*", "α*"], own),
        "regimes": table(["α* at f =", *(f"{f:g}" for f in CELL_FRACTIONS), "error, f = 0.1, α = 1"], regimes),
    }


def lines(axes: Axes, x: list[float], ys: dict[str, list[float]], xlabel: str, ylabel: str, **scales: Any) -> None:
    """One panel: a line for each of `ys`, no KD always grey."""
    for name, y in ys.items():
        axes.plot(x, y, "o-", markersize=3, label=name, color="0.5" if name == "no KD" else None)
    axes.set(xlabel=xlabel, ylabel=ylabel, **scales)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def pictures(found: dict[str, Any]) -> dict[str, Figure]:
    """Every figure by its file's name."""
    from matplotlib.figure import Figure

    sizes = {"alpha": 1, "fraction": 2, "parts": 2, "teacher": 1, "lambda-gamma": 3, "self": 2, "regimes": 1}
    figures = {name: Figure(figsize=(4.6 * n, 3.6), dpi=90, layout="constrained") for name, n in sizes.items()}
    panels = {name: figures[name].subplots(1, n, squeeze=False)[0] for name, n in sizes.items()}
    f, full, log = found["f"]["f"], found["f"]["full"], {"yscale": "log"}
    choices = {"no KD": "0", "KD, α = 1": "1", "KD, α = α*": "*"}

    curves = {f"f = {name}": errors for name, errors in found["alpha"]["error"].items()}
    lines(panels["alpha"][0], found["alpha"]["alphas"], curves, "α (black: simulated ± 2 s.e.)", ERROR, **log)
    for row in found["agreement"]:
        if (row["f_t"], row["lam"], row["lam_t"]) == (1.0, BASE.lam, None):
            panels["alpha"][0].errorbar(row["alpha"], row["simulated"], 2 * row["standard_error"], fmt="k_", capsize=3)
    lines(panels["fraction"][0], f, {n: series(full, a) for n, a in choices.items()}, "f", ERROR, **log)
    by_lam = {f"λ = {c['lam']:g}": stars(c["full"])[:-1] for c in found["cells"] if c["gamma"] == 1 and c["lam"] <= 100}
    lines(panels["fraction"][1], CELL_FRACTIONS[:-1], by_lam, "f < 1", "α*", ylim=(0, 1.3))
    for axes, (part, index) in zip(panels["parts"], PARTS[1:], strict=True):
        ys = {"no KD": series(full, "0", index), "f_t = 1": series(full, "1", index)}
        ys["f_t = f"] = series(found["f"]["self"], "1", index)
        lines(axes, f, ys, "f (KD with α = 1)", part, **log)
    for name, rows in found["f_t"].items():
        ys = {f"f = {name}": [row[1] for row in rows]}
        lines(panels["teacher"][0], [row[0] for row in rows], ys, "f_t", f"{ERROR}, α = 1", **log)
    lam, of_lam, own = found["lam"].values()
    for axes, (part, index) in zip(panels["lambda-gamma"][:2], PARTS[1:], strict=True):
        ys = {n: series(of_lam, choices[n], index) for n in ("no KD", "KD, α = 1")}
        lines(axes, lam, ys, "λ (f = 0.1, f_t = 1)", part, xscale="log", **log)
    gamma, of_gamma = found["gamma"].values()
    ys = {n: series(of_gamma, choices[n])[1:] for n in ("no KD", "KD, α = 1")}
    lines(panels["lambda-gamma"][2], gamma[1:], ys, "γ > 0 (f = 0.1, f_t = 1)", ERROR, xscale="log", **log)
    ys = {n: series(own, a) for n, a in choices.items()}
    lines(panels["self"][0], lam, ys, "λ (f = f_t = 0.1)", ERROR, xscale="log", **log)
    lines(panels["self"][1], lam, {"α*": stars(own)}, "λ (f = f_t = 0.1)", "α*", xscale="log")
    regimes = {name: stars(points)[:-1] for name, points in found["regimes"].items()}
    lines(panels["regimes"][0], CELL_FRACTIONS[:-1], regimes, "f < 1", "α*", ylim=(0, 1.2))
    panels["regimes"][0].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figures["regimes"].set_size_inches(7.6, 3.6)
    return figures


def write(found: dict[str, Any], made: dict[str, str], out: Path) -> None:
    (out / "results").mkdir(parents=True, exist_ok=True)
    (out / "results" / "theory.json").write_text(
        "{" + ",\n".join(f'"{name}": {json.dumps(part, ensure_ascii=False)}' for name, part in found.items()) + "}\n"
    )
    for name, figure in pictures(found).items():
        save_png(figure, out / "results" / f"{name}.png")
    (out / "README.md").write_text(filled((HERE / "README.md").read_text(), made))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few draws, seconds")
    parser.add_argument("--out", type=Path, help="where results/ and README.md go")
    asked = parser.parse_args(words)
    found = numbers(*((2, 10) if asked.quick else (60, 50)))
    found |= {"claims": claims(found), "machine": facts()}
    found = json.loads(json.dumps(found), parse_float=lambda digits: float(f"{float(digits):.6g}"))  # as it is kept
    made = tables(found)
    print("\n\n".join(made.values()))
    print(
        f"\nWorst agreement: {max(abs(row['z']) for row in found['agreement']):.1f} s.e.; {in_words(found['machine'])}."
    )
    if out := asked.out or (None if asked.quick else HERE):
        write(found, made, out)


if __name__ == "__main__":
    main()
