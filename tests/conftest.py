"""What surrounds the tests does not reach into them."""

import os

import pytest
import torch

_OTHERS = ("AWS_", "GOOGLE_", "AZURE_", "DASK_", "ACCELERATE_", "EFFICIENT_MEDSAM2_")
_OF_A_LAUNCH = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
_OF_THE_HUB = {"HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"}


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory):
    """No proxy before loopback, no credentials, endpoints or models of the user."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if (
                name.startswith(_OTHERS)
                or name in _OF_A_LAUNCH | _OF_THE_HUB
                or name.upper().endswith("_PROXY")
            ):
                patch.delenv(name)
        patch.setenv("EFFICIENT_MEDSAM2_MODELS", str(tmp_path_factory.getbasetemp() / "no-models"))
        yield


@pytest.fixture(autouse=True)
def _own_random_numbers():
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)
