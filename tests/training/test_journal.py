"""The journal gives back what was written, or says where it cannot."""

import errno
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading

import pytest

from protos.feeding.journal import Journal
from protos.feeding.journal_files import DamagedJournal


def contents(journal):
    first = journal.first_sequence
    if first is None:
        return {}
    found, sequence = {}, first
    while (content := journal.read(sequence)) is not None:
        found[sequence] = content
        sequence += 1
    return found


def record(sequence):
    return random.Random(sequence).randbytes(5 + sequence % 40)


def write(folder, numbers, **options):
    journal = Journal(folder, **options)
    for sequence in numbers:
        assert journal.append(sequence, record(sequence), timeout_s=0)
    journal.close()


def files(folder):
    return sorted(os.listdir(folder))


def test_records_outlast_the_object(tmp_path):
    write(tmp_path, range(7, 20))
    journal = Journal(tmp_path)
    assert contents(journal) == {i: record(i) for i in range(7, 20)}
    assert journal.next_sequence == 20 and len(journal) == 13
    journal.append(20, b"")
    assert journal.read(20) == b""
    journal.close()


def test_numbers_have_no_gap(tmp_path):
    journal = Journal(tmp_path)
    journal.append(3, b"x")
    with pytest.raises(ValueError, match="Expected record 4"):
        journal.append(5, b"x")
    journal.close()


def test_acknowledged_files_are_deleted(tmp_path):
    journal = Journal(tmp_path, max_bytes=4000)
    for sequence in range(60):
        assert journal.append(sequence, record(sequence), timeout_s=0)
    before = len(files(tmp_path))
    journal.acknowledge(50)
    assert journal.first_sequence == 50 and journal.read(49) is None
    assert len(files(tmp_path)) < before
    journal.acknowledge(60)
    assert len(journal) == 0 and journal.next_sequence == 60
    journal.append(60, b"y" * 450)
    journal.close()
    journal = Journal(tmp_path)
    assert contents(journal) == {60: b"y" * 450}
    journal.close()


def test_bounded_and_waits_for_room(tmp_path):
    journal = Journal(tmp_path, max_bytes=2000)
    sequence = 0
    while journal.append(sequence, b"z" * 100, timeout_s=0):
        sequence += 1
    assert journal.num_bytes <= 2000 and sequence >= 12
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 2000
    done = threading.Event()

    def append():
        journal.append(sequence, b"z" * 100)
        done.set()

    thread = threading.Thread(target=append)
    thread.start()
    assert not done.wait(0.05)
    journal.acknowledge(sequence)
    thread.join(10)
    assert done.is_set() and journal.waited_s > 0
    journal.close()


def test_record_as_large_as_the_journal(tmp_path):
    journal = Journal(tmp_path, max_bytes=2000)
    for sequence in range(5):
        assert journal.append(sequence, b"z" * 1900, timeout_s=0)
        journal.acknowledge(sequence + 1)
    with pytest.raises(ValueError, match="fit into 2000 bytes"):
        journal.append(5, b"z" * 2000)
    journal.close()


@pytest.mark.parametrize("max_bytes", [1 << 20, 1000])
def test_truncated_at_every_byte(tmp_path, max_bytes):
    write(tmp_path / "whole", range(14), max_bytes=max_bytes, sync=False)
    names = files(tmp_path / "whole")
    for name in names:
        data = (tmp_path / "whole" / name).read_bytes()
        for size in range(len(data)):
            folder = tmp_path / "cut"
            shutil.copytree(tmp_path / "whole", folder)
            os.truncate(folder / name, size)
            try:
                journal = Journal(folder, sync=False)
            except DamagedJournal as error:
                assert name != names[-1]
                assert error.path.startswith(str(folder))
            else:
                assert name == names[-1]
                found = contents(journal)
                assert list(found) == list(range(len(found)))
                assert all(found[i] == record(i) for i in found)
                following = journal.next_sequence or len(found)
                journal.append(following, b"goes on")
                journal.close()
                again = Journal(folder, sync=False)
                assert again.read(following) == b"goes on"
                again.close()
            shutil.rmtree(folder)


def test_random_bit_flips(tmp_path):
    rng = random.Random(0)
    write(tmp_path / "whole", range(40), max_bytes=2000, sync=False)
    names, damaged = files(tmp_path / "whole"), 0
    for _ in range(1000):
        folder = tmp_path / "flipped"
        shutil.copytree(tmp_path / "whole", folder)
        path = folder / rng.choice(names)
        data = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(DamagedJournal) as caught:
            Journal(folder, sync=False)
        damaged += caught.value.path == str(path)
        assert f"at byte {caught.value.offset}" in str(caught.value)
        shutil.rmtree(folder)
    assert damaged == 1000


def test_tail_of_zeros_is_torn(tmp_path):
    write(tmp_path, range(5))
    (name,) = files(tmp_path)
    with open(tmp_path / name, "ab") as file:
        file.write(bytes(300))
    journal = Journal(tmp_path)
    assert len(contents(journal)) == 5
    journal.close()


def test_missing_file(tmp_path):
    write(tmp_path, range(40), max_bytes=2000)
    os.unlink(tmp_path / files(tmp_path)[1])
    with pytest.raises(DamagedJournal, match="in place of"):
        Journal(tmp_path)


def test_damage_while_it_is_open(tmp_path):
    journal = Journal(tmp_path)
    journal.append(0, b"abc")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"d")
    with pytest.raises(DamagedJournal, match="wrong checksum"):
        journal.read(0)
    journal.close()


def test_disk_is_waited_for_by_who_reads_or_comes_next(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append(0, b"first")
    flushed = []
    fsync = os.fsync

    def seen(descriptor):
        flushed.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    with_first = sum(path.stat().st_size for path in tmp_path.iterdir())
    journal.append(1, b"second")
    # The first is on the disk before the second is written.
    assert flushed == [with_first]
    journal.read(0)
    with_both = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert flushed == [with_first, with_both]
    journal.read(1)
    journal.flush()
    assert len(flushed) == 2
    journal.close()
    # What a process left behind that was killed.
    journal = Journal(tmp_path)
    journal.flush()
    assert flushed == [with_first, with_both, with_both]
    journal.close()


def test_disk_that_fails(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "the disk is gone")

    journal = Journal(tmp_path)
    journal.append(0, b"first")
    monkeypatch.setattr(os, "fsync", fail)
    for call in (
        lambda: journal.read(0),
        lambda: journal.append(1, b"second"),
        journal.flush,
    ):
        with pytest.raises(OSError, match="is gone"):
            call()
    assert len(journal) == 1
    monkeypatch.undo()
    assert journal.append(1, b"second")
    assert contents(journal) == {0: b"first", 1: b"second"}
    journal.close()


def test_disk_full(tmp_path):
    code = textwrap.dedent(
        """
        import resource, sys
        from protos.feeding.journal import Journal
        journal = Journal(sys.argv[1], max_bytes=1 << 20, sync=False)
        for sequence in range(3):
            journal.append(sequence, bytes([sequence]) * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500))
        # There is something to wait for: so it waits.
        assert not journal.append(3, b"x" * 1000, timeout_s=0.01)
        journal.acknowledge(3)
        # Nothing is left to wait for; a new file has room again.
        try:
            journal.append(3, b"x" * 4000)
            raise SystemExit("written beyond the limit")
        except OSError as error:
            print(error.errno)
        assert journal.append(3, b"x" * 1000, timeout_s=0)
        journal.close()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    journal = Journal(tmp_path)
    assert journal.read(3) == b"x" * 1000
    journal.close()


def test_closed(tmp_path):
    journal = Journal(tmp_path)
    journal.close()
    with pytest.raises(ValueError, match="open journal"):
        journal.append(0, b"")
