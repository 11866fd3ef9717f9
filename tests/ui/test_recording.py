"""A recorded run of the app on a tiny random pipeline: recorded once, browsed from its folder."""

import numpy as np
import pytest
from tiny_engine import CALL, SMALL, TinyEngine, wait_until

import fastdit
from fastdit_ui.inside_answers import RunReader, describe_run, site_of
from fastdit_ui.inside_plots import picture, plot_density, plot_steps
from fastdit_ui.jobs import Job
from fastdit_ui.patch_view import view_patch
from fastdit_ui.recording import choose, parse_numbers, record_run, recorded_names
from fastdit_ui.request import RunRequest
from fastdit_ui.settings import ServerSettings
from fastdit_ui.sizes import Size
from fastdit_ui.state import AppState


def make_request(config, method="pyramid"):
    call = {**CALL, "prompt": "a red circle", "seed": 0}
    size = Size(96, 64, 9, None, ())
    return RunRequest(
        model="tiny", call=call, fps=8, image=None, method=method, config=config, plan_file=None, size=size, title="x"
    )


def test_a_run_is_recorded_once_and_browsed_from_its_folder(tmp_path):
    state = AppState(ServerSettings(output_dir=tmp_path), TinyEngine())
    try:
        config = fastdit.PyramidConfig(density=0.4, schedule=fastdit.Schedule(dense_steps=1, dense_layers=()), **SMALL)
        seen = []

        def work(job: Job) -> str:
            name = record_run(state, make_request(config), (), (), job)
            seen.append((job.step, job.total, job.label))
            return name

        job = state.jobs.submit("inside", "me", work)
        wait_until(lambda: job.finished)
        assert job.error is None
        name = job.result
        # Everything from here on reads files alone.
        state.engine.pipe = None
        assert recorded_names(state.runs) == [name]
        reader = RunReader(state)
        record, run = reader.run(name)
        choices = reader.choices(name)
        assert (choices.layers, choices.steps, choices.heads, choices.grid) == ([0, 1], [0, 1, 2], 2, (3, 4, 6))
        assert record.report["density"] == pytest.approx(float(np.nanmean(run.density[0])), rel=1e-5)
        assert dict(describe_run(record, run))["Layers recorded"] == "0, 1"
        call, frames = reader.call(name, site_of(0, "1", 2.0))
        assert frames.shape == (3, 64, 96, 3)
        view = view_patch(call, frames, 1, (1, 2, 3))
        shares = {row["keys"]: row for row in view.rows}
        assert sum(row["attention"] for row in view.rows) == pytest.approx(1, abs=1e-5)
        assert sum(row["share of keys"] for row in view.rows) == pytest.approx(1)
        assert 0 < shares["kept"]["share of keys"] < 1
        dense, _ = reader.call(name, (0, 1, 0))
        assert view_patch(dense, frames, 0, (0, 0, 0)).says.endswith(
            "This head was dense here (dense_steps): it sees all keys."
        )
        for figure in (
            plot_density(run.phase_density(), run.ends, "transformer"),
            plot_steps(run.recall[0], run.age[0], 1, "transformer"),
        ):
            assert picture(figure).std() > 10
        with pytest.raises(fastdit.InvalidInputError, match="not recorded"):
            reader.call(name, (0, 7, 0))
        with pytest.raises(fastdit.InvalidInputError, match="no recorded run is chosen"):
            reader.run("")
        with pytest.raises(fastdit.InvalidInputError, match="not in the library"):
            reader.run("../x")
    finally:
        state.close()


def test_numbers_of_a_form():
    assert parse_numbers("", "layers") == ()
    assert parse_numbers("3, 0 7,3", "layers") == (0, 3, 7)
    for text in ("-1", "1.5", "a", "1;2", "1" * 9, " ".join(["1"] * 101)):
        with pytest.raises(fastdit.ConfigError, match="layers="):
            parse_numbers(text, "layers")
    for value in (True, "x", 1.5, None, float("inf"), "9" * 40):
        with pytest.raises(fastdit.InvalidInputError, match="layer="):
            site_of(0, value, 0)


def test_sites_are_spread_over_what_there_is():
    assert choose((), 12, 4, "steps") == (0, 4, 7, 11)
    assert choose((), 1, 4, "steps") == (0,)
    assert choose((2, 5), 6, 4, "steps") == (2, 5)
    with pytest.raises(fastdit.ConfigError, match="0 to 5"):
        choose((6,), 6, 4, "steps")
