import os

import pytest

from trainables import mps

# Stands in for NVIDIA's, which needs a GPU: keeps what it is asked, and whether a daemon runs for a pipe directory.
CONTROL = """#!/bin/sh
daemon="${CUDA_MPS_PIPE_DIRECTORY:-FOLDER/default}/daemon"
if [ "$1" = -d ]; then
    echo start >>FOLDER/asked
    [ -e FOLDER/refuses ] && exit 1
    touch "$daemon"
else
    read words
    [ -e "$daemon" ] || exit 1
    echo "$words" >>FOLDER/asked
fi
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with the control, for which a daemon runs already where `default/daemon` is."""
    (tmp_path / "default").mkdir()
    control = tmp_path / mps.CONTROL
    control.write_text(CONTROL.replace("FOLDER", str(tmp_path)))
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "PROBE", "import os; assert os.path.exists(os.environ['CUDA_MPS_PIPE_DIRECTORY'])")
    return tmp_path


def asked(machine):
    return (machine / "asked").read_text().split()


def test_processes_inside_find_a_daemon_that_is_stopped_at_the_end_whatever_happens(machine):
    with pytest.raises(ZeroDivisionError), mps.mps() as refusal:
        assert refusal == "" and os.path.exists(f"{os.environ['CUDA_MPS_PIPE_DIRECTORY']}/daemon")
        raise ZeroDivisionError
    assert asked(machine) == ["start", "quit"]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_a_daemon_that_runs_already_is_used_and_left_alone(machine):
    (machine / "default" / "daemon").touch()
    with mps.mps() as refusal:
        assert refusal == "" and "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert asked(machine) == ["get_server_list"]


def test_a_daemon_that_no_process_can_use_is_stopped_and_none_is_found(machine, monkeypatch):
    monkeypatch.setattr(mps, "PROBE", "raise SystemExit('cudaErrorMpsConnectionFailed')")
    with mps.mps() as refusal:
        assert refusal == "a process cannot use it: cudaErrorMpsConnectionFailed"
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert asked(machine) == ["start", "quit"]


def test_one_that_does_not_start_is_said(machine):
    (machine / "refuses").touch()
    with mps.mps() as refusal:
        assert "returned non-zero exit status 1" in refusal
    assert asked(machine) == ["start"]


def test_without_nvidias_program_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mps, "BESIDE_DRIVER", str(tmp_path))
    with mps.mps() as refusal:
        assert "nvidia-cuda-mps-control" in refusal


def test_it_is_found_beside_the_driver_too(machine, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(mps, "BESIDE_DRIVER", str(machine))
    with mps.mps() as refusal:
        assert refusal == ""
    assert asked(machine) == ["start", "quit"]
