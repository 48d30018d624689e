"""Fixtures: a small decoder of each family that can be pruned, one of them, and batches for them."""

import pytest
from depth_models import CONFIGS, make_batches, make_model


@pytest.fixture(params=sorted(CONFIGS))
def any_model(request):
    return make_model(request.param)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def batches():
    return make_batches()
