import pytest
import torch

from tests.networks.tiny import pixels, tiny_runner


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks gain nothing from more, and several test processes share a machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runner():
    """A tiny network that no test may change."""
    return tiny_runner()


@pytest.fixture(scope="module")
def features(runner):
    with torch.no_grad():
        return runner.encode(pixels(2))
