import pytest
import torch

from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.networks.device import pick_device


def test_auto_is_the_gpu_where_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_the_mend():
    with pytest.raises(NetworkConfigError, match=r"torch sees no GPU.*run\.device=auto.*doctor"):
        pick_device("cuda")


def test_a_device_that_torch_does_not_know_is_refused():
    with pytest.raises(NetworkConfigError, match=r"run\.device='gpu' is no torch device"):
        pick_device("gpu")
