"""The journal and its copies: what is read after which end, and what damage costs."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pptp_nat.core.bindings import Pair
from pptp_nat.errors import UsageError
from pptp_nat.state import record_format, records, statefile, store
from pptp_nat.state.store import Journal

PAIR = Pair(bytes((198, 18, 7, 1)), bytes((198, 18, 7, 2)))
Maker = Callable[..., Journal]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def journal(*, copies: bool = True, sync: float = 3600.0) -> Journal:
        return Journal(tmp_path / "journal", tmp_path / "copies" if copies else None, sync=sync)

    return journal


def kept(number: int) -> bytes:
    return records.kept_back(1e9, PAIR, number)


def begun(journal: Journal, *numbers: int) -> Journal:
    """Return *journal* as a daemon leaves it that has written *numbers* and still runs."""
    journal.read()
    journal.renew()
    journal.append(records.last_id(7))
    journal.renewed()
    journal.keep_copying()
    for number in numbers:
        journal.append(kept(number))
    return journal


def crash(journal: Journal) -> None:
    """Take the descriptors away, as the end of a process does, and nothing else."""
    for descriptor in (journal._descriptor, journal._lock):
        if descriptor is not None:
            os.close(descriptor)
    journal._descriptor = journal._lock = None
    journal._ending.set()


def numbers(journal: Journal) -> set[int]:
    found = journal.read()
    return set() if found is None else {number for _, number in found.contents.kept_back}


def test_what_was_written_is_there_after_a_crash_exactly(make: Maker) -> None:
    crash(begun(make(), 1, 2))
    heir = make()
    found = heir.read()

    assert found is not None
    assert (True, True) == (found.exact, found.this_boot)
    assert {1, 2} == {number for _, number in found.contents.kept_back}
    assert 7 == found.contents.last_id


def test_an_exact_journal_is_gone_on_with(make: Maker, tmp_path: Path) -> None:
    """A record that was cut off goes, what follows it is whole; nothing is written twice."""
    crash(begun(make(), 1, 2))
    (file,) = (tmp_path / "journal").glob("journal.*")
    size = file.stat().st_size
    with file.open("ab") as torn:
        torn.write(kept(3)[:-1])
    heir = make()
    found = heir.read()
    assert found is not None
    assert heir.resume(found)
    assert size == file.stat().st_size == heir.size
    heir.append(kept(4))
    crash(heir)

    assert {1, 2, 4} == numbers(make())


@pytest.mark.parametrize("moment", ["before", "after it was copied"])
def test_a_journal_that_was_written_anew_is_gone_on_with(
    make: Maker, tmp_path: Path, moment: str
) -> None:
    """Two generations become one; a crash in the middle of that leaves both, and costs nothing."""
    first = begun(make(), 1)
    first.renew()
    first.append(kept(2))
    crash(first)
    one, other = sorted((tmp_path / "journal").glob("journal.*"))
    if moment != "before":
        with one.open("ab") as file:
            file.write(other.read_bytes()[statefile.HEADER_SIZE :])
    heir = make()
    found = heir.read()
    assert found is not None
    assert heir.resume(found)
    heir.append(kept(3))
    assert [one] == list((tmp_path / "journal").glob("journal.*"))
    crash(heir)

    assert {1, 2, 3} == numbers(make())


def test_what_is_not_exact_or_somebody_else_s_is_not_gone_on_with(
    make: Maker, tmp_path: Path
) -> None:
    first = begun(make(), 1)
    first.append(records.astray())
    crash(first)
    heir = make()
    found = heir.read()
    assert found is not None
    assert not heir.resume(found), "octets went by unread"
    crash(heir)
    stranger = Journal(tmp_path / "other", None, sync=3600.0)
    begun(stranger, 5)
    crash(stranger)
    stranger = Journal(tmp_path / "other", None, sync=3600.0)
    others = stranger.read()
    assert others is not None
    fresh = make()
    assert not fresh.resume(others)
    assert not stranger.resume(others._replace(source="divided among workers"))
    crash(stranger)
    crash(fresh)


def test_a_journal_that_cannot_be_gone_on_with_is_written_anew(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(make(), 1)
    first.renew()
    first.append(kept(2))
    crash(first)
    heir = make()
    found = heir.read()
    assert found is not None
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda _descriptor, octets: len(octets) // 2)
        assert not heir.resume(found)
    heir.renew()
    heir.append(kept(3))
    crash(heir)

    assert {1, 2, 3} == numbers(make())


def test_a_journal_has_one_owner(make: Maker, tmp_path: Path) -> None:
    first = begun(make(), 1)
    with pytest.raises(UsageError, match=r"another daemon keeps its journal there; stop it"):
        make()
    crash(first)
    assert {1} == numbers(make())


def test_a_record_that_was_cut_off_in_the_writing_costs_only_itself(
    make: Maker, tmp_path: Path
) -> None:
    crash(begun(make(), 1, 2))
    (path,) = (tmp_path / "journal").glob("journal.*")
    whole = path.read_bytes()
    for cut in range(1, len(kept(2))):
        path.write_bytes(whole[:-cut])
        journal = make()
        assert {1} == numbers(journal)
        crash(journal)
    assert not list((tmp_path / "journal").glob("*.damaged"))


def test_damage_in_any_octet_of_the_header_is_told_and_set_aside(
    make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crash(begun(make(), 1))
    (path,) = (tmp_path / "journal").glob("journal.*")
    whole = path.read_bytes()
    for place in range(statefile.HEADER_SIZE):
        octets = bytearray(whole)
        octets[place] ^= 0x10
        for each in path.parent.glob("journal.*"):
            each.unlink()
        path.write_bytes(octets)
        caplog.clear()
        journal = make()
        assert journal.read() is None
        (line,) = [each.message for each in caplog.records]
        assert line.startswith("state-damaged")
        assert octets == (tmp_path / "journal" / "journal.damaged").read_bytes()
        assert not path.exists()
        begun(journal, 3)
        crash(journal)
        journal = make()
        assert {3} == numbers(journal)
        crash(journal)


def test_damage_in_any_octet_of_a_record_is_found(make: Maker, tmp_path: Path) -> None:
    """The sum says so; only the last record may be incomplete, and none may be wrong."""
    crash(begun(make(), 1, 2))
    (path,) = (tmp_path / "journal").glob("journal.*")
    whole = path.read_bytes()
    for place in range(statefile.HEADER_SIZE, len(whole)):
        octets = bytearray(whole)
        octets[place] ^= 0x10
        path.write_bytes(octets)
        journal = make()
        assert numbers(journal) in (set(), {1}), place  # {1}: the last one's length grew
        crash(journal)
        (path.parent / "journal.damaged").unlink(missing_ok=True)


def test_another_version_s_journal_is_not_guessed_at(
    make: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record_format, "VERSION", 2)
    crash(begun(make(), 1))
    monkeypatch.undo()
    assert make().read() is None
    (line,) = caplog.records
    assert "it is in format 2, this version reads 1" == line.fields["reason"]


def test_a_clean_end_leaves_an_exact_copy_for_this_boot_and_a_late_one_for_others(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager may remove what is below /run when a service stops."""
    begun(make(), 1, 2).close(astray=False)
    for path in (tmp_path / "journal").iterdir():
        path.unlink()
    journal = make()
    found = journal.read()
    assert found is not None
    assert (True, True) == (found.exact, found.this_boot)
    assert {1, 2} == {number for _, number in found.contents.kept_back}
    crash(journal)

    again = make()
    late = again.read()  # whoever has read it once may have crashed since
    assert late is not None
    assert (False, True) == (late.exact, late.this_boot)
    crash(again)

    monkeypatch.setattr(statefile, "_BOOT_ID", tmp_path / "none")
    other = make().read()
    assert other is not None
    assert (False, False) == (other.exact, other.this_boot)


def test_octets_that_went_by_unread_make_a_journal_inexact(make: Maker) -> None:
    begun(make(), 1).close(astray=True)
    found = make().read()
    assert found is not None
    assert not found.exact


def test_a_copy_is_made_only_when_something_lasting_has_changed(
    make: Maker, tmp_path: Path
) -> None:
    journal = begun(make(sync=0.01), 1)
    copy = tmp_path / "copies" / store.COPY
    _until(copy.exists)
    made = copy.stat().st_mtime_ns
    _until(lambda: journal._copied == journal._lasting)
    for number in range(50):
        journal.append(kept(number), lasting=False)
        time.sleep(0.001)
    assert made == copy.stat().st_mtime_ns or journal._copied < journal._lasting
    journal.append(kept(99))
    _until(lambda: 99 in _copied(journal, copy))
    crash(journal)


def _copied(journal: Journal, copy: Path) -> set[int]:
    found = journal._read_copy(copy, final=False)
    return set() if found is None else {number for _, number in found.contents.kept_back}


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_disk_that_stands_still_delays_nothing(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fsync() that does not return holds up its own thread, and the end for some seconds."""
    moves, stands = threading.Event(), threading.Event()

    def stall(_descriptor: int) -> None:
        stands.set()
        moves.wait(60)

    monkeypatch.setattr(os, "fsync", stall)
    monkeypatch.setattr(store, "LAST_COPY_SECONDS", 0.2)
    journal = begun(make(sync=0.01), 1)
    assert stands.wait(30), "a copy is under way"
    for number in range(2, 500):
        journal.append(kept(number))
    assert not list((tmp_path / "copies").glob(store.COPY)), "it still stands"
    journal.close(astray=False)
    moves.set()
    assert set(range(1, 500)) == numbers(make(copies=False))


def test_a_damaged_copy_is_set_aside_and_the_other_one_is_read(
    make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun(make(), 1).close(astray=False)
    copies = tmp_path / "copies"
    whole = (copies / store.LAST_COPY).read_bytes()
    for path in (tmp_path / "journal").iterdir():
        path.unlink()
    for place in range(len(whole)):
        octets = bytearray(whole)
        octets[place] ^= 0x10
        (copies / store.LAST_COPY).write_bytes(octets)
        (copies / store.COPY).write_bytes(whole)
        journal = make()
        assert {1} == numbers(journal), place
        crash(journal)
    assert "state-damaged" in caplog.text


def test_no_file_of_state_is_for_everybody(make: Maker, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        begun(make(), 1).close(astray=False)
    finally:
        os.umask(umask)
    files = [*(tmp_path / "journal").iterdir(), *(tmp_path / "copies").iterdir()]
    assert 2 == len(files)
    assert {0o640} == {stat.S_IMODE(path.stat().st_mode) for path in files}
    assert {0o750} == {
        stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("journal", "copies")
    }


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_journal_that_cannot_be_written_is_no_journal(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, code: int,
) -> None:  # fmt: skip
    """One that is behind would be worse than none; and calls go on."""
    journal = begun(make(copies=False), 1)

    def refuse(_descriptor: int, _octets: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    for number in range(1000):
        journal.append(kept(number))
    assert [] == list((tmp_path / "journal").glob("journal.*"))
    (line,) = [each.message for each in caplog.records]
    assert line.startswith("state-not-kept")
    assert not journal.is_full, "not tried again with every packet"
    monkeypatch.undo()
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    assert journal.is_full
    begun(journal, 5)
    assert 5 in {number for _, number in journal._read_journal().contents.kept_back}


def test_a_short_write_is_a_failure(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = begun(make(copies=False), 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, octets: write(fd, octets[:5]))
    journal.append(kept(2))
    monkeypatch.undo()
    assert 1 == journal.failures
    assert journal._read_journal() is None


def test_a_directory_that_cannot_be_made_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal", tmp_path / "file" / "copies", sync=3600)
    assert journal.read() is None
    begun(journal, 1).close(astray=False)
    assert "state-not-kept" in caplog.text


def test_a_journal_is_bounded_by_what_is_true(make: Maker, tmp_path: Path) -> None:
    """However long it runs: it is written anew when it has grown enough."""
    journal = begun(make(copies=False))
    written = 0
    while written < 20 * store.SMALLEST:
        journal.append(kept(1) * 50)
        written += 50 * len(kept(1))
        if journal.is_full:
            journal.renew()
            journal.append(kept(1))
            journal.renewed()
        size = sum(path.stat().st_size for path in (tmp_path / "journal").iterdir())
        assert size < 2 * store.SMALLEST
    crash(journal)
    assert {1} == numbers(make())


def test_what_was_written_and_copied_is_known_for_metrics(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal's size is the file's, and what fails is no write."""
    journal = begun(make(), 1)
    writes, written = journal.writes, journal.written
    journal.append(kept(2))
    [path] = (tmp_path / "journal").glob("journal.*")
    assert (journal.writes, journal.written) == (writes + 1, written + len(kept(2)))
    assert journal.size == path.stat().st_size
    assert journal.copied_at is None

    before = time.time()
    journal.close(astray=False)
    assert journal.copy_size == (tmp_path / "copies" / "calls.final").stat().st_size
    assert journal.copied_at is not None
    assert before <= journal.copied_at <= time.time()

    def refuse(_descriptor: int, _octets: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = begun(make(), 1)
    writes = journal.writes
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        journal.append(kept(3))
    assert (journal.writes, journal.failures, journal.size) == (writes, 1, 0)
