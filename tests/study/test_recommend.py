"""Which configuration is named, and that the command that is printed trains it."""

import errno
import io
import json
import math
import re
import shlex
import time
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from safetensors.numpy import save
from scipy import stats

from study import confirm, members, recommend, storage, train
from study.recommend import Candidate, Choice, choose
from study.results import CONFIRMED
from tests.study import synthetic
from tests.study.confirmations import add, another_version, config, no_front, search, trained
from trainables import single
from trainables.config import DataConfig, DatasetName, EvalConfig
from trainables.errors import InputError
from trainables.trial import Trial, load_model

NONE = (math.nan, math.nan)


def candidate(number, accuracy, seconds, **more):
    given = {"seconds_interval": NONE, "adversarial_interval": (accuracy - 0.05, accuracy + 0.05), "clean": 0.9}
    given |= {"n_examples": 300} | more
    return Candidate(number, f"member {number}", seconds=seconds, adversarial=accuracy, **given)


FRONT = [candidate(1, 0.2, 5.0), candidate(2, 0.45, 10.0), candidate(3, 0.5, 100.0)]


@pytest.mark.parametrize(
    ("max_seconds", "min_accuracy", "number"),
    [(None, None, 2), (50.0, None, 2), (5.0, None, 1), (None, 0.46, 3), (None, 0.1, 1), (200.0, 0.3, 3)],
)
def test_limits_choose_the_most_accurate_the_fastest_or_else_the_knee(max_seconds, min_accuracy, number):
    assert choose(FRONT, max_seconds, min_accuracy).candidate.number == number


def test_a_front_that_bends_inward_has_no_knee_and_that_is_said():
    choice = choose([candidate(1, 0.1, 1.0), candidate(2, 0.2, 10.0), candidate(3, 0.9, 20.0)], None, None)
    assert choice.candidate.number == 3
    assert choice.reasons[0].startswith("It is the most accurate of a front of 3 without a knee: none lies above")
    assert "--max-seconds or --min-adv-accuracy" in choice.reasons[0] and "farthest" not in choice.reasons[0]
    assert "It is the knee of the front of 3: farthest above" in choose(FRONT, None, None).reasons[0]


POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 100)), min_size=1, max_size=8)


@given(POINTS, st.none() | st.floats(0.1, 100), st.none() | st.floats(0, 1))
def test_what_is_chosen_satisfies_the_limits_and_nothing_that_does_beats_it(points, most, least):
    candidates = [candidate(i, accuracy, seconds) for i, (accuracy, seconds) in enumerate(points)]
    fitting = [
        (accuracy, seconds)
        for accuracy, seconds in points
        if (most is None or seconds <= most) and (least is None or accuracy >= least)
    ]
    if not fitting:
        with pytest.raises(InputError, match="accepted: at"):
            choose(candidates, most, least)
        return
    accuracy, seconds = choose(candidates, most, least).candidate.point
    assert (accuracy, seconds) in fitting
    assert not any(a >= accuracy and s <= seconds and (a, s) != (accuracy, seconds) for a, s in fitting)
    if most is not None:
        assert accuracy == max(a for a, _ in fitting)
    elif least is not None:
        assert seconds == min(s for _, s in fitting)


@pytest.mark.parametrize(
    ("max_seconds", "min_accuracy", "message"),
    [
        (1.0, None, "max_seconds: 1 given; accepted: at least 5, #1's"),
        (None, 0.9, "min_adv_accuracy: 0.9 given; accepted: at most 0.5, #3's"),
        (20.0, 0.48, "max_seconds: 20 given with min_adv_accuracy 0.48; accepted: at least 100, #3's"),
    ],
)
def test_limits_that_nothing_satisfies_are_answered_with_what_would(max_seconds, min_accuracy, message):
    with pytest.raises(InputError, match=message):
        choose(FRONT, max_seconds, min_accuracy)


@given(st.floats(1e-3, 1), st.floats(1e-3, 1e6))
def test_a_limit_that_is_named_as_accepted_is(accuracy, seconds):
    only = [candidate(1, accuracy, seconds)]
    for field, limits in [("max_seconds", (seconds / 2, None)), ("min_adv_accuracy", (None, accuracy + 0.1))]:
        with pytest.raises(InputError, match=field) as error:
            choose(only, *limits)
        named = float(re.search(r"at (?:least|most) ([^,]+), #1's", str(error.value)).group(1))
        assert choose(only, *((named, None) if field == "max_seconds" else (None, named))).candidate is only[0]
        assert named == pytest.approx(seconds if field == "max_seconds" else accuracy, rel=2e-3)


def test_of_equals_in_what_was_asked_for_the_better_in_the_other_is_taken():
    assert (
        choose([candidate(1, 0.3, 5.0), candidate(2, 0.4, 5.0), candidate(3, 0.3, 5.0)], None, 0.2).candidate.number
        == 2
    )
    assert (
        choose([candidate(1, 0.4, 9.0), candidate(2, 0.4, 5.0), candidate(3, 0.4, 9.0)], 10.0, None).candidate.number
        == 2
    )


def test_the_seconds_named_as_accepted_are_those_of_a_member_that_is_as_accurate_as_asked_for():
    with pytest.raises(InputError, match="accepted: at least 100, #3's"):
        choose([*FRONT, candidate(4, 0.47, 50.0)], 20.0, 0.48)


def test_the_knee_is_said_to_be_of_the_front_without_those_that_are_dominated():
    assert "the knee of the front of 3:" in choose([*FRONT, candidate(4, 0.1, 50.0)], None, None).reasons[0]


def test_an_accuracy_of_at_least_nothing_may_be_asked_for():
    recommend.require_limits(None, 0.0)


def test_members_that_failed_a_gate_are_left_out_while_others_remain():
    tainted = [candidate(1, 0.2, 5.0), candidate(2, 0.45, 10.0, gates_failed="square")]
    choice = choose(tainted, 50.0, None)
    assert choice.candidate.number == 1 and "1 of 2 candidates failed a gate" in " ".join(choice.reasons)
    choice = choose(tainted[1:], 50.0, None)
    assert choice.candidate.number == 2 and "Gates it failed: square" in " ".join(choice.reasons)


WORTHLESS = [candidate(4, 0.09, 1.0, clean=0.1), candidate(5, 0.1, 2.0, clean=0.13)]  # 30 and 39 of 300


def test_members_that_may_have_learnt_nothing_are_left_out_while_others_remain():
    assert choose([*FRONT, *WORTHLESS], 2.0, None).candidate.number == 5  # no number of classes is known
    choice = choose([*FRONT, *WORTHLESS], None, 0.05, 0.1)
    assert choice.candidate.number == 1 and "2 of 5 candidates were left out: their clean" in " ".join(choice.reasons)
    with pytest.raises(InputError, match="at least 5, #1's"):
        choose([*FRONT, *WORTHLESS], 2.0, None, 0.1)
    assert "chance" not in " ".join(choose(FRONT, None, None, 0.1).reasons)
    masked = candidate(6, 0.3, 3.0, gates_failed="square")
    choice = choose([masked, *WORTHLESS, candidate(7, 0.5, 2.0, clean=0.1)], 50.0, None, 0.1)
    assert choice.candidate is masked and "All others failed a gate" in " ".join(choice.reasons)


def test_where_all_may_have_learnt_nothing_that_is_a_doubt():
    choice = choose(WORTHLESS, None, None, 0.1)
    assert choice.candidate.number == 5
    assert "Every candidate's clean accuracy is, or by its 95 % interval may be, no better than chance (0.1)" in (
        " ".join(choice.reasons)
    )


def test_chance_of_ones_own_images_is_known_from_the_weights(tmp_path):
    assert recommend.chance("cifar100", tmp_path) == 0.01 and recommend.chance("imagefolder", tmp_path) is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "0001.safetensors").write_text("half a file")
    assert recommend.chance("imagefolder", tmp_path) is None
    (tmp_path / "models" / "0002.safetensors").write_bytes(save({"a": np.zeros(1)}, {"num_classes": "4"}))
    assert recommend.chance("imagefolder", tmp_path) == 0.25


def test_every_dataset_but_a_folder_has_a_known_chance():
    assert set(recommend.CHANCE) == set(get_args(DatasetName)) - {"imagefolder"}


def test_where_pgd_was_too_weak_candidates_are_compared_by_autoattack():
    flattered = candidate(1, 0.6, 20.0, autoattack=(0.2, 0.6, 50), gates_failed="autoattack; more_steps")
    honest = candidate(2, 0.5, 10.0, autoattack=(0.48, 0.5, 50))
    choice = choose([flattered, honest], 50.0, None)
    assert choice.candidate is honest and "compared by AutoAttack's" in " ".join(choice.reasons)
    with pytest.raises(InputError, match="at most 0.48, #2's under AutoAttack"):
        choose([flattered, honest], None, 0.5)
    masked = candidate(3, 0.9, 5.0, autoattack=(0.9, 0.9, 50), gates_failed="autoattack; square")
    assert choose([flattered, honest, masked], 50.0, None).candidate is honest
    sure = candidate(4, 0.47, 20.0, autoattack=(0.47, 0.47, 50))
    choice = choose([sure, candidate(2, 0.5, 10.0, autoattack=(0.46, 0.5, 50)), masked], 50.0, None)
    assert choice.candidate.number == 2 and "AutoAttack" not in " ".join(choice.reasons)


def test_where_candidates_are_compared_by_autoattack_its_interval_tells_the_doubt():
    flattered = candidate(1, 0.6, 20.0, autoattack=(0.45, 0.6, 50), autoattack_interval=(0.3, 0.6))
    choice = choose([replace(flattered, gates_failed="more_steps")], None, 0.4)
    assert "under attack reaches below 0.4" in " ".join(choice.reasons)


def test_the_few_images_that_autoattack_saw_do_not_stand_for_all():
    """They were easy for one of the two; on the same images AutoAttack and PGD differ by little for either."""
    easy = candidate(1, 0.5, 10.0, autoattack=(0.6, 0.62, 50), autoattack_interval=(0.46, 0.72))
    hard = candidate(2, 0.6, 10.0, autoattack=(0.52, 0.58, 50), gates_failed="autoattack")
    choice = choose([easy, hard], 50.0, None)
    assert choice.candidate is hard and "Of #2 that is 0.540." in " ".join(choice.reasons)
    compared = easy.attacked_strongly
    assert (compared.adversarial, *compared.adversarial_interval) == pytest.approx((0.48, 0.34, 0.62))


def test_what_members_are_compared_by_is_a_share_that_pgd_allows_and_reads_as_printed():
    found = [
        candidate(1, pgd, 1.0, autoattack=few).attacked_strongly.adversarial
        for pgd, few in [(0.05, (0.0, 0.1, 50)), (0.3, (0.5, 0.4, 20)), (0.6, (0.5, 0.55, 20))]
    ]
    assert found == [0, 0.3, 0.55]
    none_left = candidate(2, 0.6, 1.0, autoattack=(0.0, 0.5, 20), autoattack_interval=(0.0, 0.16)).attacked_strongly
    assert none_left.adversarial_interval == pytest.approx((0, 0.26))


def errors_under_autoattack(n_all, n_few, n_seeds, gap=0.03):
    """Of made-up members: root mean square errors of the share of the few images, and of what they are compared by."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(1000):
        true, taken_off = rng.uniform(0.3, 0.6), abs(rng.normal(gap, gap))
        level = 0.9 * rng.normal(size=n_all) + np.sqrt(0.19) * rng.normal(size=(n_seeds, n_all))  # images and seeds
        of_seeds = rng.normal(0, 0.03, (n_seeds, 1))
        strong, pgd = (level < stats.norm.ppf(np.clip(p + of_seeds, 0.01, 0.99)) for p in (true, true + taken_off))
        few = (strong[:, :n_few].mean(), pgd[:, :n_few].mean(), n_few)
        errors.append(
            [few[0] - true, candidate(0, pgd.mean(), 1.0, autoattack=few).attacked_strongly.adversarial - true]
        )
    return np.sqrt(np.mean(np.square(errors), axis=0))


@pytest.mark.parametrize(("n_all", "n_few", "n_seeds"), [(297, 50, 5), (297, 20, 2), (10_000, 50, 5)])
def test_what_members_are_compared_by_is_nearer_to_the_truth_than_the_few_images(n_all, n_few, n_seeds):
    few, compared = errors_under_autoattack(n_all, n_few, n_seeds)
    assert compared < 0.6 * few


def test_an_interval_that_crosses_a_limit_is_named():
    choice = choose([candidate(1, 0.42, 9.0, seconds_interval=(7.0, 11.0))], 10.0, 0.4)
    said = " ".join(choice.reasons)
    assert "reaches beyond 10" in said and "reaches below 0.4" in said
    assert "reaches" not in " ".join(choose([candidate(1, 0.9, 9.0)], 10.0, 0.4).reasons)


# The command


def test_a_faster_one_that_intervals_do_not_tell_apart_is_named():
    least, fast, chosen = candidate(1, 0.39, 1.0), candidate(2, 0.41, 5.0), candidate(3, 0.5, 10.0)
    overlaps = "Faster, with an interval of accuracy under attack that overlaps this one's: #2 (5.0 s, 0.410)"
    assert choose([least, fast, chosen], 10.0, None).reasons[-1] == overlaps + "."
    more = [least, fast, candidate(4, 0.42, 6.0), chosen, candidate(5, 0.49, 11.0)]
    assert choose(more, 20.0, None).reasons[-1] == overlaps + ", the fastest of 2 such."
    assert "Faster" not in " ".join(choose(more, 10.0, 0.45).reasons)  # what the limits rule out is no rival


def test_a_fast_member_at_chance_is_not_recommended(tmp_path, capsys):
    study = search(tmp_path)
    attrs = study.trials[2].user_attrs | {"clean_accuracy": 0.1}
    study.add_trial(create_trial(values=[0.1, 0.5], user_attrs=attrs))
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path), "--min-adv-accuracy", "0.1"])
    assert out.startswith("#2 ") and "1 of 3 candidates were left out" in out


def printed(capsys, arguments):
    assert recommend.main(arguments) == 0
    return capsys.readouterr().out


def test_without_confirmation_the_searchs_figures_are_given_as_such(tmp_path, capsys):
    search(tmp_path)
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path), "--max-seconds", "12"])
    assert out.startswith("#1 batchnorm 128\n") and "0.500 [0.377, 0.623]" in out  # Wilson's, of 30 of 60
    assert "Figures are not confirmed" in out and "60 validation images" in out
    assert f"study.confirm mine --results-dir {tmp_path}" in out


def test_confirmed_figures_count_where_there_are_some(made, tmp_path, capsys):
    from rich.console import Console

    from study.confirmation import finish

    searched, study, settings, masks = made
    with open(tmp_path / "out.txt", "w") as out:
        finish(searched, study, settings, Console(file=out, width=120), "finished")
    assert "overfitting, #2 batchnorm 32:" in (tmp_path / "out.txt").read_text()
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path), "--min-adv-accuracy", "0.3"])
    accuracy = (sum(masks[1, 0]) + sum(masks[1, 1])) / 18
    assert out.startswith("#1 batchnorm 128\n") and f"{accuracy:.3f} [0.000, 1.000]" in out
    assert "Figures are confirmed" in out and "mean of 2 seeds" in out and "9 test images" in out
    assert "AutoAttack" in out and "Figures are not confirmed" not in out


def confirmed_anew(folder, searched, kept):
    """A confirmation of trials 1 and 2 by 5 seeds each, of which as many as `kept` says per trial do not fail."""
    from rich.console import Console

    from study import confirmation

    settings = confirm.resolve(searched, {"results_dir": str(folder), "seeds": 5})
    settings.folder.mkdir()
    chosen = members.members_numbered(searched.trials, [1, 2])
    study = confirmation.prepare(settings, chosen)
    left = dict(kept)
    for seed in members.fresh_seeds(3, 5):
        for number in (1, 2):
            if left[number]:
                mask = [1, 1, 1, 1, 0] if number == 1 else [1, 0, 0, 0, 0]
                trained(study, settings, number, seed, mask, 10.0 / number)
                left[number] -= 1
            else:
                study.tell(study.ask(), state=TrialState.FAIL)
    said = io.StringIO()
    confirmation.finish(searched, study, settings, Console(file=said, width=200), "finished")
    return said.getvalue()


def test_a_configuration_whose_trainings_failed_is_left_out_like_one_that_failed_a_gate(tmp_path, capsys):
    said = confirmed_anew(tmp_path, search(tmp_path), {1: 1, 2: 5})
    assert "#1 batchnorm 128: 4 of 5 trainings failed; its figures are of the others." in said
    assert "All gates passed, by the trainings that did not fail." in said
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path)])
    assert out.startswith("#2 ") and "1 of 2 candidates failed a gate or in a training and were left out" in out


def test_where_all_candidates_had_failures_those_of_the_chosen_are_named(tmp_path, capsys):
    confirmed_anew(tmp_path, search(tmp_path), {1: 1, 2: 4})
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path), "--min-adv-accuracy", "0.7"])
    assert out.startswith("#1 ") and "mean of 1 seed" in out and "4 of its 5 trainings failed" in out


def test_of_one_seed_each_no_probability_of_being_on_the_front_is_given(tmp_path, capsys):
    searched, given = search(tmp_path), ["mine", "--results-dir", str(tmp_path)]
    said = confirmed_anew(tmp_path, searched, {1: 1, 2: 1})
    assert "over seeds and images, unknown without a second seed." in said and "of one seed over images alone" in said
    assert pd.read_csv(tmp_path / "mine" / "confirmed.csv")["front_probability"].isna().all()
    assert "\n  on the front " not in printed(capsys, given)


def test_the_probability_of_being_on_the_front_says_under_which_attack(tmp_path, capsys):
    said = confirmed_anew(tmp_path, search(tmp_path), {1: 2, 2: 1})
    assert "On front: probability under that PGD, over seeds and images." in said
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path)])
    assert re.search(r"\n  on the front +[01]\.\d\d +probability under PGD-\d+, over seeds and images\n", out)


def test_a_configuration_whose_trainings_all_failed_is_never_recommended(tmp_path, capsys):
    confirmed_anew(tmp_path, search(tmp_path), {1: 0, 2: 0})
    given = ["mine", "--results-dir", str(tmp_path)]
    assert recommend.main(given) == 2
    assert "name: 'mine' given, all of whose front failed when confirmed" in capsys.readouterr().err
    add(storage.named("mine", str(tmp_path), None), 0.6, 50.0, batch=16)
    out = printed(capsys, given)
    assert out.startswith("#4 ") and "#1 batchnorm 128 was left out: all of its trainings (5) failed" in out
    assert "Figures are not confirmed" in out


def test_what_was_confirmed_is_read_as_it_was_written(tmp_path):
    numbers = {column: i + (0.5 if kind is float else 0) for i, (column, kind) in enumerate(CONFIRMED.items())}
    row = numbers | {"name": "a", "role": "front", "objective": "calibrated", "gates_failed": "square"}
    pd.DataFrame([row]).to_csv(tmp_path / "confirmed.csv", index=False)
    assert recommend.confirmed(tmp_path / "confirmed.csv") == [
        Candidate(
            number=row["number"],
            name="a",
            seconds=row["seconds_mean"],
            seconds_interval=(row["seconds_low"], row["seconds_high"]),
            adversarial=row["adversarial_mean"],
            adversarial_interval=(row["adversarial_low"], row["adversarial_high"]),
            clean=row["clean_mean"],
            n_examples=row["n_examples"],
            n_seeds=row["n_seeds"],
            autoattack=(row["autoattack_mean"], row["autoattack_pgd"], row["n_attack_examples"]),
            autoattack_interval=(row["autoattack_low"], row["autoattack_high"]),
            front_probability=row["front_probability"],
            gates_failed="square",
            n_failed=row["n_failed"],
            objective="calibrated",
        )
    ]


def test_each_figure_is_printed_with_its_own_interval(tmp_path):
    study = search(tmp_path)
    taken = candidate(2, 0.3, 5.0, clean=0.91, n_seeds=3, seconds_interval=(4.0, 6.0), front_probability=0.75)
    taken = replace(taken, autoattack=(0.21, 0.28, 50), autoattack_interval=(0.1, 0.4))
    shown = [
        " ".join(line.split()) for line in recommend.lines(Choice(taken, []), study, study.trials[2], tmp_path, [])
    ]
    for beginning in (
        "seconds 5.0 [4.0, 6.0] measured, mean of 3 seeds",
        "adversarial accuracy 0.300 [0.250, 0.350] PGD-2, l-inf, eps 0.1 (25.5/255), 300 test images; 95 % interval",
        "AutoAttack 0.210 [0.100, 0.400] standard version, first 50 test images, of which PGD leaves 0.280",
        "clean accuracy 0.910 300 test images",
        "on the front 0.75 probability",
        "batch_size_schedule.size 32",
    ):
        assert any(line.startswith(beginning) for line in shown), beginning


def test_weights_are_named_where_they_are_those_of_the_trial(tmp_path, capsys):
    study, path = search(tmp_path), tmp_path / "mine" / "models" / "0002.safetensors"
    path.parent.mkdir()
    for number, named in [(1, False), (2, True)]:
        metadata = {"config": json.dumps(study.trials[number].user_attrs["config"]), "num_classes": "10"}
        path.write_bytes(save({"a": np.zeros(1)}, metadata))
        out = printed(capsys, ["mine", "--results-dir", str(tmp_path), "--max-seconds", "5"])
        assert (f"Weights of the search's own training: {path}" in out) is named


def test_the_searchs_seconds_are_told_as_what_they_are(tmp_path, capsys):
    search(tmp_path).set_user_attr("objective", "calibrated")
    assert "calibrated, one training" in printed(capsys, ["mine", "--results-dir", str(tmp_path)])


def test_only_the_best_of_several_is_flattered(tmp_path):
    study = search(tmp_path)
    for candidates in (FRONT[:1], FRONT):
        said = " ".join(recommend.basis_lines(study, study.trials[:2], candidates, [], "mine"))
        assert "Figures are confirmed" in said and ("flattered" in said) is (len(candidates) > 1)


@pytest.mark.parametrize("number", [3, 99])  # one that failed, and one that there is not
def test_a_table_of_trials_that_the_search_has_not_is_refused(number, made, tmp_path, capsys):
    from study import confirmation

    searched, study, _, _ = made
    table = confirmation.confirmed_frame(study.trials, searched.trials, {}).replace({"number": {2: number}})
    table.to_csv(tmp_path / "mine" / "confirmed.csv", index=False)
    assert recommend.main(["mine", "--results-dir", str(tmp_path)]) == 2
    assert "confirmed.csv: trials that 'mine' has not; accepted" in capsys.readouterr().err


def test_members_without_confirmation_are_named(made, tmp_path, capsys):
    from study import confirmation

    searched, study, settings, _ = made
    add(searched, 0.9, 90.0, batch=16)
    searched.set_user_attr("objective", "calibrated")
    table = confirmation.confirmed_frame(study.trials, searched.trials, {})
    table.to_csv(tmp_path / "mine" / "confirmed.csv", index=False)
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path)])
    assert "1 of 3 members of the front are not confirmed and were left out: #4." in out
    add(searched, 0.8, 80.0)  # trial 1 with another seed, which was confirmed with fresh ones
    assert "1 of 4 members of the front are not confirmed and were left out: #4." in printed(
        capsys, ["mine", "--results-dir", str(tmp_path)]
    )
    assert "measured, mean of 2 seeds" in out and "calibrated" not in out  # the confirmation's seconds


def test_an_unfinished_study_works_and_says_so(tmp_path, capsys):
    study = search(tmp_path)
    study.set_user_attr("settings", study.user_attrs["settings"] | {"trials": 9})
    assert "The search is unfinished: 4 of 9 trials have ended." in printed(
        capsys, ["mine", "--results-dir", str(tmp_path)]
    )


def foreign_table(folder):
    search(folder)
    pd.DataFrame({"number": [1], "colour": ["red"]}).to_csv(folder / "mine" / "confirmed.csv", index=False)


@pytest.mark.parametrize("command", [recommend, train, confirm])
@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (search, "mien", "name: 'mien' (did you mean 'mine'?); accepted: mine"),
        (no_front, "mine", "accepted"),
        (another_version, "mine", "storage: sqlite:///"),
    ],
)
def test_a_study_that_cannot_be_used_gets_one_line_and_status_2(command, make, name, message, tmp_path, capsys):
    make(tmp_path)
    given = [name, "--results-dir", str(tmp_path)] + (["0"] if command is train else [])
    assert command.main(given) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and out == ""


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (search, ["--max-seconds", "nan"], "max_seconds: nan given"),
        (search, ["--max-seconds", "0"], "max_seconds: 0.0 given"),
        (search, ["--min-adv-accuracy", "40"], "min_adv_accuracy: 40.0 given; accepted: a fraction"),
        (foreign_table, [], "confirmed.csv: no column 'name'"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(make, arguments, message, tmp_path, capsys):
    make(tmp_path)
    assert recommend.main(["mine", "--results-dir", str(tmp_path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and out == ""


def test_two_thousand_trials_take_seconds(tmp_path, capsys):
    (tmp_path / "synthetic").mkdir()
    synthetic.write(f"sqlite:///{tmp_path / 'synthetic' / 'study.db'}", 2000)
    start = time.process_time()
    printed(capsys, ["synthetic", "--results-dir", str(tmp_path)])
    assert time.process_time() - start < 20


# The command it prints


def test_the_command_it_prints_trains_the_configuration(tmp_path, monkeypatch, capsys):
    study = search(tmp_path)
    monkeypatch.chdir(tmp_path)
    out = printed(capsys, ["mine", "--results-dir", str(tmp_path), "--max-seconds", "5"])
    python, _, module, *arguments = shlex.split(out.rpartition("Train it: ")[2])
    assert (python, module) == ("python", "study.train")
    assert train.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("epoch 1 of 1: ") and said[-1] == "mine-0002.safetensors"
    with torch.no_grad():
        assert load_model(said[-1])(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert train.main(arguments) == 2  # nothing is overwritten
    assert "mine-0002.safetensors exists" in capsys.readouterr().err
    assert members.member(study.trials[2]).config.seed == 5  # the search's own


@pytest.mark.parametrize("seed", [[], ["--seed", "5"], ["--seed", "6"]])  # 5 is the trial's
def test_what_came_out_stands_beside_what_the_search_found(seed, tmp_path, monkeypatch, capsys):
    study = search(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["mine", "2", "--results-dir=~", "--out=~/weights", *seed]
    assert train.main(given) == 0
    *_, epoch, line, _ = capsys.readouterr().out.splitlines()
    seconds, accuracy = re.search(r": ([0-9.]+) s, .* adversarial ([0-9.]+)$", epoch).groups()
    same = " (same seed: on the same kind of device accuracies should be equal)"
    expected = f"search: 5.0 s, adversarial 0.300; now: {seconds} s, {accuracy}"
    assert line == expected + (same if seed != ["--seed", "6"] else "")
    study.set_user_attr("objective", "calibrated")
    (tmp_path / "weights").unlink()
    train.main(given)
    assert capsys.readouterr().out.splitlines()[-2].startswith("search: 5.0 s (calibrated), adversarial 0.300; now: ")


def test_the_last_accuracy_is_on_as_many_images_as_the_searchs(tmp_path):
    evaluation = EvalConfig(examples=60, curve_examples=10, attack_steps=1)
    _, last = single.train(config(), DataConfig(), evaluation, tmp_path / "weights", lambda line: None, 1)
    assert last["n_examples"] == 60


def test_it_trains_on_as_many_threads_as_the_searchs_trials_had(tmp_path, monkeypatch):
    study = search(tmp_path)
    study.set_user_attr("settings", study.user_attrs["settings"] | {"cpus_per_trial": 3.5})
    seen, train_epoch = [], Trial.train_epoch

    def watched(trial):
        seen.append(torch.get_num_threads())
        return train_epoch(trial)

    monkeypatch.setattr(Trial, "train_epoch", watched)
    before = torch.get_num_threads()
    assert train.main(["mine", "2", "--results-dir", str(tmp_path), "--out", str(tmp_path / "weights")]) == 0
    assert set(seen) == {3} and torch.get_num_threads() == before


def test_a_file_that_appears_during_the_training_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    search(tmp_path)
    path, train_epoch = tmp_path / "weights.safetensors", Trial.train_epoch

    def beside_another(trial):
        path.write_text("theirs")
        (tmp_path / "weights-2.safetensors").write_text("theirs too")
        return train_epoch(trial)

    monkeypatch.setattr(Trial, "train_epoch", beside_another)
    assert train.main(["mine", "2", "--results-dir", str(tmp_path), "--out", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith(f"{path} has appeared meanwhile") and said[-1] == str(tmp_path / "weights-3.safetensors")
    assert path.read_text() == "theirs" and load_model(said[-1])


def test_weights_that_cannot_be_written_leave_no_empty_file(tmp_path, monkeypatch, capsys):
    search(tmp_path)

    def full(trial, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Trial, "save_weights", full)
    assert train.main(["mine", "2", "--results-dir", str(tmp_path), "--out", str(tmp_path / "weights")]) == 1
    assert "No space left on device" in capsys.readouterr().err and not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7"], "number: 7 given; accepted: complete trials"),
        (["two"], "'two' is not a valid integer"),
        (["1", "--out", "no/such/folder/weights"], "out: 'no/such/folder/weights' given (No such file or directory)"),
        (["1", "--out", "/proc/weights"], "accepted: a file in a folder that can be written"),
        (["1", "--out", "x" * 250], "given (File name too long)"),
        (["1", "--seed", "-1"], "-1 is not in the range"),
    ],
)
def test_a_mistake_in_training_gets_one_line_and_status_2(arguments, message, tmp_path, capsys):
    search(tmp_path)
    assert train.main(["mine", "--results-dir", str(tmp_path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and out == ""


def test_a_password_is_not_printed():
    given = storage.location("results", "postgresql://user:secret@host/name")
    assert "secret" not in given and given.startswith(" --storage ")
    assert storage.location("results", None) == ""
