import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in a trial; two threads would wait for each other at every small operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
