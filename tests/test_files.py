"""Tables and records on disks that are full, and with lines that are damaged."""

import errno
import os
import resource
import struct

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from soft_mpcritic.board import Board
from soft_mpcritic.files import StorageError, Table, delivered, read_table, unwritable, write_json

COLUMNS = ("env_step", "value")


@pytest.fixture
def full(monkeypatch):
    """Lets files grow to so many bytes and no further, as a disk does that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


def row(step: int) -> dict:
    return {"env_step": step, "value": step / 4}


def test_rows_wait_while_the_disk_is_full_and_are_written_once(tmp_path, full):
    path = tmp_path / "t.csv"
    table = Table(path, COLUMNS)
    table.append(row(1))
    full(path.stat().st_size + 3)  # room for a part of the next row
    for step in (2, 3):
        with pytest.raises(OSError):
            table.append(row(step))
        assert [r["env_step"] for r in read_table(path)] == ["1"]
        assert path.read_text().endswith("\n")
    with pytest.raises(OSError):
        table.sync()
    full(None)
    table.append(row(4))
    table.sync()
    assert [int(r["env_step"]) for r in read_table(path)] == [1, 2, 3, 4]


def test_a_full_disk_leaves_a_record_as_it_was_and_takes_no_room(tmp_path, full):
    write_json(tmp_path / "a.json", {"a": 1})
    before = (tmp_path / "a.json").read_text()
    full(5)
    with pytest.raises(OSError):
        write_json(tmp_path / "a.json", {"a": "much" * 1000})
    full(None)
    assert (tmp_path / "a.json").read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_record_is_on_the_disk_before_the_old_one_is_gone(tmp_path, monkeypatch):
    """Else a disk that fails, or a power cut, leaves an empty config.json and a run that cannot go on."""
    done: list[tuple[str, bool]] = []
    honest_sync, honest_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(("sync", bool(os.fstat(descriptor).st_size) and os.path.isdir(f"/proc/self/fd/{descriptor}")))
        honest_sync(descriptor)

    def replace(one, other) -> None:
        done.append(("replace", False))
        honest_replace(one, other)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_json(tmp_path / "a.json", {"a": 1})
    assert done == [("sync", False), ("replace", False), ("sync", True)]  # the file, then the folder


def test_what_a_user_asked_for_comes_whole_or_not_at_all_and_is_one_line(tmp_path, full):
    path = tmp_path / "a.png"
    path.write_text("old")
    full(5)
    with pytest.raises(StorageError) as caught, delivered(path) as file:
        file.write_text("much" * 1000)
    full(None)
    assert str(caught.value) == f"{path} cannot be written: File too large; make room, or choose another."
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a.png", "old")]


def test_the_remedy_fits_what_went_wrong():
    """An encoder's own words come in several lines."""
    assert unwritable("x", OSError(errno.EROFS, "Read-only")) == "x cannot be written: Read-only; make it writable"
    assert unwritable("x", OSError("ffmpeg:\n  no room\n")) == "x cannot be written: ffmpeg: no room; make room"


def test_a_table_is_rewritten_only_where_it_has_to_be(tmp_path, full):
    table = Table(tmp_path / "t.csv", COLUMNS)
    table.append(row(1))
    full(0)
    Table(tmp_path / "t.csv", COLUMNS, keep_until=1)
    with pytest.raises(OSError):
        Table(tmp_path / "t.csv", COLUMNS, keep_until=0)
    full(None)
    assert len(read_table(tmp_path / "t.csv")) == 1


@pytest.mark.parametrize("damage", ["x,1\n", ",\n", "2,1,1\n", "2\n", "\0\0\0\n", "-5,1\n", "\xff,1\n"])
def test_damaged_rows_are_named_and_left_out(tmp_path, caplog, damage):
    path = tmp_path / "t.csv"
    path.write_bytes(b"env_step,value\n1,0.25\n" + damage.encode("latin-1"))
    Table(path, COLUMNS, keep_until=9).append(row(9))
    assert "1 damaged rows are left out" in caplog.text
    assert [r["env_step"] for r in read_table(path)] == ["1", "9"]


def test_columns_that_an_older_version_lacked_are_empty(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("env_step,old\n1,2\n")
    Table(path, COLUMNS, keep_until=9).append(row(9))
    assert path.read_text() == "env_step,value\n1,\n9,2.25\n"


def test_a_column_that_a_table_does_not_have_is_our_own_fault(tmp_path):
    with pytest.raises(ValueError, match=r"t\.csv has no column extra"):
        Table(tmp_path / "t.csv", COLUMNS).append({**row(1), "extra": 2})


def test_curves_are_given_up_once_where_they_cannot_be_written(tmp_path, full, caplog):
    """tensorboardX would hang here: its thread dies, and its queue fills up."""
    board = Board(tmp_path / "board")
    full(1000)
    for step in range(1000):
        board.add(step, 0.0, {"a": 1.0, "b": 2.0})
    assert caplog.text.count("no more curves for TensorBoard") == 1


def test_a_board_that_cannot_be_made_is_done_without(tmp_path, caplog):
    (tmp_path / "board").write_text("in the way")
    board = Board(tmp_path / "board")
    board.add(1, 0.0, {"a": 1.0})
    assert "no more curves" in caplog.text


def events(path) -> list:
    """What TensorBoard reads: length, checksum, content, checksum; again and again."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(event_pb2.Event.FromString(content[12 : 12 + length]))  # pyright: ignore
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked_crc32c(content[12 : 12 + length]),)
        content = content[16 + length :]
    return found


def test_curves_are_events_and_a_resumed_run_voids_what_was_shown_later(tmp_path):
    Board(tmp_path, resumed_at=7).add(9, 1.5, {"a": 2.0, "b": 3.0})
    (path,) = tmp_path.iterdir()
    version, start, *points = events(path)
    assert version.file_version == "brain.Event:2" and start.step == 8 and start.session_log.status == 1
    assert [(p.step, p.wall_time, p.summary.value[0].tag, p.summary.value[0].simple_value) for p in points] == [
        (9, 1.5, "a", 2.0),
        (9, 1.5, "b", 3.0),
    ]
