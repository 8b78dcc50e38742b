"""The tuned lens: the lens after a translator of each layer, judged on speakers left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table, unexposed_samples
from ..probes.probe import check_memory, count_together
from ..selection import Selection
from ..source import View
from ..statistics.divergence import (
    chance_overlap,
    js_divergence,
    kl_divergence,
    to_log_probabilities,
)
from ..statistics.resampling import cluster_bootstrap, weighted_mean, weighted_recall
from . import translator
from .lens import Answers, apply_head, choose_lens_arrays, explain_capture, read_answers, why_dark

MIN_GROUPS = 3
"""Speakers below which nothing is fitted: one is left out, another chooses the penalty."""
MIN_SAMPLES = 10
"""Samples below which nothing is fitted."""
_MEANS = ("kl_final_layer", "js", "overlap")

type Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class TunedLens:
    """Distance of each layer's prediction from the final one after a translator of the layer.

    Notes
    -----
    A tuned lens (Belrose et al. 2023, arXiv 2303.08112) puts an affine translator before the head,
    starts it at the identity and fits it to the model's own answers. Of a translator m + W m + b
    before a linear head H, the logits show H W and H b alone, so the fit is a logistic regression
    with the lens as offset and the model's probabilities as targets: z = z_ℓ + V x_ℓ + c with the
    least mean KL(p_L ‖ softmax(z)) + ½ λ (‖V‖² + ‖c‖²), x_ℓ standardised. It is convex and has one
    answer, which a strong λ draws to the lens itself. λ is chosen of 8 on speakers of the training
    part, and every score is of speakers that were left out. It tells what a linear reader finds in
    a layer of the model's answer; it does not tell that the model reads the layer so.

    Per layer: G · (samples · features · min(samples, features)) and 26 fits or more for each of the
    G speakers; the memory of a few copies of the layer's features in float64.

    References
    ----------
    Belrose et al. 2023, Eliciting latent predictions from transformers with the tuned lens.
    """

    fit_exposed: bool = False
    """Whether samples of the training part of the head are fitted on; scored they never are."""
    name: str = "tuned_lens"
    description: str = "the lens after a fitted translator of each layer, on speakers left out"
    by_default: bool = False

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays behind the lens."""
        keys = choose_lens_arrays(selection, self.name)
        for key in keys:
            check_memory(f"the tuned lens of {key}", _count(key, selection), selection)
        return Plan(partial(_conclude, self, keys), (), keys)


def _count(key: ArrayKey, selection: Selection) -> int:
    view = selection.source.views[key.capture]
    width = view.info(selection.stored_key(key)).width
    n_classes = selection.source.capture(view.name).outputs["logits"].shape[0]
    return translator.count_bytes(view.samples.size, width, n_classes)


def _conclude(analysis: TunedLens, keys: Sequence[ArrayKey], outcome: Outcome) -> dict[str, Table]:
    together = count_together(max(_count(key, outcome.selection) for key in keys), outcome)
    rows: list[Row] = []
    for view in outcome.selection.captures:
        mine = [key for key in keys if key.capture == view.name]
        unexposed = unexposed_samples(view, through="head")
        lacking = why_dark(view, mine, unexposed, outcome.selection)
        samples = view.samples if analysis.fit_exposed else unexposed
        samples = samples[view.group_n[samples] != ""]
        lacking = lacking or _why_unfitted(view, samples, analysis)
        if lacking:
            rows.append(explain_capture(view, lacking))
            continue
        answers = read_answers(view, samples, outcome.selection.source)
        given = _Given(view, samples, np.isin(samples, unexposed), answers)
        work = partial(_tune, given=given, outcome=outcome)
        rows += outcome.runner.map(work, mine, together)
    fitted = "all other speakers" if analysis.fit_exposed else "the others that are scored"
    attrs = {
        "translator": "logits + V x + c of standardised features, from V = c = 0, convex",
        "penalty": "of squared V and c; median over folds, inf is the lens itself; of "
        f"{', '.join(f'{p:g}' for p in translator.PENALTIES)} by KL on training speakers left out",
        "final": "softmax of the stored logits",
        "split": f"leave-one-speaker-out, fitted on {fitted}",
        "lens_": "the lens on the same samples; delta_: the tuned lens less the lens",
        "chance_kl": "KL to the mean of the model's probabilities over the training speakers",
        "interval": "cluster bootstrap over speakers, 95 %",
        "unit": "nats",
    }
    return {"tuned_lens": Table(pd.DataFrame(rows), attrs)}


def _why_unfitted(view: View, samples: NDArray[np.int64], analysis: TunedLens) -> str:
    """Return why no translator can be fitted and judged; empty where one can."""
    n_groups = len(set(view.group_n[samples].tolist()))
    if n_groups < MIN_GROUPS:
        where, hint = "", ""
        if not analysis.fit_exposed and samples.size < view.samples.size:
            where = " outside of the training part"
            hint = "; `--option tuned_lens.fit_exposed=true` fits on the training part too"
        return (
            f"{n_groups} {view.group_name or 'group'}s{where}; at least {MIN_GROUPS} are needed: "
            f"one is left out, one chooses the penalty{hint}"
        )
    if samples.size < MIN_SAMPLES:
        return f"{samples.size} samples; at least {MIN_SAMPLES} are needed"
    return ""


@dataclass(frozen=True, slots=True)
class _Given:
    """What the layers of one capture are fitted on and compared with."""

    view: View
    samples: NDArray[np.int64]
    scored_n: NDArray[np.bool_]
    """Which of the samples are scored."""
    answers: Answers

    def scored(self) -> Answers:
        """Return the answers of the samples that are scored."""
        known, scored_n = self.answers, self.scored_n
        speaker_n = np.unique(known.speaker_n[scored_n], return_inverse=True)[1]
        return Answers(known.log_final_nk[scored_n], speaker_n, known.true_n[scored_n])


def _tune(key: ArrayKey, *, given: _Given, outcome: Outcome) -> Row:
    """Return the row of one layer."""
    row: Row = {"capture": key.capture, "site": key.site, "layer": key.layer}
    row |= {"n": int(given.scored_n.sum()), "exposed": "none", "reason": ""}
    answers, scored_n = given.answers, given.scored_n
    x_nd = outcome.pooled.matrix(key, given.samples)
    parameters = dict(outcome.selection.source.capture(given.view.name).parameters)
    logits_nk = apply_head(parameters, x_nd)
    if not (np.isfinite(logits_nk).all() and np.isfinite(answers.log_final_nk).all()):
        return {**row, "reason": "NaN or infinite features or logits"}
    tuned_nk, penalty_g = translator.translate_left_out(
        x_nd, logits_nk, answers.log_final_nk, answers.speaker_n, scored_n
    )
    tuned_nk = tuned_nk[scored_n]
    lens_nk = to_log_probabilities(logits_nk[scored_n])
    if not np.isfinite(tuned_nk).all():
        failed = int(np.isnan(penalty_g).sum())
        return {**row, "reason": f"the fit did not converge in {failed} of {penalty_g.size} folds"}
    row |= {"penalty": float(np.median(penalty_g))}
    row |= {"chance_kl": _chance_divergence(answers, scored_n)}
    return row | _score(lens_nk, tuned_nk, given.scored(), outcome.selection.seed)


def _score(
    lens_nk: NDArray[np.float64], tuned_nk: NDArray[np.float64], answers: Answers, seed: int
) -> Row:
    """Return the scores of the tuned lens, of the lens, and their differences."""
    final_nk, group_n = answers.log_final_nk, answers.speaker_n
    tuned_nm, lens_nm = (_measure(final_nk, said_nk) for said_nk in (tuned_nk, lens_nk))
    both_nm = np.hstack([tuned_nm, tuned_nm - lens_nm])
    low_m, high_m = cluster_bootstrap(group_n, weighted_mean(both_nm), seed=seed)
    out: Row = {}
    for i, name in enumerate([*_MEANS, *(f"delta_{name}" for name in _MEANS)]):
        out |= {name: both_nm[:, i].mean(), f"{name}_low": low_m[i], f"{name}_high": high_m[i]}
    out |= {f"lens_{name}": lens_nm[:, i].mean() for i, name in enumerate(_MEANS)}
    tuned_n, final_n = tuned_nk.argmax(axis=1), final_nk.argmax(axis=1)
    out |= {"chance_overlap": chance_overlap(tuned_n, final_n, final_nk.shape[1])}
    return out | _recall(np.stack([tuned_n, lens_nk.argmax(axis=1)], axis=1), answers, seed)


def _measure(final_nk: NDArray[np.float64], said_nk: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL, JS and agreement of every sample, [samples, 3]."""
    same_n = final_nk.argmax(axis=1) == said_nk.argmax(axis=1)
    parts = kl_divergence(final_nk, said_nk), js_divergence(final_nk, said_nk), same_n
    return np.stack(parts, axis=1).astype(np.float64)


def _chance_divergence(answers: Answers, scored_n: NDArray[np.bool_]) -> float:
    """Return the mean KL to what the model says on average of the speakers that are fitted on."""
    final_nk, total = answers.log_final_nk, 0.0
    for group in np.unique(answers.speaker_n[scored_n]):
        held = answers.speaker_n == group
        average_k = np.log(np.exp(final_nk[~held]).mean(axis=0))
        total += kl_divergence(final_nk[held & scored_n], average_k[None]).sum()
    return float(total) / int(scored_n.sum())


def _recall(predicted_nm: NDArray[np.int64], answers: Answers, seed: int) -> Row:
    """Return the UAR of the tuned lens, of the lens, and their difference."""
    known = answers.true_n >= 0
    if not known.any():
        return {"reason": "no label is a class of the head: no UAR"}
    true_n, hit_nm = answers.true_n[known], predicted_nm[known] == answers.true_n[known, None]
    recall = weighted_recall(true_n, hit_nm.astype(np.float64), int(true_n.max()) + 1)

    def statistic(weights_bn: NDArray[np.float64]) -> NDArray[np.float64]:
        uar_bm = recall(weights_bn)
        return np.stack([uar_bm[:, 0], uar_bm[:, 1], uar_bm[:, 0] - uar_bm[:, 1]], axis=1)

    tuned, lens, delta = statistic(np.ones((1, true_n.size)))[0].tolist()
    groups = np.unique(answers.speaker_n[known], return_inverse=True)[1]
    low_m, high_m = cluster_bootstrap(groups, statistic, seed=seed)
    ends = {"uar_low": low_m[0], "uar_high": high_m[0]}
    ends |= {"delta_uar_low": low_m[2], "delta_uar_high": high_m[2]}
    return {"uar": tuned, "lens_uar": lens, "delta_uar": delta, **ends, "reason": ""}
