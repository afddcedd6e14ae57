"""What is free in a container, by the files of its control group."""

import psutil
import pytest

from recsys.memory import free_mb


@pytest.fixture
def cgroup(tmp_path):
    """100 MB are allowed; files that were read once make up most of what is in use."""
    files = {
        "max": "100000000\n",
        "current": "95000000\n",
        "stat": "anon 10000000\nfile 85000000\ninactive_file 80000000\nactive_file 5000000\n",
    }
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    return tmp_path


def test_files_that_the_kernel_would_give_back_are_free(cgroup):
    """A data set that had just been read counted as used, and fits that had room were refused."""
    assert free_mb(cgroup) == 85


def test_a_container_without_a_limit_has_the_machines_memory(cgroup):
    (cgroup / "memory.max").write_text("max\n")
    available = psutil.virtual_memory().available / 1e6
    assert free_mb(cgroup) == pytest.approx(available, rel=0.3)
    assert free_mb(cgroup / "none") == pytest.approx(available, rel=0.3)
