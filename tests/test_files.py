"""Files written whole or not at all, whatever is at their path and whoever else writes."""

import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from minidora._files import digest, held_folder, storable, write_in_order, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def test_threads_that_write_one_file_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.001))  # a disk that takes its time
    file, reads = tmp_path / "table.json", []
    contents = [bytes([65 + k]) * 50_000 for k in range(4)]
    write_whole(file, contents[0])
    done = threading.Event()

    def write(data):
        for _ in range(40):
            write_whole(file, data)

    def read():
        while not done.is_set():
            reads.append(file.read_bytes())

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        writers = [pool.submit(write, data) for data in contents]
        wait(writers)
        done.set()
    assert [thread.exception() for thread in (reader, *writers)] == [None] * 5
    assert reads and set(reads) <= set(contents)
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


@posix
def test_a_file_keeps_its_mode_and_a_new_one_gets_the_umasks(tmp_path):
    secret, fresh = tmp_path / "secret", tmp_path / "fresh"
    secret.write_bytes(b"old")
    secret.chmod(0o600)
    write_whole(secret, b"new")
    before = os.umask(0o027)
    try:
        write_whole(fresh, b"new")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(f.stat().st_mode) for f in (secret, fresh)] == [0o600, 0o640]
    assert secret.read_bytes() == b"new"


@posix
def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    link.symlink_to("there/target")
    for data in (b"new", b"newer"):  # a link to nothing yet, and one to a file
        write_whole(link, data)
        assert link.is_symlink() and target.read_bytes() == data
    assert os.listdir(tmp_path / "there") == ["target"]


@posix
def test_a_fifo_and_a_device_are_written_into(tmp_path):
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()), daemon=True)
    reader.start()
    write_whole(fifo, b"through")
    reader.join(10)
    assert read == [b"through"] and stat.S_ISFIFO(fifo.stat().st_mode)
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        write_whole(null, b"away")
    except PermissionError:
        pytest.skip("needs the right to make a device")
    assert stat.S_ISCHR(null.stat().st_mode)


@posix
def test_what_this_process_has_open_is_written_into(tmp_path):
    with open(tmp_path / "out", "w+b") as file:
        inode = os.fstat(file.fileno()).st_ino
        write_whole(f"/dev/fd/{file.fileno()}", b"through")
        assert (tmp_path / "out").stat().st_ino == inode
    assert (tmp_path / "out").read_bytes() == b"through"


def test_nothing_takes_its_place_before_everything_is_on_the_disk(tmp_path):
    first, second = tmp_path / "first", tmp_path / "nowhere" / "second"
    first.write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="whatever was there before .*nowhere/second"):
        write_in_order({first: b"new", second: b"new"})
    assert first.read_bytes() == b"old" and os.listdir(tmp_path) == ["first"]
    long = tmp_path / ("é" * 120)  # 240 bytes of a name
    write_whole(long, b"new")
    assert long.read_bytes() == b"new"


def test_a_folder_is_gone_again_where_writing_fails_and_was_not_there(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "a").write_bytes(b"old")
    for folder in (there, tmp_path / "fresh"):
        with pytest.raises(OSError, match="no space"), held_folder(folder, ("a", "b")) as held:
            write_whole(held / "b", b"new")
            raise OSError("no space")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "there"]
    with pytest.raises(FileExistsError, match="got one with 'b'"), held_folder(there, ("a",)):
        pass


@posix
def test_writers_of_a_folder_wait_for_each_other(tmp_path):
    events = []

    def write(k):
        with held_folder(tmp_path / "folder", ("a",)) as held:
            events.append(k)
            write_whole(held / "a", b"%d" % k)
            threading.Event().wait(0.02)
            events.append(k)

    with ThreadPoolExecutor(4) as pool:
        for writer in [pool.submit(write, k) for k in range(8)]:
            writer.result()
    assert len(events) == 16 and events[::2] == events[1::2]


def test_arrays_are_stored_in_one_form():
    array = np.arange(6.0, dtype="float32").reshape(2, 3)
    assert np.shares_memory(storable("a", array), array)
    for other in (np.asfortranarray(array), array.astype(">f4"), np.repeat(array, 2, 1)[:, ::2]):
        assert digest({"a": storable("a", other)}) == digest({"a": array})
    assert storable("a", np.array(1.0)).shape == ()
    for dtype in ("longdouble", "complex64", "int32", "object"):
        with pytest.raises(ValueError, match="^m: expected float16, float32 or float64, got"):
            storable("m", np.ones(2, dtype))


def test_a_digest_covers_the_text_beside_the_arrays():
    arrays = {"a": np.ones(2)}
    sums = {digest(arrays, text) for text in (None, "", "a", "b", "é", "\ud800")}
    assert len(sums) == 6
