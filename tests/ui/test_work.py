"""What the worker does with pipelines: steps reported, runs stopped, images, comparisons with a kept dense run."""

import dataclasses
import json

import numpy as np
import pytest
from tests_support import build_tiny_wan
from tiny_wan_variants import build, picture
from ui_stub import PROMPT

from fastdit.errors import ConfigError, InvalidInputError
from fastdit_eval.difference_video import difference_frames, side_by_side
from fastdit_eval.run_contents import read_run
from fastdit_pipelines.engine import PipelineEngine
from fastdit_ui.baselines import Baseline, BaselineCache
from fastdit_ui.jobs import Job, JobCancelled
from fastdit_ui.request import FormValues, resolve
from fastdit_ui.settings import ServerSettings
from fastdit_ui.sizes import Size
from fastdit_ui.state import AppState
from fastdit_ui.work import run_compare, run_generate

SIZE = Size(48, 32, 9, 18, ())
SPARSE = {"source": "expert", "method": "pyramid", "density": 0.3, "dense_steps": 0.0, "min_tokens": 0}


class RandomEngine(PipelineEngine):
    """Random weights, small clips; counts its runs."""

    def __init__(self, pipe):
        self.pipe, self.runs = pipe, 0

    def load(self, model):
        return self.pipe

    def generate(self, *args, **kwargs):
        self.runs += 1
        return super().generate(*args, **kwargs)


@pytest.fixture(scope="module")
def pipe():
    made = build_tiny_wan()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def state(tmp_path, pipe):
    made = AppState(ServerSettings(output_dir=tmp_path / "runs"), RandomEngine(pipe))
    yield made
    made.close()


def request(state, **values):
    made = resolve(state, FormValues(prompt=PROMPT, **{**SPARSE, **values}))
    sizes = {"width": 48, "height": 32, "num_frames": 9, "num_inference_steps": 3, "max_sequence_length": 16}
    # Tiles small enough that something can be skipped at all.
    config = made.config and dataclasses.replace(made.config, q_tile=8, kv_tile=4, order="raster")
    return dataclasses.replace(made, call={**made.call, **sizes}, size=SIZE, config=config)


def job():
    return Job("test", "me", None, status="running")


def processors(pipe):
    return [block.attn1.processor for block in pipe.transformer.blocks]


def test_a_run_reports_its_steps_and_lies_in_the_library(state, pipe):
    before, told = processors(pipe), []
    watched = job()
    watched.report = lambda step, total, label=None: told.append((label, step, total))
    result = run_generate(state, request(state), watched)
    assert [one for one in told if one[0] == "Sparse run"] == [("Sparse run", step, 3) for step in range(4)]
    record = state.runs.get(result.name)
    assert record.report == json.loads(json.dumps(result.report))
    assert record.file("video.mp4").stat().st_size > 0
    assert 0 < record.report["density"] < 1
    assert len(record.report["density_by_step"]) == 3
    assert processors(pipe) == before, "the pipeline is put back as it was"


def test_a_cancelled_run_stops_between_steps_and_puts_everything_back(state, pipe):
    before, steps = processors(pipe), []
    stopped = job()

    def report(step, total, label=None):
        steps.append(step)
        if step == 2:
            raise JobCancelled

    stopped.report = report
    with pytest.raises(JobCancelled):
        run_generate(state, request(state), stopped)
    assert max(steps) == 2
    assert processors(pipe) == before
    assert state.runs.list() == []
    assert run_generate(state, request(state), job()).report["density"] < 1, "the next run is none the worse"


def test_the_second_comparison_costs_one_run(state):
    first = run_compare(state, request(state), job()).report
    assert state.engine.runs == 2
    second = run_compare(state, request(state, density=0.6), job()).report
    assert state.engine.runs == 3
    assert (first["dense_run_reused"], second["dense_run_reused"]) == (False, True)
    assert first["dense_seconds"] == second["dense_seconds"]
    assert first["density"] < second["density"]
    # Another seed is another video.
    assert not run_compare(state, request(state, seed=1), job()).report["dense_run_reused"]
    assert state.engine.runs == 5


def test_a_comparison_is_what_the_report_of_the_command_line_reads(state):
    result = run_compare(state, request(state), job())
    (row,) = read_run(state.runs.root)["rows"]
    assert (row["psnr"], row["density"]) == (result.report["psnr"], result.report["density"])
    files = {path.name for path in result.folder.iterdir()}
    assert files == {"dense.mp4", "sparse.mp4", "side_by_side.mp4", "compare.png", "report.json"}
    assert len(result.report["psnr_by_frame"]) == 9


def test_dense_is_not_compared_with_itself(state):
    with pytest.raises(ConfigError, match="choose a sparse method"):
        run_compare(state, request(state, source="dial", dial=5), job())


def test_an_image_goes_to_models_that_take_one_and_to_no_other(state, tmp_path):
    image = picture((32, 48))
    with pytest.raises(ConfigError, match="takes none"):
        run_generate(state, dataclasses.replace(request(state), image=image), job())
    engine = RandomEngine(build("i2v"))
    other = AppState(ServerSettings(output_dir=tmp_path / "i2v"), engine)
    asked = request(other)
    asked = dataclasses.replace(asked, call={**asked.call, "max_sequence_length": 512, "num_inference_steps": 1})
    with pytest.raises(ConfigError, match="makes videos from an image"):
        run_generate(other, asked, job())
    report = run_generate(other, dataclasses.replace(asked, image=image), job()).report
    assert report["image"] is True
    assert asked.baseline_key() != dataclasses.replace(asked, image=image).baseline_key()
    other.close()


def test_kept_dense_runs_stay_within_their_budget():
    frames = np.zeros((2, 8, 8, 3), np.float32)
    cache = BaselineCache(3 * frames.nbytes)
    for name in "abcd":
        cache.put(name, Baseline(frames, 1.0))
        cache.get("a")
    assert cache.num_bytes() <= 3 * frames.nbytes
    assert cache.get("b") is None, "the longest unused one went"
    assert cache.get("a") is not None
    cache.put("large", Baseline(np.zeros((9, 9, 9, 3), np.float32), 1.0))
    assert cache.get("large") is not None


def test_the_heat_map_is_dark_where_videos_agree():
    dense = np.full((2, 4, 6, 3), 0.5, np.float32)
    sparse = dense.copy()
    sparse[1, 0, 0] = 0.9
    heat, top = difference_frames(dense, sparse)
    assert top == pytest.approx(0.4)
    assert heat[0].max() < 0.02
    assert heat[1, 0, 0].min() > 0.5
    joined, _ = side_by_side(dense, sparse)
    assert joined.shape == (2, 4, 18, 3)
    np.testing.assert_array_equal(joined[:, :, 6:12], sparse)
    assert difference_frames(dense, dense)[1] == pytest.approx(0.1)
    with pytest.raises(InvalidInputError, match="shape"):
        difference_frames(dense, sparse[:1])
