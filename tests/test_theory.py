"""The ridge-regression model of benchmarks/theory: closed form, simulation, and what holds in it and what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.theory.__main__ import HERE, main, tables
from benchmarks.theory.model import (
    Setting,
    at,
    best_alpha,
    closed_form,
    curves,
    draw,
    error,
    fit,
    linear_form,
    ridge_weights,
    simulate,
)
from benchmarks.theory.study import CLAIMS, REGIMES, agreement, verdict

SMALL = Setting(d=20, N=200, lam=2, gamma=1)  # as the study's, a fifth of it; λ = dγ² = 20 is best
FRACTIONS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)


def drawn(s: Setting, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return draw(s, np.random.default_rng(seed))


def mean(s: Setting, **changes: float) -> np.ndarray:
    return curves(replace(s, **changes), 40).mean(axis=0)


SETTINGS = {
    "a teacher of all data": SMALL,
    "of half": replace(SMALL, f_t=0.5),
    "of the same part": replace(SMALL, f_t=0.1),
    "fewer samples than features": replace(SMALL, f=0.05),
    "all samples": replace(SMALL, f=1.0),
    "the best λ": replace(SMALL, lam=20),
    "a teacher with another λ and noisier labels": replace(SMALL, lam_t=60, noise_t=2),
}


@pytest.mark.parametrize("s", SETTINGS.values(), ids=SETTINGS.keys())
def test_closed_form_is_what_simulation_finds_within_4_standard_errors(s: Setting):
    X_dN, theta_d = drawn(s)
    alphas = [0.0, 0.4, 1.0, 1.3]
    errors_aT = simulate(X_dN, theta_d, s, alphas, 3000, np.random.default_rng(1))
    for alpha, errors_T in zip(alphas, errors_aT, strict=True):
        standard_error = errors_T.std(ddof=1) / len(errors_T) ** 0.5
        assert abs(errors_T.mean() - error(closed_form(X_dN, theta_d, s), alpha)) < 4 * standard_error


def test_their_expectations_over_X_agree_too():
    for row in agreement(SMALL, draws=40, trials=30, alphas=[0.0, 0.5, 1.0], seed=5):
        assert abs(row["z"]) < 4
    with pytest.raises(ValueError, match="simulated"):
        agreement(replace(SMALL, apart=True), 2, 2, [1.0], 0)


@pytest.mark.parametrize("s", SETTINGS.values(), ids=SETTINGS.keys())
def test_two_derivations_of_bias_and_variance_agree(s: Setting):
    problem = drawn(s)
    np.testing.assert_allclose(linear_form(*problem, s), closed_form(*problem, s), rtol=1e-8, atol=1e-12)


def test_alpha_0_is_plain_ridge_regression_whatever_the_teacher_saw():
    X_dN, theta_d = drawn(SMALL)
    X_f = X_dN[:, : SMALL.kept]
    W_df = np.linalg.inv(X_f @ X_f.T + SMALL.lam * np.eye(SMALL.d)) @ X_f
    bias_d = W_df @ X_f.T @ theta_d - theta_d
    for f_t in (0.1, 0.4, 1.0):
        found = at(closed_form(X_dN, theta_d, replace(SMALL, f_t=f_t)), 0)
        np.testing.assert_allclose(found, [bias_d @ bias_d, (W_df**2).sum()], rtol=1e-9)


def test_error_is_quadratic_in_alpha():
    alphas = [0.0, 0.3, 0.7, 1.0, 1.6]
    errors_a = simulate(*drawn(SMALL), SMALL, alphas, 1, np.random.default_rng(0))[:, 0]
    parabola = np.polyfit(alphas[:3], errors_a[:3], 2)
    np.testing.assert_allclose(np.polyval(parabola, alphas), errors_a, rtol=1e-8)


def test_best_alpha_has_the_least_error():
    c_23 = mean(SMALL, lam=20)
    star = best_alpha(c_23)
    assert all(error(c_23, star) < error(c_23, star + step) for step in (-0.01, 0.01))


def test_a_teacher_of_the_same_part_is_ridge_regression_applied_twice():
    s = replace(SMALL, f_t=SMALL.f)
    X_dN, theta_d = drawn(s)
    X_f = X_dN[:, : s.kept]
    W_df = ridge_weights(X_dN, s.lam, None, slice(s.kept))[:, : s.kept]
    twice = W_df @ X_f.T @ W_df
    bias_d = twice @ X_f.T @ theta_d - theta_d
    np.testing.assert_allclose(at(closed_form(X_dN, theta_d, s), 1), [bias_d @ bias_d, (twice**2).sum()], rtol=1e-9)


def test_without_regularisation_the_student_of_enough_samples_is_its_teacher():
    s = replace(SMALL, f=0.3, lam=1e-9)
    X_dN, theta_d = drawn(s)
    bias2, variance = at(closed_form(X_dN, theta_d, s), 1)
    assert bias2 < 1e-15
    assert variance == pytest.approx(np.trace(np.linalg.inv(X_dN @ X_dN.T)), rel=1e-6)
    assert best_alpha(closed_form(X_dN, theta_d, s)) == pytest.approx(1, abs=1e-6)  # Gauss-Markov


def test_without_noise_there_is_no_variance_and_kd_never_helps():
    for f in FRACTIONS:
        c_23 = mean(SMALL, f=f, gamma=0)
        assert not c_23[1].any()
        assert all(error(c_23, alpha) > error(c_23, 0) for alpha in (0.1, 0.5, 1.0))


def test_holds_that_the_error_and_the_bias_fall_as_the_teacher_sees_more():
    found = np.stack([mean(SMALL, f_t=f_t) for f_t in (0.1, 0.3, 0.6, 1.0)])
    assert (np.diff(error(found, 1)) < 0).all()
    assert (np.diff(at(found, 1)[:, 0]) < 0).all()


def test_holds_that_kd_lowers_the_variance_at_every_f():
    for f in FRACTIONS:
        c_23 = mean(SMALL, f=f)
        assert error(c_23, 1) < error(c_23, 0)
        assert at(c_23, 1)[1] < at(c_23, 0)[1]


def test_holds_that_half_of_the_data_with_kd_beats_all_without():
    assert error(mean(SMALL, f=0.5), 1) < error(mean(SMALL, f=1.0), 0)


def test_does_not_hold_that_kd_lowers_the_bias():
    for lam in (0.2, 2, 20, 200):
        for f in FRACTIONS:
            c_23 = mean(SMALL, f=f, lam=lam)
            assert at(c_23, 1)[0] > at(c_23, 0.5)[0] > at(c_23, 0)[0]


def test_does_not_hold_that_the_gain_is_largest_at_the_smallest_f():
    gains = [error(c, 0) - error(c, 1) for c in (mean(SMALL, f=f) for f in FRACTIONS)]
    assert np.argmax(gains) == 1  # where fN = d


def test_does_not_hold_that_the_best_alpha_falls_with_f_where_regularisation_is_low():
    assert all(best_alpha(mean(SMALL, f=f, lam=1)) == pytest.approx(1, abs=0.1) for f in FRACTIONS)


@pytest.mark.parametrize(
    "s",
    [replace(SMALL, lam=20), replace(SMALL, lam_t=200), replace(SMALL, noise_t=2), replace(SMALL, sees_t=16),
     replace(SMALL, apart=True)],
    ids=["the best λ", "a teacher with a large λ", "a noisier teacher", "a smaller teacher", "other samples"],
)  # fmt: skip
def test_holds_that_the_best_alpha_falls_with_f_where_the_teacher_is_not_the_best_there_could_be(s: Setting):
    stars = [best_alpha(mean(s, f=f)) for f in (0.1, 0.3, 0.6, 0.9)]
    assert (np.diff(stars) < 0).all()
    assert stars[0] > stars[-1] + 0.3


def test_a_student_with_fewer_features_still_wants_its_teacher_alone():
    for f in FRACTIONS:
        assert best_alpha(mean(SMALL, f=f, lam=1, sees=16)) == pytest.approx(1, abs=0.1)


def test_a_teacher_of_the_same_part_helps_below_the_best_lambda_and_harms_above():
    stars = [best_alpha(curves(replace(SMALL, lam=lam, f=0.5, f_t=0.5), 200)) for lam in (5, 20, 80)]
    assert stars[0] > 0.5
    assert stars[1] == pytest.approx(0, abs=0.2)
    assert stars[2] < -0.5


def test_unsound_settings_are_refused():
    for changes in ({"f": 0.0}, {"f": 0.5, "f_t": 0.3}, {"f_t": 1.2}, {"f": 0.001}, {"lam": 0.0}, {"gamma": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            replace(SMALL, **changes)


def test_fit_solves_the_ridge_problem():
    X_dN, theta_d = drawn(SMALL)
    theta_dT = fit(X_dN, (X_dN.T @ theta_d)[:, None], 0.5)
    np.testing.assert_allclose(X_dN @ (X_dN.T @ (theta_d[:, None] - theta_dT)), 0.5 * theta_dT, atol=1e-9)


def test_verdicts_say_here_and_elsewhere():
    assert verdict(True, [True, True]) == "holds"
    assert verdict(False, [False, False]) == "does not hold"
    assert verdict(True, [True, False]) == "holds here, not everywhere"
    assert verdict(False, [True, False]) == "not here, but elsewhere"


def test_the_readme_shows_the_committed_numbers():
    found = json.loads((HERE / "results" / "theory.json").read_text())
    assert {one["claim"] for one in found["claims"]} == set(CLAIMS)
    assert set(found["regimes"]) == set(REGIMES)
    readme = (HERE / "README.md").read_text()
    for name, made in tables(found).items():
        assert f"<!-- table {name} -->\n{made}\n<!-- end -->" in readme
    for picture in (HERE / "results").glob("*.png"):
        assert f"(results/{picture.name})" in readme
        assert picture.stat().st_size < 100_000


def test_the_command_prints_and_writes_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(claim in printed for claim in CLAIMS)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        path.name for path in (HERE / "results").iterdir()
    }
    assert "KD lowers the bias" in (tmp_path / "README.md").read_text()
