"""A study's front members trained again with fresh seeds, judged on test and under strong attacks.

Three files of results/<study>/ come from here (and confirm/, the runs' own folder, with their storage):

confirmed.csv, a row per member, those first that were fastest:

    number              of the member's trial in the search
    name                its label, or its norm and batch sizes
    role                `front`, `published`, `front, published`, or `earlier` (it has left the front since)
    n_seeds             trainings that ran to their end
    n_failed            trainings that diverged or failed otherwise
    n_examples          test images of clean and adversarial accuracy
    n_attack_examples   the first of them, for AutoAttack and the gates
    clean_*, adversarial_*, autoattack_*, seconds_*
                        each _mean, _std (of seeds; empty for one seed), _low, _high (95 % Student t interval over
                        seeds; empty where it has no bounds: one seed, or all seeds equal). Accuracies are fractions on
                        test images; `adversarial` is under the search's own PGD; seconds are measured training seconds
    front_probability   that the member is on the front of all that were confirmed: resampled seeds and examples
    gates_failed        names of the gates that failed, joined by "; "; empty where all passed
    searched_adversarial, searched_seconds
                        what the search measured: one seed, validation images

gates.csv, a row per member and gate, in the order of confirmed.csv:

    number, name        as above
    gate                e.g. `autoattack`; see GATES
    passed              True or False
    figure, threshold   the gate passes where the figure is at most the threshold; pooled over seeds
    unit                of both: `points` (figure 0.05 is 5 points), `share`, `seeds`
    text                what was found, in a sentence, and what a failure means

confirmed.csv and gates.csv are written anew by each `python -m study.confirm`; they are missing before the first one.
"""
