"""Every test draws the same random numbers in every run, whichever tests run before it."""

import pytest
import torch

SEED = 0
torch.manual_seed(SEED)  # data that test modules draw when they are imported


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(SEED)
