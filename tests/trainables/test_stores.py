"""Both kinds of store behave alike; the object store is moto's S3."""

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from trainables.checkpoints import CheckpointFolder, Superseded
from trainables.stores import DiskStore, Unreachable, has_key, is_uri, join, require_writable, store

NOBODY_LISTENS = "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"


@pytest.fixture(scope="module")
def s3():
    """Address of an S3 with a `bucket` in it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in [("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")]:
            patch.setenv(f"AWS_{name}", value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        address = "{}:{}".format(*server.get_host_and_port())
        boto3.client("s3", endpoint_url=f"http://{address}").create_bucket(Bucket="bucket")
        yield f"s3://bucket/studies?endpoint_override={address}&scheme=http&region=us-east-1"
        server.stop()


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "studies") if request.param == "disk" else request.getfixturevalue("s3")


def test_what_was_written_is_read_until_it_is_removed(place):
    trial = store(join(place, "first", "0007"))
    assert trial.read("state.pt") is None and trial.names() == []
    trial.write("state.pt", b"old")
    trial.write("state.pt", b"new" * 1000)
    trial.write("weights", b"w")
    assert trial.read("state.pt") == b"new" * 1000
    assert sorted(trial.names()) == ["state.pt", "weights"]
    study = store(join(place, "first"))
    assert study.names() == ["0007"] and study.read("0008/state.pt") is None
    trial.remove("weights")
    assert trial.names() == ["state.pt"]
    study.remove("0007")
    study.remove("0008")
    assert study.names() == [] and trial.read("state.pt") is None


def test_a_checkpoint_belongs_to_the_newest_attempt_wherever_it_lies(place):
    here = join(place, "second", "0001")
    old, new = CheckpointFolder(here), CheckpointFolder(here)
    new.save({"epoch": 2})
    with pytest.raises(Superseded):
        old.save({"epoch": 1})
    assert CheckpointFolder(here).load(torch.device("cpu")) == {"epoch": 2}
    store(here).remove()
    with pytest.raises(Superseded):
        new.save_weights(b"")
    assert store(here).names() == []


def test_a_writable_place_is_left_as_it_was(place):
    here = join(place, "third")
    require_writable(here)
    assert store(here).names() == []


@pytest.mark.parametrize("nowhere", ["s3", "scheme", "file"])
def test_a_place_that_cannot_be_written_is_an_error(nowhere, s3, tmp_path):
    (tmp_path / "file").touch()
    places = {"s3": s3.replace("//bucket", "//other-bucket"), "scheme": "gopher://host/x"}
    places["file"] = str(tmp_path / "file" / "x")
    with pytest.raises((OSError, ValueError)):
        require_writable(places[nowhere])


def test_a_silent_store_is_not_an_absent_file():
    with pytest.raises(Unreachable, match="bucket/x/state.pt"):
        store(NOBODY_LISTENS).read("state.pt")


def test_a_disk_that_fails_is_not_an_absent_file():
    with pytest.raises(Unreachable, match="Input/output error"):
        store("/proc/self").read("mem")  # nothing lies at address 0


def test_names_go_before_the_query_of_a_uri():
    assert join("s3://bucket/a/?region=x", "b", "7") == "s3://bucket/a/b/7?region=x"
    assert join("s3://bucket", "b") == "s3://bucket/b"
    assert join("/a", "b", "7") == "/a/b/7"
    assert is_uri("s3://bucket") and not is_uri("/a:/b") and isinstance(store("/a"), DiskStore)


def test_credentials_in_a_uri_are_noticed():
    assert has_key("s3://key:secret@bucket/a")
    assert not has_key("s3://bucket/a@b") and not has_key("/home/me@work/x")
