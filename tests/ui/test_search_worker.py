"""Searches of the app on a tiny random pipeline: stop, go on, make way, and what pages are shown."""

import json

import numpy as np
import pytest
from tiny_engine import CALL, LADDER, TinyEngine, wait_until

import fastdit
from fastdit.search.progress import read_progress
from fastdit_ui.inside_plots import picture
from fastdit_ui.search_plot import plot_search, round_rows
from fastdit_ui.search_store import SearchRequest, SearchStore
from fastdit_ui.search_tab import show_search, signature
from fastdit_ui.search_worker import SearchWorker, expected_runs, finished_runs
from fastdit_ui.settings import ServerSettings
from fastdit_ui.state import AppState

REQUEST = SearchRequest(
    model="tiny", prompts=("a red circle", "a blue square"), aim="min_psnr", value=45.0, call=CALL, max_rounds=2
)


@pytest.fixture(scope="module")
def engine():
    return TinyEngine()


@pytest.fixture
def server(engine, tmp_path):
    state = AppState(ServerSettings(output_dir=tmp_path), engine)
    yield state
    state.close()


def make_worker(state):
    return SearchWorker(state, SearchStore(state.runs.root / "searches"), LADDER)


def settle(worker, name):
    wait_until(lambda: worker.job(name) is None and worker.status(name) not in ("running", "waiting"))


def test_a_stopped_search_goes_on_to_the_plan_of_one_that_was_not(server, engine, tmp_path):
    worker = make_worker(server)
    whole = fastdit.search(
        engine.pipe,
        REQUEST.prompts,
        min_psnr=45.0,
        call=CALL,
        ladder=LADDER,
        num_measured=1,
        max_rounds=2,
        progress=False,
    )
    name = worker.start(REQUEST)
    run = worker.store.folder(name) / "run"
    wait_until(lambda: (run / "measured_0.npz").exists())
    with pytest.raises(fastdit.InvalidInputError, match="is under way"):
        worker.start(REQUEST)
    worker.stop(name)
    settle(worker, name)
    assert worker.status(name) == "stopped"
    stopped = worker.store.view(name)
    assert stopped.progress.measured == (1, 1)
    assert stopped.plan is None
    # The pipeline is as it was, and the server does other work.
    assert not engine.pipe.transformer._forward_pre_hooks
    assert not hasattr(engine.pipe.transformer.blocks[0].attn1.processor, "slot")
    with pytest.raises(fastdit.InvalidInputError, match="not under way"):
        worker.stop(name)
    with pytest.raises(fastdit.InvalidInputError, match="no result yet"):
        worker.plan(name)
    # As after a restart of the server.
    again = make_worker(server)
    assert again.store.list() == [name]
    again.resume(name)
    settle(again, name)
    view = again.store.view(name)
    assert (again.status(name), view.error) == ("done", None)
    assert view.plan == whole
    assert again.plan(name) == whole
    # Every round is a plan of its own.
    digests = [one.digest for one in view.progress.rounds]
    assert set(digests) == view.plans.keys()
    assert len(digests) >= 1
    for one in view.progress.rounds:
        assert again.plan(name, one.digest).measured["psnr"] == pytest.approx(one.psnr)
        assert again.plan(name, one.digest).measured["density"] == pytest.approx(one.density)
    assert view.progress.phases == (1, 1)
    assert view.progress.noise_floor_psnr == pytest.approx(view.plan.measured["noise_floor_psnr"])
    assert finished_runs(view.progress) == 1 + 1 + 1 + len(digests) <= expected_runs(REQUEST)
    rows = round_rows(view)
    assert [row[1] for row in rows] == digests
    assert {row[6] for row in rows} <= {"kept", "not kept"}
    assert picture(plot_search(view)).ndim == 3
    with pytest.raises(fastdit.InvalidInputError, match="is done"):
        again.resume(name)
    server.plans.save(again.plan(name), "mine")
    assert server.plans.load("mine") == whole


def test_a_page_looks_again_at_what_changed_while_it_was_drawn(server, monkeypatch):
    worker = make_worker(server)
    name = worker.store.create(REQUEST)
    read = worker.store.view

    def view_and_change(name):
        found = read(name)
        worker.store.note_error(name, "it changed")
        return found

    monkeypatch.setattr(worker.store, "view", view_and_change)
    *_, shown = show_search(worker, name)
    assert shown != signature(worker, name)


def test_other_jobs_pass_between_the_runs_of_a_search(server):
    worker = make_worker(server)
    order = []
    name = worker.start(SearchRequest(model="tiny", prompts=("a red circle",), aim="density", value=0.5, call=CALL))
    wait_until(lambda: worker.status(name) == "running")
    job = server.jobs.submit("generate", "somebody", lambda job: order.append(worker.store.view(name).outcome))
    wait_until(lambda: job.finished)
    assert order == ["unfinished"]
    settle(worker, name)
    assert worker.status(name) == "done"


def test_what_fails_is_said_and_can_go_on(server, engine, monkeypatch):
    worker = make_worker(server)
    monkeypatch.setattr(type(engine), "load", lambda self, model: (_ for _ in ()).throw(RuntimeError("secret path")))
    name = worker.start(REQUEST)
    settle(worker, name)
    assert worker.status(name) == "failed"
    assert "secret" not in worker.store.view(name).error
    server.pipelines._model = None
    monkeypatch.setattr(
        type(engine), "load", lambda self, model: (_ for _ in ()).throw(fastdit.ModelLoadError("no such"))
    )
    worker.resume(name)
    settle(worker, name)
    assert worker.store.view(name).error == "no such"


def test_requests_are_checked(server):
    worker = make_worker(server)
    for fields, message in (
        ({"prompts": ()}, "1 to 64 lines"),
        ({"aim": "speed"}, "aim="),
        ({"aim": "density", "value": 1.5}, "density"),
        ({"value": float("nan")}, "min_psnr"),
        ({"max_rounds": 0}, "max_rounds"),
    ):
        given = {"model": "tiny", "prompts": ("a",), **fields}
        with pytest.raises(fastdit.ConfigError, match=message):
            SearchRequest(**given)
    with pytest.raises(fastdit.ConfigError, match="started with"):
        worker.start(SearchRequest(model="/etc", prompts=("a",)))
    assert worker.store.list() == []


@pytest.mark.parametrize("name", ["../plans", "", ".", "20260101-000000-abcdef/../..", None, "/etc"])
def test_searches_are_confined_to_their_folder(server, name):
    with pytest.raises(fastdit.InvalidInputError, match="is not on this server"):
        make_worker(server).store.view(name)


def test_links_are_no_searches(server, tmp_path):
    store = make_worker(server).store
    name = store.create(REQUEST)
    assert store.request(name) == REQUEST
    (store.root / "20260101-000000-abcdef").symlink_to(store.root / name)
    assert store.list() == [name]
    (store.root / name / "request.json").write_text("{}")
    with pytest.raises(fastdit.InvalidInputError, match="damaged"):
        store.view(name)


def test_progress_of_a_folder_that_holds_no_search(tmp_path):
    assert read_progress(tmp_path) == read_progress(tmp_path / "missing")
    assert read_progress(tmp_path).rounds == ()
    (tmp_path / "settings.json").write_text('{"prompts": ["a", "b", "c"], "num_measured": 1, "phases": [1.0]}')
    figures = {"psnr": np.array(31.0), "ssim": np.array(np.nan), "mse": np.array(1.0), "density": np.array(0.25)}
    np.savez(tmp_path / f"verify_{'a' * 16}_1.npz", **figures)
    np.savez(tmp_path / f"verify_{'a' * 16}_2.npz", **{**figures, "psnr": np.array(33.0)})
    (tmp_path / f"verify_{'b' * 16}_1.npz").write_bytes(b"PK damaged")
    found = read_progress(tmp_path)
    assert (found.measured, found.phases, found.verified_runs) == ((0, 1), (0, 1), 2)
    (one,) = found.rounds
    assert (one.digest, one.psnr, one.ssim, one.density, one.runs) == ("a" * 16, 32.0, None, 0.25, 2)
    for gains, weighed in (("calls", 2), ("frames", 1)):
        settings = {"prompts": ["a", "b"], "num_measured": 1, "phases": [0.5, 1.0], "gains": gains}
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        assert read_progress(tmp_path).phases == (0, weighed)
