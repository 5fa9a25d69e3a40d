"""One cluster for all tests here: it takes half a minute to come up."""

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import missing
from tests.cluster.rayup import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two workers, brought up by `ray up` from a laptop that can reach the head."""
    if reason := missing():
        pytest.skip(f"no hosts can be made: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("net"))
    try:
        cluster.up()
        cluster.wait_for_workers(2)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def whole_cluster(cluster: Cluster) -> Cluster:
    """With both workers there, whatever the test before did to them."""
    cluster.wait_for_workers(2)
    return cluster
