"""Archives of the Python package index, pinned, fetched once and read where they lie.

Nothing in them is imported, or unpacked to the disk.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .._files import FilePath

MEMBER_LIMIT = 1 << 22  # bytes of one file in an archive
Sources = Mapping[str, Callable[[], bytes]]  # by path: what reads the file


class NotFetchedError(RuntimeError):
    """An archive that is not in the folder, and that pip did not bring."""


@dataclass(frozen=True)
class Archive:
    """A file of the Python package index: its licence by its metadata, its SHA-256."""

    project: str
    version: str
    licence: str
    sha256: str
    ending: str = "-py3-none-any.whl"

    def read(self, folder: FilePath | None = None) -> bytes:
        """The archive's bytes; fetched first if it is not in the folder (the user's cache).

        Raises NotFetchedError that says how to fetch it by hand, ValueError if it was changed.
        """
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidora"
        path = Path(folder or cache) / f"{self.project}-{self.version}{self.ending}"
        if not path.is_file():
            self._fetch(path)
        data = path.read_bytes()
        if (got := hashlib.sha256(data).hexdigest()) != self.sha256:
            remedy = "remove the file to have it fetched anew"
            raise ValueError(f"{path}: expected SHA-256 {self.sha256}, got {got}: {remedy}")
        return data

    def _fetch(self, path: Path) -> None:
        """Have pip download and check the archive beside its place, and put it there whole.

        pip asks an sdist's setup.py for metadata, after the check; no other code of theirs runs.
        """
        only = "--only-binary" if self.ending.endswith(".whl") else "--no-binary"
        command = ["pip", "download", "--no-deps", "--ignore-requires-python", only, self.project]
        pin = f"{self.project}=={self.version}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as beside:
                pins = Path(beside, "pins")
                pins.write_text(f"{pin} --hash=sha256:{self.sha256}\n", encoding="utf-8")
                options = ["--require-hashes", "--retries=1", "-r", str(pins), "-d", beside]
                line = [sys.executable, "-m", *command, *options]
                subprocess.run(line, check=True, capture_output=True, text=True, timeout=600)
                (fetched,) = Path(beside).glob(f"*-{self.version}{self.ending}")
                os.replace(fetched, path)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
            why = next((line for line in lines if "ERROR" in line), lines[-1])
            by_hand = f"fetch it with: {' '.join(command)} {pin} -d {path.parent}"
            raise NotFetchedError(f"{path.name}: not fetched ({why}); {by_hand}") from error


def zip_sources(data: bytes) -> Sources:
    """What reads the Python files of a zip archive. A too large one raises ValueError when read."""
    archive = zipfile.ZipFile(io.BytesIO(data))

    def read(name: str) -> bytes:
        with archive.open(name) as file:
            source = file.read(MEMBER_LIMIT + 1)
        if len(source) > MEMBER_LIMIT:
            raise ValueError(f"{name}: expected at most {MEMBER_LIMIT} bytes, got more")
        return source

    return {name: partial(read, name) for name in archive.namelist() if name.endswith(".py")}


def tar_member(data: bytes, name: str) -> bytes:
    """One file of a gzipped tar archive. Raises ValueError if it is not there, or too large."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            if member.size > MEMBER_LIMIT:
                limit = f"expected at most {MEMBER_LIMIT} bytes"
                raise ValueError(f"{member.name}: {limit}, got {member.size}")
            if member.name == name and (file := archive.extractfile(member)) is not None:
                return file.read()
    raise ValueError(f"{name}: expected it in the archive, got none")
