"""What would another method have weighed? Any method's weights from a run's stored logits, nothing trained again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from kit.criteria import confused_labels
from kit.methods import METHODS
from kit.runs import Run
from kit.types import KitError, Seen, Streams, unknown


def whatif(run: Run, methods: Sequence[str] | str, *, epochs: Sequence[int] | None = None,
           reference: str = "") -> pd.DataFrame:
    """The weights that `methods` would have given to the probe of `run` after each epoch; one row per epoch and method.

    Columns: mean_weight; effective_sample_share, (Σw)²/(n Σw²); spearman, the rank correlation with the weights of
    `reference` (by default the first method that reweights); top_overlap, the share of the reference's most-weighted
    tenth that is in this method's; robust_share, one_label_share and several_labels_share, the shares of the total
    weight on examples that are right under attack, have one, and have several confused labels; n. `.attrs["by_class"]`
    is {(epoch, method): (K,) shares of the total weight}.

    What it cannot know: under other weights the network would have become another one. Batch normalisers see the
    whole probe as one batch, and every criterion sees the frozen network, not the moving one. Errors: `KitError` for
    unknown methods, epochs that are not stored, or a reference that is not among the methods.
    """
    names = methods.split() if isinstance(methods, str) else list(methods)
    if not names:
        raise KitError(f"whatif needs at least one method. Choices: {', '.join(METHODS)}")
    rows = {name: METHODS[name] for name in names}
    reference = reference or next((name for name in names if rows[name].reweights), names[0])
    if reference not in rows:
        raise unknown("reference among these methods", reference, names)
    table, by_class = [], {}
    for epoch in epochs if epochs is not None else range(1, len(run.history) + 1):
        seen, ids = _seen(run, epoch)
        weights = {name: rows[name].weigh(_with_streams(seen, ids, run, epoch)).detach().numpy() for name in rows}
        groups = _groups(seen)
        for name, w in weights.items():
            table.append({"epoch": epoch, "method": name, **_summary(w, weights[reference], ids.numpy(), groups)})
            by_class[epoch, name] = np.bincount(seen.y.numpy(), w, seen.logits_adv.shape[1]) / (w.sum() or 1.0)
    frame = pd.DataFrame(table)
    frame.attrs = {"by_class": by_class, "classes": run.record["classes"], "run": run.key, "reference": reference}
    return frame


def _seen(run: Run, epoch: int) -> tuple[Seen, torch.Tensor]:
    """The probe of training images as it stood after an epoch, in float64, and its ids."""
    stored = {name.removeprefix("seen_"): torch.from_numpy(values) for name, values in run.epoch(epoch).items()
              if name.startswith("seen_")}
    whole = {name: stored[name].long() for name in ("y", "kappa", "lps")}
    real = {name: stored[name].double() for name in ("logits_adv", "logits_nat", "p_flip")}
    # the second attack's images are not stored; no method's weights read them
    return Seen(**whole, **real, steps=run.plan.recipe.steps), stored["ids"]


def _with_streams(seen: Seen, ids: torch.Tensor, run: Run, epoch: int) -> Seen:
    """Fresh streams for each method, so that what one draws does not depend on the others."""
    return Seen(seen.y, seen.logits_adv, seen.logits_nat, seen.kappa, seen.lps, seen.p_flip, seen.steps,
                Streams(ids, run.plan.seed, "whatif", epoch))


def _groups(seen: Seen) -> dict[str, np.ndarray]:
    count = confused_labels(seen.probs_adv, seen.y).numpy()
    right = (seen.logits_adv.argmax(dim=1) == seen.y).numpy()
    return {"robust_share": right, "one_label_share": count == 1, "several_labels_share": count >= 2}


def _summary(w: np.ndarray, reference: np.ndarray, ids: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    total, n = w.sum(), len(w)
    tenth = max(1, n // 10)
    top, top_reference = (set(ids[np.lexsort((ids, -values))][:tenth]) for values in (w, reference))
    ranks, ranks_reference = rankdata(w), rankdata(reference)
    constant = np.ptp(ranks) == 0 or np.ptp(ranks_reference) == 0
    return {"mean_weight": total / n, "effective_sample_share": total ** 2 / (n * (w ** 2).sum()) if total else 0.0,
            "spearman": np.nan if constant else np.corrcoef(ranks, ranks_reference)[0, 1],
            "top_overlap": len(top & top_reference) / tenth,
            **{name: w[mask].sum() / total if total else 0.0 for name, mask in groups.items()}, "n": n}
