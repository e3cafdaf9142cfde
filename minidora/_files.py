"""Writing files, and folders of files, whole or not at all; checksums of arrays."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{a.dtype.str}|{a.shape}|".encode())
        sha.update(a.data)
    return sha.hexdigest()


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
    except OSError as error:  # a full disk says which file it was, and that nothing is lost
        said = f"{error.strerror}; not written, whatever was there before is as it was"
        raise OSError(error.errno, said, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_folder(
    path, files: dict[str, bytes], *, may_replace: tuple[str, ...], carry: tuple[str, ...] = ()
) -> None:
    """Write a folder of files so that it is there whole or, if anything fails, as it was before.

    The files go to another folder beside it, which then takes its place. Raises FileExistsError
    where `path` is there and holds anything but files named in `may_replace`; those in `carry` are
    taken over. If the process is killed between the two renames, the old folder is whole under a
    name `.NAME.*.old`.
    """
    path = Path(path).absolute()
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise FileExistsError(f"{path}: expected a new folder, got something that is none")
    if path.is_dir():
        strangers = sorted(p.name for p in path.iterdir() if p.name not in may_replace)
        if strangers:
            raise FileExistsError(f"{path}: expected a new folder, got one with {strangers[0]!r}")
    if not path.name or not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a name in a folder that exists")
    # names of their own: what a killed process left lies in nobody's way
    partial = Path(tempfile.mkdtemp(".partial", f".{path.name}.", path.parent))
    old = partial.with_suffix(".old")
    partial.chmod(0o755)
    try:
        for name in set(may_replace) - set(files):
            if name in carry and (path / name).is_file():
                shutil.copyfile(path / name, partial / name)
        for name, data in files.items():
            write_whole(partial / name, data)
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(partial, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
