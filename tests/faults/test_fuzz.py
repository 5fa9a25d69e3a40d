"""Whatever a user gives is accepted, or answered with one line and status 2."""

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study import pareto
from trainables.config import TrialConfig, trial_config
from trainables.errors import InputError

N_INPUTS = 2000

numbers = st.one_of(st.integers(), st.floats(), st.integers(-10, 300), st.floats(-1, 2))
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["batchnorm", "fixup", "pgd", "batch", "cosine", "constant", "geometric", "tpe", "8/255"]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=5,
)
NESTED = [f"batch_size_schedule.{name}" for name in ("kind", "size", "first", "last", "factor", "sizes", "milestones")]
fields = st.one_of(st.sampled_from([*TrialConfig.model_fields, *NESTED]), st.text(max_size=20))

options = [name for parameter in pareto.command.params for name in parameter.opts if name.startswith("--")]
options = [name for name in options if name not in ("--help", "--log-level", "--results-dir", "--storage")]
arguments = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(options), st.one_of(numbers.map(str), words)).map(list),
        words.map(lambda word: [word]),
    ),
    max_size=4,
)


@settings(max_examples=N_INPUTS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(fields, values, max_size=5))
def test_a_configuration_is_accepted_or_answered_in_one_line(params):
    try:
        config = trial_config(params)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert TrialConfig.model_validate_json(config.model_dump_json()) == config


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """Runs the command line up to where the study would begin."""
    accepted = []
    monkeypatch.setattr("study.conduct.conduct", lambda settings, space: accepted.append(settings) or 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path, accepted


@settings(
    max_examples=N_INPUTS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(lines=arguments)
def test_a_command_line_is_accepted_or_answered_in_one_line(command_line, capsys, lines):
    folder, accepted = command_line
    accepted.clear()
    capsys.readouterr()
    status = pareto.main([word for line in lines for word in line])
    out, err = capsys.readouterr()
    if accepted:
        assert (status, err) == (0, "")
    elif "Usage:" in out:  # --help, or a unique beginning of it
        assert status == 0
    else:
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (status, err)
    assert list(folder.iterdir()) == []


def test_the_fuzzed_options_are_those_of_the_command():
    assert {"--trials", "--eps", "--depth", "--sampler"} <= set(options)
    assert isinstance(pareto.command, click.Command)
