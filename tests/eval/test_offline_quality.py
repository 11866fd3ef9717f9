"""Indicators on clips whose motion is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastdit import InvalidInputError
from fastdit.cli import main
from fastdit_eval.offline_quality import (
    dynamic_degree_dis,
    flow,
    measure_clip,
    motion_smoothness_dis,
    temporal_flickering,
)

pytest.importorskip("cv2")
CLIPS = Path(__file__).parents[3] / "shared" / "clips"


def textured(height=96, width=128):
    """A smooth random texture, wide enough to be cut at any offset."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).normal(size=(height, width + 64, 3)), (3, 3, 0))
    return ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)


def moving(speed, num_frames=8):
    texture = textured()
    return np.stack([texture[:, speed * t : speed * t + 128] for t in range(num_frames)])


def test_flicker_by_hand():
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1] = 51
    assert temporal_flickering(frames) == pytest.approx(1 - 51 / 255)
    assert temporal_flickering(frames[:1].repeat(2, 0)) == 1


def test_flow_finds_a_known_shift():
    frames = moving(4)
    inner = flow(frames[0], frames[1])[16:-16, 16:-16]
    assert np.median(inner[..., 0]) == pytest.approx(-4, abs=0.2)
    assert np.median(inner[..., 1]) == pytest.approx(0, abs=0.2)


def test_even_motion_is_smooth_and_a_jump_is_not():
    even, jumping = moving(2), moving(2)
    jumping[3] = jumping[7]
    assert motion_smoothness_dis(even) > 0.985
    assert motion_smoothness_dis(jumping) < motion_smoothness_dis(even) - 0.01


def test_motion_counts_from_the_threshold_on():
    # 6 pixels in 256 are 2.25 in 96.
    assert dynamic_degree_dis(moving(4), 8)[0]
    assert not dynamic_degree_dis(moving(0), 8)[0]
    assert dynamic_degree_dis(moving(4), 8)[1] == pytest.approx(4, abs=1)
    # Every second frame of 16 fps is looked at, so the same clip moves twice as far.
    assert dynamic_degree_dis(moving(4), 16)[1] > 1.5 * dynamic_degree_dis(moving(4), 8)[1]


def test_what_cannot_be_measured_has_a_reason():
    reasons = {}
    values = measure_clip(moving(2)[:, :16, :16], None, reasons)
    assert set(values) == {"temporal_flickering"}
    assert "smaller" in reasons["motion_smoothness_dis"]
    reasons = {}
    assert set(measure_clip(moving(2), None, reasons)) == {"temporal_flickering", "motion_smoothness_dis"}
    assert "--fps" in reasons["dynamic_degree_dis"]
    with pytest.raises(InvalidInputError, match="at least 2"):
        temporal_flickering(moving(2)[:1])


def test_the_command_reports_differences_and_no_vbench(tmp_path, capsys):
    np.save(tmp_path / "a.npy", moving(4))
    np.save(tmp_path / "b.npy", moving(0))
    words = ["eval", "quality", f"--dense={tmp_path / 'a.npy'}", f"--sparse={tmp_path / 'b.npy'}"]
    assert main([*words, "--fps=8", "--json", f"--output={tmp_path}", "--name=frozen"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (tmp_path / "results" / "quality-frozen.json").is_file()
    # The trap that the two are shown together for: a frozen video flickers less.
    assert report["items"]["temporal_flickering"]["delta"]["mean"] > 0
    assert report["items"]["dynamic_degree_dis"]["delta"]["mean"] == -1
    assert all(item["comparable_to_vbench"] is False for item in report["items"].values())
    assert "DIS" in report["items"]["motion_smoothness_dis"]["backbone"]
    assert main([*words, "--fps=0"]) == 2
    assert main(words) == 0
    assert "unavailable" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not in the repository")
def test_real_clips_have_the_published_values():
    from fastdit_eval.clips import read_clip

    clip = read_clip(CLIPS / "ltx2_120f_480x832_24fps.mp4")
    values = measure_clip(clip.bytes(), clip.fps, {})
    assert values["temporal_flickering"] == pytest.approx(0.979451680650898, abs=1e-4)
    assert values["motion_smoothness_dis"] == pytest.approx(0.9901, abs=2e-4)
    assert values["dynamic_degree_dis"] == 1
    assert values["flow_top5_dis"] == pytest.approx(26.5, abs=0.1)
    pair = [read_clip(CLIPS / f"cogvideox2b_{name}.mp4").bytes() for name in ("dense", "sparse")]
    assert [temporal_flickering(frames) for frames in pair] == pytest.approx([0.97859, 0.97992], abs=1e-5)
