"""What the tests of torch trainings share."""

from collections.abc import Iterator

import pytest
import ray.cloudpickle
import torch


@pytest.fixture(scope="module")
def workers_get_this_module_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers can't import a test module."""
    ray.cloudpickle.register_pickle_by_value(request.module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers have it; more cost ten times as much for worlds as small as the tests'."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
