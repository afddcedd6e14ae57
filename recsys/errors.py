"""Every error that recsys raises on purpose.

    RecsysError
    ├── SettingsError        a configuration file, key or value is wrong
    ├── DataError            input data can't be used: unreadable, empty, of another format
    ├── RequestError         a request can't be answered as asked: unknown scene, n out of range
    ├── UnavailableError     a server that recsys needs does not answer: Redis, the bus, Ray, a port
    ├── RuleError            a rule failed, so nothing that it guards may be shown
    ├── ReleaseError         a release is missing, incomplete or altered
    ├── RecallError          an index can't find the share of neighbors that is asked of it
    └── CapacityError        the work would not fit into this machine's memory

A message is one line: the value, the place, the remedy. The command line prints it without a
traceback and exits with 2; the HTTP gateway turns it into one body shape.
"""

import errno

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_ACCESS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)  # of reading as well as of writing


class RecsysError(Exception):
    """Base of all errors that recsys raises on purpose."""

    code = "error"


class SettingsError(RecsysError):
    code = "settings"


class DataError(RecsysError):
    code = "data"


class RequestError(RecsysError):
    code = "request"


class UnavailableError(RecsysError):
    code = "unavailable"


class RuleError(RecsysError):
    code = "rule"


class ReleaseError(RecsysError):
    code = "release"


class RecallError(RecsysError):
    code = "recall"


class CapacityError(RecsysError):
    code = "capacity"


def in_one_line(error: Exception) -> str | None:
    """What a person is told of an error, in one line; None for a bug, whose traceback is wanted.

    A full or read-only disk, a forbidden path and want of memory can stop any step, so they are told here
    and not at each of them.
    """
    if isinstance(error, RecsysError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        where = error.filename or "to disk"
        return f"can't write {where} ({error.strerror}): free space there, or use another folder"
    if isinstance(error, OSError) and error.errno in _ACCESS:
        where = error.filename or "a file"
        return f"can't use {where} ({error.strerror}): change its permissions, or give another path"
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'no size given'}): take less data or smaller settings"
    return None
