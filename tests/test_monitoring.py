"""Bets keep their level whenever one looks; a patient counts once; who was not due to be read never enters."""

import numpy as np
import pandas as pd
import pytest
from mapie.exchangeability_testing import RiskMonitoring
from scipy.stats import kstest

from studies import local_acceptance
from studies import monitoring as study
from tmv_lib.monitoring import acceptance, answer, audit, betting, conformal, losses, rehearsal

LIMIT, ALPHA = 0.05, 0.05
REFERENCE = pd.DataFrame(columns=[*answer.DIGESTS, *answer.SIGNALS])


def by_hand(loss, limit, against, weight, anew):
    """The wealth after each patient, one stake after another."""
    largest = 1 / (3 * limit) if against == "at_most" else 1 / (1 - limit)
    total = []
    for t in range(len(loss)):
        starts = range(0, t + 1, 50) if anew else [0]
        stakes = [(0.95 if anew else 1.0) if b == 0 else 0.05 / (b * (b + 1)) for b in range(len(starts))]
        wealth = 0.05 / len(starts) if anew else 0.0
        for start, stake in zip(starts, stakes, strict=True):
            for k in range(1, 26):
                bet, product = largest * k / 26, 1.0
                for x, v in zip(loss[start : t + 1], weight[start : t + 1], strict=True):
                    product *= 1 + bet * v * ((x - limit) if against == "at_most" else (limit - x))
                wealth += stake * product / 25
        total.append(np.log(wealth))
    return total


@pytest.mark.parametrize(("against", "anew"), [("at_most", True), ("at_most", False), ("at_least", False)])
def test_wealth_is_what_the_stakes_come_to(against, anew):
    rng = np.random.default_rng(0)
    loss, weight = rng.choice([0, 0, 0, 1 / 3, 1], 120), rng.choice([0.1, 1.0], 120)
    ours = betting.wealth(loss, 0.2, against=against, weight=weight, anew=anew)
    assert ours == pytest.approx(by_hand(loss, 0.2, against, weight, anew))
    rarely = betting.wealth(loss, 0.2, against=against, weight=weight, every=7)
    often = betting.wealth(loss, 0.2, against=against, weight=weight)
    assert rarely == pytest.approx(often[6::7])


def ever(draw, **options):
    loss, weight = draw(400, np.random.default_rng(1))
    wealth = betting.wealth(loss[:, :600], LIMIT, against="at_most", weight=weight[:, :600], **options)
    return (wealth >= -np.log(ALPHA)).any(axis=1).mean()


WORLDS = {
    "one image a patient": lambda n, rng: study.single(n, rng, risk=LIMIT),
    "three alike": lambda n, rng: study.per_patient(n, rng, correlation=0.6),
    "three the same": lambda n, rng: study.per_patient(n, rng, correlation=1.0),
    "few are audited": lambda n, rng: study.audited(n, rng, rate=0.05, weighted=True),
    "most are audited": lambda n, rng: study.audited(n, rng, rate=0.5, weighted=True),
    "labels are missing": lambda n, rng: study.pending(n, rng, missing=0.3),
}


@pytest.mark.parametrize("world", WORLDS)
def test_false_alarms_are_as_rare_as_promised_however_often_one_looks(world):
    assert ever(WORLDS[world], anew=True) <= ALPHA + 0.02


def test_the_traps_are_traps():
    assert ever(lambda n, rng: study.per_image(n, rng, correlation=1.0)) > 2 * ALPHA
    assert ever(lambda n, rng: study.audited(n, rng, rate=0.05, weighted=False)) > 2 * ALPHA
    assert ever(study.reported) > 2 * ALPHA


def test_a_missing_label_can_only_delay_an_alarm():
    rng = np.random.default_rng(2)
    loss = (rng.random(500) < 0.15).astype(float)
    known = np.where(rng.random(500) < 0.4, 0, loss)
    for anew in (True, False):
        full, partly = (betting.wealth(x, LIMIT, against="at_most", anew=anew) for x in (loss, known))
        assert (partly <= full + 1e-12).all()


def test_a_bad_month_after_a_good_year_is_noticed():
    rng = np.random.default_rng(3)
    loss = np.concatenate([rng.random(1000) < 0.02, rng.random(600) < 0.15]).astype(float)
    first, anew = (betting.wealth(loss, LIMIT, against="at_most", anew=how) for how in (False, True))
    assert 1000 < betting.reached(anew, ALPHA) < 1400
    assert betting.reached(anew, ALPHA) + 150 < betting.reached(first, ALPHA)


def test_the_alarm_comes_before_that_of_a_peer():
    loss, _ = study.single(3, np.random.default_rng(4), risk=0.25, n=400)
    ours = [betting.reached(betting.wealth(x, LIMIT, against="at_most", anew=True), ALPHA) for x in loss]
    assert all(own < study.of_mapie(x) < np.inf for own, x in zip(ours, loss, strict=True))
    assert RiskMonitoring is study.RiskMonitoring


def test_the_interval_is_what_neither_side_rejects():
    rng = np.random.default_rng(5)
    loss, weight = rng.choice([0, 0, 0, 0.5, 1], 200), rng.choice([0.2, 1.0], 200)
    low, high = betting.confidence_interval(loss, 0.1, weight=weight)
    for limit in np.linspace(0.02, 0.9, 40):
        above, below = (
            betting.wealth(loss, limit, against=side, weight=weight)[-1] >= np.log(20)
            for side in ("at_most", "at_least")
        )
        assert above == (limit < low)
        assert below == (limit > high)
    assert betting.confidence_interval([], 0.1) == (0, 1)
    assert betting.confidence_interval(np.zeros(100), 0.1)[0] == 0


def test_the_intervals_hold_the_risk_all_the_way():
    rng, missed = np.random.default_rng(6), 0
    for _ in range(60):
        loss = (rng.random(300) < 0.1).astype(float)
        intervals = [betting.confidence_interval(loss[:n], 0.1) for n in range(20, 301, 40)]
        missed += any(not low <= 0.1 <= high for low, high in intervals)
    assert missed <= 12  # 6 expected at most


@pytest.mark.parametrize("limit", [0.02, 0.05, 0.3])
def test_fewest_is_the_first_that_accepts_without_an_error(limit):
    wealth = betting.wealth(np.zeros(2000), limit, against="at_least")
    assert betting.fewest(limit, ALPHA) == betting.reached(wealth, ALPHA)


def test_an_impossible_loss_is_refused():
    with pytest.raises(ValueError, match=r"loss must lie in \[0, 1\], found 1.5"):
        betting.wealth([0, 1.5], LIMIT, against="at_most")
    with pytest.raises(ValueError, match="limit must lie in"):
        betting.wealth([0], 1, against="at_most")


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 65, 300])
def test_earlier_smaller_counts(n):
    rank = np.random.default_rng(n).permutation(n)
    assert conformal.earlier_smaller(rank).tolist() == [int((rank[:i] < rank[i]).sum()) for i in range(n)]


def test_p_values_of_exchangeable_cases_are_uniform_even_with_ties():
    rng = np.random.default_rng(7)
    p = conformal.p_values(rng.integers(0, 5, 100), rng.integers(0, 5, 2000), rng=rng)
    assert kstest(p, "uniform").pvalue > 0.01
    low = conformal.p_values(rng.normal(size=200), rng.normal(size=50) - 3, rng=rng)
    assert low[:5].max() < 0.1


def test_inputs_raise_an_alarm_when_they_change_and_seldom_otherwise():
    rng, ever, delays = np.random.default_rng(8), 0, []
    for _ in range(150):
        reference = rng.normal(size=200)
        same, other = (conformal.p_values(reference, rng.normal(size=300) + shift, rng=rng) for shift in (0, 0.7))
        ever += bool((conformal.martingale(same) >= -np.log(ALPHA)).any())
        delays.append(betting.reached(conformal.martingale(other), ALPHA) or 999)
    assert ever <= 14  # 7.5 expected at most
    assert np.median(delays) < 80


def test_the_lot_is_the_same_at_every_look_and_a_higher_rate_draws_more():
    patients = pd.Series([f"p{k}" for k in range(20_000)])
    some, more = (audit.drawn(patients, rate=rate, salt="a") for rate in (0.1, 0.3))
    assert some.mean() == pytest.approx(0.1, abs=0.01)
    assert (more | ~some).all()
    assert (audit.drawn(patients[::-1], rate=0.1, salt="a")[::-1] == some).all()
    assert (audit.drawn(patients, rate=0.1, salt="b") & some).mean() == pytest.approx(0.01, abs=0.005)
    assert audit.drawn(patients, rate=1, salt="a").all()


def logged(rng, patients=400, images=2, risk=0.1, **columns):
    n = patients * images
    decision = np.repeat(rng.integers(0, 2, patients), images)
    wrong = np.repeat(rng.random(patients) < risk, images)
    table = {
        "image_id": [f"i{k}" for k in range(n)],
        "patient_id": np.repeat([f"p{k}" for k in range(patients)], images),
        "time": np.repeat([f"2026-01-{1 + k * 28 // patients:02}T09:00:00" for k in range(patients)], images),
        "y_prob": np.where(decision == 1, 0.8, 0.2),
        "certainty": rng.random(n),
        "distance": rng.random(n),
        "decision": decision,
        "deferred": np.repeat(rng.random(patients) < 0.3, images),
        **dict.fromkeys(answer.DIGESTS, "a"),
        **columns,
    }
    return pd.DataFrame(table), pd.DataFrame(
        {"image_id": table["image_id"], "y_true": np.where(wrong, 1 - decision, decision)}
    )


PARAMS = answer.MonitorParams(
    promises={"missed_positives": 0.3, "false_alarms": 0.3, "referrals": 0.5},
    audit_rate=0.3,
    salt="s",
    alpha=0.05,
    seed=0,
)


def test_a_patient_counts_once_with_the_images_of_the_first_day():
    log, labels = logged(np.random.default_rng(9), patients=20, images=3, risk=0.5)
    cases = log.assign(y_true=labels["y_true"], deferred=False)
    visits = losses.first_visits(cases)
    everybody = np.ones(20, dtype=bool)
    before = losses.of_patients(visits, "false_alarms", due=everybody, rate=1.0)
    assert set(before["low"]) == {0.0, 1.0}
    assert len(before) == cases.loc[cases["decision"] == 1, "patient_id"].nunique()
    again = cases.assign(image_id="later_" + cases["image_id"], time="2026-02-01", y_true=1 - cases["y_true"])
    twice = losses.first_visits(pd.concat([cases, cases, again], ignore_index=True))
    pd.testing.assert_frame_equal(losses.of_patients(twice, "false_alarms", due=everybody, rate=1.0), before)
    one_wrong = cases.assign(decision=1, y_true=[0, 1, 1] * 20)
    shares = losses.of_patients(losses.first_visits(one_wrong), "false_alarms", due=everybody, rate=1.0)
    assert shares["low"].tolist() == pytest.approx([1 / 3] * 20)


def test_labels_of_those_who_were_not_due_never_enter():
    log, labels = logged(np.random.default_rng(10))
    visits = losses.first_visits(log)
    due = losses.due(visits, rate=PARAMS.audit_rate, salt=PARAMS.salt)[visits["patient"]]
    quiet = answer.look(log, labels[due], REFERENCE, PARAMS).figures
    bad = labels.assign(y_true=np.where(due, labels["y_true"], 1 - log["decision"]))
    loud = answer.look(log, bad, REFERENCE, PARAMS).figures
    assert loud["promises"] == quiet["promises"]
    assert quiet["reported"] == {"n_images": 0, "n_wrong": 0}
    assert loud["reported"]["n_images"] == loud["reported"]["n_wrong"] == (~due).sum()


def test_the_order_of_labels_changes_nothing_and_what_is_missing_is_pending():
    log, labels = logged(np.random.default_rng(11))
    whole = answer.look(log, labels, REFERENCE, PARAMS).figures
    shuffled = answer.look(log, labels.sample(frac=1, random_state=0), REFERENCE, PARAMS).figures
    assert shuffled == whole
    assert all(one["n_pending"] == 0 for one in whole["promises"].values())
    none = answer.look(log, labels[:0], REFERENCE, PARAMS).figures
    assert none["answer"] == "no_labels"
    negative = none["promises"]["missed_positives"]
    assert negative["n_pending"] == negative["n"] == whole["promises"]["missed_positives"]["n"] > 0
    assert negative["broken_if_pending_are_wrong"]


def test_another_system_starts_anew():
    rng = np.random.default_rng(12)
    (old, of_old), (new, of_new) = logged(rng, risk=0.9), logged(rng, risk=0.0)
    new, of_new = (table.assign(image_id="new_" + table["image_id"]) for table in (new, of_new))
    new = new.assign(patient_id="new_" + new["patient_id"], policy="b")
    assert answer.look(old, of_old, REFERENCE, PARAMS).figures["answer"] == "stop"
    both = answer.look(pd.concat([old, new]), pd.concat([of_old, of_new]), REFERENCE, PARAMS).figures
    assert both["answer"] == "carry_on"
    assert (both["n_patients"], both["n_earlier_systems"]) == (400, 1)


def test_an_alarm_says_since_when_and_referrals_ask_to_look():
    log, labels = logged(np.random.default_rng(13), risk=0.9)
    found = answer.look(log, labels, REFERENCE, PARAMS)
    broken = found.figures["promises"]["missed_positives"]
    assert (broken["status"], broken["broken_at"][:7]) == ("broken", "2026-01")
    assert broken["broken_after"] < 40
    assert found.evidence["series"].nunique() == 4
    low, _ = broken["risk"].low, broken["risk"].high
    assert low > 0.3
    log, labels = logged(np.random.default_rng(13), risk=0.0, deferred=True)
    assert answer.look(log, labels, REFERENCE, PARAMS).figures["answer"] == "look"


def test_an_update_is_proposed_where_the_labels_support_one():
    log, labels = logged(np.random.default_rng(14), patients=1500, images=1, risk=0.45)
    update = answer.look(log, labels, REFERENCE, PARAMS).figures["update"]
    assert update["choice"] in ("intercept", "both")
    assert update["slope"] < 0.6  # it says 80 % and is right 55 % of the time
    log, labels = logged(np.random.default_rng(14), patients=1500, images=1, risk=0.2)
    assert answer.look(log, labels, REFERENCE, PARAMS).figures["update"]["choice"] == "keep"


def test_inputs_are_compared_with_those_of_the_same_system():
    rng = np.random.default_rng(15)
    log, labels = logged(rng)
    reference = pd.DataFrame({"certainty": rng.random(200), "distance": rng.random(200) + 0.5}).assign(
        **dict.fromkeys(answer.DIGESTS, "a")
    )
    found = answer.look(log, labels, reference, PARAMS).figures["inputs"]
    assert found["status"] == "changed"
    assert found["changed_after"] < 100
    other = answer.look(log, labels, reference.assign(policy="b"), PARAMS).figures["inputs"]
    assert other["status"] == "not_compared"


def protocol(**changes):
    values = {"system": "s", "place": "p", "sample": "consecutive", "promises": {"false_alarms": 0.1}}
    return acceptance.Protocol(**values | {"subgroups": {}, "alpha": 0.05, "most_patients": 400} | changes)


def called_positive(rng, patients, risk):
    wrong = rng.random(patients) < risk
    ids = [f"p{k}" for k in range(patients)]
    table = {
        "image_id": ids,
        "patient_id": ids,
        "time": "",
        "decision": 1,
        "deferred": False,
        "y_true": (~wrong).astype(int),
    }
    return pd.DataFrame(table)


@pytest.mark.parametrize(
    ("risk", "patients", "told"),
    [(0.0, 60, "accept"), (0.0, 30, "go_on"), (0.5, 60, "reject"), (0.1, 400, "not_shown")],
)
def test_acceptance_answers(risk, patients, told):
    cases = called_positive(np.random.default_rng(16), patients, risk)
    assert acceptance.judge(cases, protocol())["answer"] == told


def test_a_false_promise_is_seldom_accepted_and_true_ones_seldom_rejected():
    rng, accepted, rejected = np.random.default_rng(17), 0, 0
    two = protocol(subgroups={"sex": ["F", "M"]})
    for _ in range(60):
        cases = called_positive(rng, 400, 0.1).assign(sex=rng.choice(["F", "M"], 400))
        answered = acceptance.judge(cases, two)["answer"]
        accepted += answered == "accept"
        rejected += answered == "reject"
    assert accepted <= 8
    assert rejected <= 8


def test_a_subgroup_can_stop_what_holds_for_all():
    rng = np.random.default_rng(18)
    cases = called_positive(rng, 390, 0.0).assign(sex=["F"] * 300 + ["M"] * 90)
    cases.loc[cases["sex"] == "M", "y_true"] = (np.arange(90) % 3 > 0).astype(int)
    found = acceptance.judge(cases, protocol(subgroups={"sex": ["F", "M"]}))
    assert found["groups"]["sex F"]["false_alarms"]["answer"] == "accept"
    assert found["answer"] == "reject"


def test_patients_beyond_the_last_are_not_looked_at():
    good, bad = (
        called_positive(np.random.default_rng(19), 400, 0.0),
        called_positive(np.random.default_rng(19), 400, 1.0),
    )
    bad = bad.assign(image_id="b" + bad["image_id"], patient_id="b" + bad["patient_id"])
    assert acceptance.judge(pd.concat([good, bad]), protocol()) == acceptance.judge(good, protocol())


def test_an_enriched_sample_promises_per_class_alone():
    with pytest.raises(ValueError, match="false_alarms depends on the share of positives"):
        protocol(sample="enriched")
    assert protocol(sample="enriched", promises={"missed_of_positives": 0.1}).n_promises == 1


def test_a_plan_is_what_acceptance_takes():
    table = acceptance.plan(protocol(), np.random.default_rng(0))
    none_wrong = table[table["true_risk"] == 0].iloc[0]
    assert none_wrong["median"] == none_wrong["nine_in_ten"] == betting.fewest(0.1, 0.05)
    assert table.loc[table["ends_in"] == "accept", "within"].is_monotonic_decreasing
    needed = acceptance.patients_needed(
        0.02, LIMIT, ALPHA, accepts=True, most=600, rng=np.random.default_rng(0), streams=300
    )
    assert np.median(needed) == pytest.approx(244, rel=0.2)


def test_a_planted_shift_is_noticed_after_it_came():
    rng = np.random.default_rng(20)
    before, _ = logged(rng, patients=1100, images=1, risk=0.0)
    before = before.assign(shifted=False, y_true=before["decision"], deferred=rng.random(1100) < 0.3)
    after = before.assign(image_id="a" + before["image_id"], patient_id="a" + before["patient_id"], shifted=True)
    after["y_true"] = np.where(rng.random(1100) < 0.7, 1 - after["decision"], after["decision"])
    year = rehearsal.play(pd.concat([before, after]), per_week=20, shift_week=30, rng=rng)
    assert year.log.groupby("week")["patient_id"].nunique().eq(20).all()
    assert (year.log["shifted"] == (year.log["week"] >= 30)).all()
    assert 30 + rehearsal.LABELS_LATE <= rehearsal.alarms(rehearsal.looks(year, REFERENCE, PARAMS), [])["stop"] < 48
    calm = rehearsal.play(before, per_week=20, shift_week=None, rng=rng)
    assert rehearsal.alarms(rehearsal.looks(calm, REFERENCE, PARAMS), [])["stop"] is None
    with pytest.raises(ValueError, match="need 1144 other patients, found 1100"):
        rehearsal.play(pd.concat([before, after]), per_week=44, shift_week=27, rng=rng)


def test_a_local_test_counts_orders_in_which_a_promise_ends():
    cases = called_positive(np.random.default_rng(21), 200, 0.3)
    found = local_acceptance.played(cases, "false_alarms", 0.1)
    assert (found["patients"], found["fewest_to_accept"]) == (200, 44)
    assert found["risk"] == pytest.approx(1 - cases["y_true"].mean())
    assert found["rejected"] > 0.95
    assert found["accepted"] < 0.05
    right = local_acceptance.played(cases.assign(y_true=1), "false_alarms", 0.1)
    assert (right["accepted"], right["accepted_median"]) == (1, 44)
