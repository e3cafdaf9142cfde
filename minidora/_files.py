"""Writing files whole or not at all."""

import os
from pathlib import Path


def write_whole(path, data: bytes) -> None:
    """Write a file so that it is there whole or, if anything fails, as it was before.

    The data go to another name beside it, to the disk, and only then to the name asked for.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
