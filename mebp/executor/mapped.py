"""Mapped files of the executor's own: preallocated, mapped, unlinked as soon as they are open.

Unlinking first means that nothing is left behind however the process ends; preallocating means that a full disk is an error
before the step and never a bus error within it.
"""

import errno
import mmap
import os
import tempfile
from pathlib import Path

from mebp.errors import StoreError
from mebp.store.writer import reserve


def map_unlinked(nbytes: int, folder: Path | None, what: str = "the spill file") -> mmap.mmap:
    """Map a new file of `nbytes` for `what` in `folder` (default: the system's for temporary files); StoreError where the disk has
    no room.
    """
    where = folder or Path(tempfile.gettempdir())
    try:
        file, path = tempfile.mkstemp(prefix="mebp-spill-", dir=where)
    except OSError as error:
        raise StoreError(f"cannot make {what} in {where}: {error.strerror}: name another folder as `spill_dir`") from None
    try:
        os.unlink(path)
        reserve(file, nbytes)
        return mmap.mmap(file, nbytes)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise StoreError(
            f"cannot keep {nbytes} bytes for {what} in {where}: {reason}: name another folder as `spill_dir`"
        ) from None
    finally:
        os.close(file)
