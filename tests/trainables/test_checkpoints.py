import pytest
import torch

from trainables import files
from trainables.checkpoints import CheckpointFolder, Superseded

CPU = torch.device("cpu")


def test_what_was_saved_is_loaded(tmp_path):
    folder = CheckpointFolder(tmp_path / "0001")
    assert folder.load(CPU) is None
    folder.save({"epoch": 3, "weights": torch.arange(3)})
    state = CheckpointFolder(tmp_path / "0001").load(CPU)
    assert state["epoch"] == 3 and torch.equal(state["weights"], torch.arange(3))


def test_an_older_attempt_cannot_overwrite_a_newer_ones_state(tmp_path):
    old = CheckpointFolder(tmp_path)
    new = CheckpointFolder(tmp_path)
    new.save({"epoch": 2})
    with pytest.raises(Superseded):
        old.save({"epoch": 1})
    assert new.load(CPU) == {"epoch": 2}


def test_an_attempt_whose_folder_was_cleaned_away_does_not_bring_it_back(tmp_path):
    folder = CheckpointFolder(tmp_path / "0001")
    (tmp_path / "0001" / "attempt").unlink()
    with pytest.raises(Superseded):
        folder.save({"epoch": 1})
    assert folder.store.read("state.pt") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, b"old")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_has_the_permissions_that_the_process_gives_its_files(tmp_path):
    files.write_whole(tmp_path / "ours", b"")
    (tmp_path / "other").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "other").stat().st_mode
