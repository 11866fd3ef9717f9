"""The tabs Look inside, Search and Library as clients see them, on a tiny random pipeline."""

import json
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from tiny_engine import LADDER, TinyEngine, wait_until

from fastdit_ui.frame_sheet import FrameSheet


@pytest.fixture(scope="module")
def server(start):
    from fastdit_ui import search_tab

    with pytest.MonkeyPatch.context() as patch:
        # Modes whose tiles suit a few dozen tokens.
        patch.setattr(search_tab, "LADDER", LADDER)
        return start(TinyEngine())


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, verbose=False)


def test_every_action_has_a_named_endpoint(client):
    names = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    inside = {"/look_inside", "/look_inside_cancel", "/inside_run", "/inside_patch"}
    search = {"start", "stop", "resume", "show", "list", "save_plan"}
    library = {"list", "show", "report", "delete"}
    assert inside | {f"/search_{one}" for one in search} | {f"/library_{one}" for one in library} <= names


def test_a_run_is_recorded_browsed_and_deleted(server, client):
    name, status = client.predict("a red circle", api_name="/look_inside")
    assert "Done" in status
    shown = client.predict(name, api_name="/inside_run")
    assert [value for _, value in shown[1]["choices"]] == [0, 1]
    mask, attention, legend, says, shares = client.predict(name, 0, 1, 2, 0, 1, 2, 3, api_name="/inside_patch")
    width, height = Image.open(mask).size
    assert (height, width) == FrameSheet.of(3, 4, 6).size
    assert Image.open(attention).size == (width, height)
    assert "query tile" in legend
    assert "Layer 1, head 0, step 2" in says
    assert shares["data"][0][0] == "kept"
    for place in ((0, 7, 2), (0, 1, "x")):
        with pytest.raises(AppError, match=r"accepted|recorded"):
            client.predict(name, *place, 0, 0, 0, 0, api_name="/inside_patch")
    with pytest.raises(AppError, match=r"frames 0 to 2|maximum value 2"):
        client.predict(name, 0, 1, 2, 0, 3, 0, 0, api_name="/inside_patch")
    with pytest.raises(AppError, match="layers="):
        client.predict("a red circle", layers="all", api_name="/look_inside")
    listed = client.predict("", "inside", api_name="/library_list")
    assert [row[0] for row in listed["data"]] == [name]
    figures, video, *_, settings = client.predict(name, api_name="/library_show")
    assert "a red circle" in figures
    shown = video["value"]
    path = shown["video"] if isinstance(shown, dict) else shown
    assert Path(path).read_bytes().startswith(b"video of")
    assert json.loads(settings)["kind"] == "inside"
    for wrong in ("..", "../../etc", "plans", "nothing"):
        for endpoint in ("/library_show", "/library_report", "/inside_run"):
            with pytest.raises(AppError, match="not in the library"):
                client.predict(wrong, api_name=endpoint)
    assert client.predict(name, False, api_name="/library_delete").startswith("not deleted")
    assert client.predict(name, True, api_name="/library_delete") == name
    assert server.state.runs.list() == []


def test_a_search_is_started_stopped_resumed_and_its_plan_saved(server, client):
    worker = server.state.page["search_worker"]
    asked = {"prompts": "a red circle", "aim": "density", "value": 0.5}
    name = client.predict(**asked, api_name="/search_start")
    with pytest.raises(AppError, match="is under way"):
        client.predict(**asked, api_name="/search_start")
    assert client.predict(name, api_name="/search_stop") == name
    wait_until(lambda: worker.job(name) is None)
    assert worker.status(name) == "stopped"
    assert client.predict(name, api_name="/search_resume") == name
    wait_until(lambda: worker.job(name) is None)
    assert client.predict(api_name="/search_list") == [name]
    status, plot, rounds = client.predict(name, api_name="/search_show")
    assert "done" in status
    assert Image.open(plot).width > 500
    assert len(rounds["data"]) == 1
    assert client.predict(name, "the result", "mine", api_name="/search_save_plan") == "mine"
    assert server.state.plans.load("mine") == worker.plan(name)
    with pytest.raises(AppError, match="plan name"):
        client.predict(name, "the result", "../mine", api_name="/search_save_plan")
    with pytest.raises(AppError, match="density"):
        client.predict(prompts="a", aim="density", value=2, api_name="/search_start")
