"""What a person is told of errors that recsys does not raise itself."""

import errno
import re

import pytest

from recsys.errors import in_one_line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "can't write to disk .*free space"),
        (PermissionError(errno.EACCES, "Permission denied", "a.txt"), "can't use a.txt .*its permissions"),
        (MemoryError("Unable to allocate 37.3 GiB"), "not enough memory .*37.3 GiB.*smaller settings"),
    ],
)
def test_what_the_machine_lacks_is_one_line_with_a_remedy(error, text):
    told = in_one_line(error)
    assert told is not None
    assert re.search(text, told)


def test_a_bug_keeps_its_traceback():
    assert in_one_line(ValueError("x")) is None
