"""Files written whole or not at all, folders held while they are written, sums of arrays."""

import hashlib
import os
import re
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ._boundary import Array

FilePath = str | os.PathLike[str]


def storable(name: str, array: Array) -> Array:
    """The array as files hold it, in C order and little endian; uncopied where it is that already.

    Raises ValueError with the array's name where it is not float16, float32 or float64, or bytes.
    """
    if array.dtype != np.uint8 and (array.dtype.kind != "f" or array.dtype.itemsize > 8):
        raise ValueError(f"{name}: expected float16, float32 or float64, got {array.dtype}")
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def digest(arrays: Mapping[str, Array], text: str | None = None) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, and of the text that comes with them."""
    sha = hashlib.sha256()
    if text is not None:
        encoded = text.encode("utf-8", "surrogatepass")
        sha.update(b"%d|%b|" % (len(encoded), encoded))
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{a.dtype.str}|{a.shape}|".encode())
        sha.update(a.data)
    return sha.hexdigest()


def write_whole(path: FilePath, data: bytes) -> None:
    """Write a file so that it is there whole or, if anything fails, as it was before.

    As `write_in_order` does. What is no regular file (a device, a FIFO, /dev/stdout) is written
    into as it is.
    """
    if _is_stream(path):
        with open(path, "ab") as stream:
            stream.write(data)
    else:
        write_in_order({Path(path): data})


def write_in_order(files: Mapping[Path, bytes]) -> None:
    """Write files whole; each takes its place, in this order, when all of them are on the disk.

    The data go to files beside them, of names that nobody else has, and only then to the names
    asked for. Links are followed. A file that is there keeps its mode and, where that is allowed,
    its owner; a new one gets the umask's. Raises OSError that names the file which failed: it and
    those after it are then as they were.
    """
    renames: list[tuple[Path, Path, Path]] = []  # the name asked for, beside it, what it leads to
    path = Path()
    try:
        for path, data in files.items():
            target = Path(os.path.realpath(path))
            partial = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}.partial")
            renames.append((path, partial, target))
            with open(partial, "xb") as file:
                _take_mode(partial, target)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, partial, target in renames:  # noqa: B007
            os.replace(partial, target)
    except OSError as error:  # a full disk says which file it was, and that nothing is lost
        message = f"{error.strerror}; not written, whatever was there before is as it was"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        for _, partial, _ in renames:
            partial.unlink(missing_ok=True)


def _is_stream(path: FilePath) -> bool:
    """Whether bytes go through the path rather than stay there."""
    if os.path.abspath(path).startswith(("/dev/fd/", "/dev/std", "/proc/")):
        return True  # files that this process has open, which a rename would take from it
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing there, or writing will say why not
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _take_mode(partial: Path, target: Path) -> None:
    """Give a new file the owner and the mode of the one it is going to replace, if there is one."""
    with suppress(FileNotFoundError):
        there = target.stat()
        if hasattr(os, "chown"):
            with suppress(PermissionError):
                os.chown(partial, there.st_uid, there.st_gid)
        partial.chmod(stat.S_IMODE(there.st_mode))


@contextmanager
def held_folder(path: FilePath, known: Collection[str]) -> Iterator[Path]:
    """A folder to write files called `known` in, held against other writers until the block ends.

    It is made if it is not there, and gone again if the block fails; nothing in it is renamed or
    deleted but what killed writers have left. Raises FileExistsError where it holds anything else.
    Where there are no locks (Windows, some network drives), other writers are not kept out.
    """
    folder = Path(os.path.realpath(path))
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{path}: expected a new folder, got something that is none")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a name in a folder that exists")
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    with _locked(folder) as locked:
        try:
            names = {file.name for file in folder.iterdir()} - set(known)
            partial = re.compile(rf"\.({'|'.join(map(re.escape, known))})\.[0-9a-f]{{32}}\.partial")
            left = {name for name in names if partial.fullmatch(name)}
            if names - left:
                stranger = sorted(names - left)[0]
                raise FileExistsError(f"{path}: expected a new folder, got one with {stranger!r}")
            for name in left if locked else ():
                (folder / name).unlink()
            yield folder
        except BaseException:
            if is_new:
                for name in known:
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # another writer's file has come
                    folder.rmdir()
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Wait for a folder's lock and hold it; False where there are none. A kill releases it."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
