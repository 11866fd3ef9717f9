"""Clips of a suite: none lost, none made twice, whatever happens."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from small_suite import CLIPS, ROWS, small_maker

from fastdit.errors import InvalidInputError
from fastdit_eval.clips import read_clip
from fastdit_eval.suite.clip_store import ClipStore, make_clips
from fastdit_eval.vbench.clip_files import claim

ALL = range(len(CLIPS))


def test_a_second_start_makes_what_is_missing_and_nothing_else(tmp_path):
    store, log = ClipStore(tmp_path), tmp_path / "log"
    seen = []
    tally = make_clips(store, ROWS, CLIPS, ALL, small_maker(log), lambda text, made: seen.append(made))
    assert (tally.made, tally.kept, tally.elsewhere) == (9, 0, 0)
    assert seen == [True] * 9
    # All rows of a clip in turn, of every second clip backwards.
    expected = [f"{row}/{number}" for number in ALL for row in (ROWS[::-1] if number == 1 else ROWS)]
    assert log.read_text().split() == expected
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    frames = store.frames("dense") / f"{CLIPS[0]}.npz"
    whole = frames.read_bytes()
    frames.write_bytes(whole[:-10])
    store.video("dense", CLIPS[1]).write_bytes(b"cut off")
    store.record_file("dense-math", CLIPS[0]).unlink()
    store.record_file("dense-math", CLIPS[1]).write_text("{")
    store.video("adaptive-0.2", CLIPS[2]).unlink()
    log.unlink()
    tally = make_clips(store, ROWS, CLIPS, ALL, small_maker(log))
    assert (tally.made, tally.kept) == (5, 4)
    assert sorted(log.read_text().split()) == ["adaptive-0.2/2", "dense-math/0", "dense-math/1", "dense/0", "dense/1"]
    assert frames.read_bytes() == whole
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()) == 4
    assert all(store.is_complete(row, CLIPS) for row in ROWS)


def test_frames_are_kept_without_loss_beyond_8_bit(tmp_path):
    store = ClipStore(tmp_path)
    make_clips(store, ["dense"], CLIPS, [0], small_maker())
    made = np.random.default_rng(0).random((4, 40, 40, 3), dtype=np.float32)
    kept = read_clip(store.frames("dense") / f"{CLIPS[0]}.npz")
    assert (kept.bytes() == (made * 255).round()).all()


def _live(root, life):
    """Make clips until the kernel kills this process: in the work, before a file has its name, or not at all."""
    store, replace, count = ClipStore(root), Path.replace, []
    make = small_maker()

    def die(place):
        count.append(place)
        if len(count) == 2 + life % 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing_make(row, number, video):
        video.write_bytes(b"half")
        if life % 2:
            die("work")
        return make(row, number, video)

    def killing_replace(self, target):
        if life % 2 == 0:
            die("rename")
        if target.suffix == ".json":
            with (root / "recorded").open("a") as file:
                file.write(f"{target.parent.name}/{target.stem}\n")
        return replace(self, target)

    Path.replace = killing_replace
    make_clips(store, ROWS, CLIPS, ALL, killing_make)


def test_killed_again_and_again_no_clip_is_lost_and_none_made_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    kills = 0
    for life in range(40):
        process = context.Process(target=_live, args=(tmp_path, life))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 5
    recorded = (tmp_path / "recorded").read_text().splitlines()
    assert sorted(recorded) == sorted(f"{row}/{clip}" for row in ROWS for clip in CLIPS)
    fresh = ClipStore(tmp_path / "fresh")
    make_clips(fresh, ROWS, CLIPS, ALL, small_maker())
    for row in ROWS:
        for clip in CLIPS:
            killed, whole = (ClipStore(root) for root in (tmp_path, fresh.root))
            assert killed.read_record(row, clip) == whole.read_record(row, clip)
            for place in ("frames", "videos"):
                name = f"{clip}.npz" if place == "frames" else f"{clip}.mp4"
                assert (tmp_path / place / row / name).read_bytes() == (fresh.root / place / row / name).read_bytes()


def test_a_clip_in_other_hands_is_left_alone(tmp_path):
    store = ClipStore(tmp_path)
    with claim(tmp_path / "locks" / "00001.lock") as mine:
        assert mine
        tally = make_clips(store, ROWS, CLIPS, ALL, small_maker())
    assert (tally.made, tally.elsewhere) == (6, 3)
    assert not store.records("dense", [CLIPS[1]])


def test_frames_that_are_no_numbers_are_refused(tmp_path):
    make = small_maker()

    def broken(row, number, video):
        frames, facts = make(row, number, video)
        frames[1, 2, 3] = np.nan
        return frames, facts

    with pytest.raises(InvalidInputError, match="dense: a red circle-0: the frames hold NaN"):
        make_clips(ClipStore(tmp_path), ROWS, CLIPS, ALL, broken)
    assert not list(tmp_path.rglob("*.json"))
