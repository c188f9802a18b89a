"""The answer to: what kinds of mistakes are these, and what does each need?"""

from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from tmv_lib.data.subgroups import adjust_gaps, find, gap, subgroup_columns
from tmv_lib.failures import agreement, taxonomy
from tmv_lib.pipeline.params import Params, Resamples, Seed
from tmv_lib.statistics.estimate import Estimate, Resampler, interval_rows, mean
from tmv_lib.statistics.resampling import generator


class FailuresParams(Params):
    neighbours: Annotated[int, Field(ge=1, le=10_000)]
    folds: Annotated[int, Field(ge=2, le=20)]
    components: Annotated[int, Field(ge=1, le=10_000)]
    resamples: Resamples
    seed: Seed


def sort_errors(evidence: pd.DataFrame) -> pd.DataFrame:
    """The errors of the test split with their kinds and what each needs, a row per model and case."""
    errors = evidence[evidence["wrong"] & (evidence["split"] == "test")].reset_index(drop=True)
    errors = taxonomy.name_site(errors.join(taxonomy.sort_errors(errors, score=taxonomy.frozen_score())))
    return errors.assign(needs=errors["kind"].map(taxonomy.NEEDS))


def count(
    errors: dict[str, pd.DataFrame], evidence: pd.DataFrame, params: FailuresParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How many errors of each kind every model makes, in each calibration, and rows to draw.

    errors: sorted, by calibration (`as_shipped`, and those of the site); evidence: as shipped.
    """
    metrics, rows = dict[str, Any](), []
    for model, test in evidence[evidence["split"] == "test"].groupby("model", sort=False):
        own = {name: table[table["model"] == model] for name, table in errors.items()}
        figures, drawn = count_kinds(own["as_shipped"], test, params)
        rows.append(drawn.assign(series=model))
        metrics[str(model)] = figures | {name: taxonomy.tally(table) for name, table in own.items()}
    return metrics, pd.concat(rows)


def count_kinds(
    errors: pd.DataFrame, test: pd.DataFrame, params: FailuresParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How many errors of each kind one model makes, what mending a kind would gain, and what is right for no reason."""
    y_true, y_prob = test["y_true"].to_numpy(), test["y_prob"].to_numpy()
    of_errors = Resampler(errors["patient_id"].to_numpy(), params.resamples, params.seed)
    of_test = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    figures, rows = taxonomy.tally(errors), []
    for kind in taxonomy.KINDS:
        of_kind = (errors["kind"] == kind).to_numpy()
        figures[kind]["share"] = of_errors.estimate(mean, of_kind.astype(float))
        rows += interval_rows(figures[kind]["share"], value="share", kind=kind)
        if of_kind.any():
            here = test["image_id"].isin(errors.loc[of_kind, "image_id"]).to_numpy()
            figures[kind]["accuracy_gain"] = int(of_kind.sum()) / len(test)
            arrays = y_true, y_prob, *taxonomy.mended(y_true, y_prob, here, kind=kind)
            figures[kind]["auroc_gain"] = of_test.estimate(taxonomy.auroc_gain, *arrays, stratify=y_true)
    # Right, but not once the border is hidden, and a network that never sees the border is wrong.
    right = ~test["wrong"].to_numpy(dtype=bool)
    leaning = (test["border_flips"] & ((test["reference_prob"] > 0.5) != test["y_true"])).to_numpy(dtype=bool)[right]
    lucky = of_test.among(right).estimate(mean, leaning.astype(float))
    figures["right_for_the_wrong_reason"] = {"n": int(leaning.sum()), "share": lucky}
    return figures, pd.DataFrame(rows, columns=["kind", "share", "low", "high"])


def subgroups(evidence: pd.DataFrame, table: pd.DataFrame, params: FailuresParams) -> dict[str, Any]:
    """The ensemble's error rate by every subgroup that the case table names, and its gap at the same mix of classes."""
    test = evidence[(evidence["model"] == "ensemble") & (evidence["split"] == "test")]
    table = table.set_index("image_id").loc[test["image_id"]]
    error, y_true = (test[name].to_numpy(dtype=float) for name in ("wrong", "y_true"))
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    named = find(table[subgroup_columns(table)], y_true)
    figures: dict[str, Any] = {}
    for name, inside, defined_by_truth in named:
        figures[name] = {
            "n": int(inside.sum()),
            "n_positive": int(y_true[inside].sum()),
            "n_errors": int(error[inside].sum()),
            "defined_by_truth": defined_by_truth,
            "error_rate": resampler.among(inside).estimate(mean, error[inside]),
            **gap(error, y_true, inside, groups=resampler.groups),
        }
    adjust_gaps(figures, named, y_true)
    return figures or {"absent": "not measurable: the case table has no subgroup column"}


def adjudicate(errors: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    """How far a reader's kinds, a table of `image_id` and `kind`, agree with those of the ensemble's errors.

    Raises ValueError naming the row (the header is row 1) that stands there twice, is no such error, or is no kind.
    """
    ours = errors[errors["model"] == "ensemble"].set_index("image_id")["kind"]
    again = table["image_id"].duplicated()
    for row, case in enumerate(table.itertuples(), start=2):
        if again[case.Index]:
            raise ValueError(f"row {row}: {case.image_id!r} stands there more than once")
        if case.image_id not in ours.index:
            raise ValueError(f"row {row}: {case.image_id!r} is no error of the ensemble on the test split")
        if case.kind not in taxonomy.KINDS:
            raise ValueError(f"row {row}: kind is {case.kind!r}, allowed: {', '.join(taxonomy.KINDS)}")
    theirs, own = table["kind"].to_numpy(), ours.loc[table["image_id"]].to_numpy()
    try:
        kappa = agreement.kappa(theirs, own)
    except ValueError as error:
        kappa = Estimate(absent=str(error))
    return {"n": len(table), "agree": int((theirs == own).sum()), "kappa": kappa}


def queues(errors: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The ensemble's errors by where they are sent, the likeliest of their kind first; undetermined: nearest to one.

    Where the site is likeliest, the `probability` is that of the label once calibrated there.
    """
    own = errors[errors["model"] == "ensemble"]
    at_site = own["site_prob"].where(own["y_true"] == 1, 1 - own["site_prob"])
    likely = own.filter(regex="^p_").drop(columns="p_undetermined").max(axis=1).mask(own["best"] == "site", at_site)
    others = errors[errors["model"] != "ensemble"].groupby("image_id")["model"].agg(" ".join)
    table = own.assign(probability=likely, members_that_err=own["image_id"].map(others).fillna("none"))
    table = table.sort_values("probability", ascending=False, kind="stable")
    kept = ["image_id", "patient_id", "y_true", "y_prob", "best", "probability", "runner_up", "members_that_err"]
    return {kind: table.loc[table["kind"] == kind, [*kept, "reason", "needs"]] for kind in taxonomy.KINDS}


def against_oracle(errors: pd.DataFrame, evidence: pd.DataFrame, params: FailuresParams) -> dict[str, Any]:
    """How far the taxonomy agrees with the phantom's repairs over all models' errors, and what each signal tells.

    The signals are judged on all errors outside train of the four kinds that the score tells: nothing is fitted.
    """
    figures = agreement.agreement(errors, n_resamples=params.resamples, seed=params.seed)
    known = errors[errors["cause"] != "undetermined"]
    figures["kappa_of_shuffled_kinds"] = agreement.shuffled_kappa(
        known["cause"], known["best"], known["patient_id"], rng=generator(params.seed, "shuffled kinds")
    )
    wrong = evidence[evidence["wrong"] & evidence["cause"].isin(taxonomy.SCORED)]
    who: dict[str, Any] = {"groups": wrong["patient_id"].to_numpy(), "n_resamples": params.resamples}
    signals = agreement.discriminate(taxonomy.all_signals(wrong), wrong["cause"], seed=params.seed, **who)
    return figures | {"signals": signals}


def confusion(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors of all models by what mended them and what they are called, counted; no row without a truth."""
    tables = [pd.DataFrame(columns=["series", "mended_by", "called", "n"])]
    columns = {"best": "most likely kind", "kind": "where it decides"} if "cause" in errors else {}
    for column, series in columns.items():
        crossed = agreement.confusion(errors, column).rename(index={"undetermined": "no repair"})
        crossed = crossed.rename_axis("mended_by").reset_index()
        tables.append(crossed.melt("mended_by", var_name="called", value_name="n").assign(series=series))
    return pd.concat(tables)
