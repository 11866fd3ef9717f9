"""What the search predicts of single heads, against what they do to the frames of the bundled model."""

from fastdit.search.ladder import default_ladder
from fastdit.search.settings import SearchSettings
from fastdit_eval.estimator_check import check_estimator
from fastdit_pipelines.loading import load_pipeline

CALL = {"height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 6, "max_sequence_length": 32}


def test_heads_that_are_said_to_matter_do():
    settings = SearchSettings(
        prompts=("a red circle moving left on a dark background", "a blue square moving up on a dark background"),
        min_psnr=30.0,
        call=CALL,
        phases=(0.5, 1.0),
        ladder=default_ladder(16, 8),
        num_measured=1,
    )
    pipe = load_pipeline("tiny")
    pipe.set_progress_bar_config(disable=True)
    modes = ["pyramid_0.06", "pyramid_0.5"]
    report = check_estimator(pipe, settings, modes=modes, num_items=24, num_plans=0, folder=None)
    assert len(report["items"]) == 24
    found = report["rank_correlation"]
    # .96 here; errors behind the projection, not weighed, .58.
    assert found["with gains of the frames"]["all"] > 0.8
    assert found["with gains of the frames"]["all"] > found["behind the projection"]["all"] + 0.1
    # Predicted in the units of the frames' squared error, not in those of calls.
    assert abs(report["factor"]["median_db"]) < 10
