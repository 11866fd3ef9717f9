"""The server as clients see it: endpoints, many jobs at once, and what it refuses. Pipelines are stubs."""

import concurrent.futures
import gc
import json
import re
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from ui_stub import SMALL, StubEngine

from fastdit_ui.jobs import Job
from fastdit_ui.server import launch_arguments
from fastdit_ui.settings import ServerSettings

DENSE = {**SMALL, "dial": 5}
FRAME_BYTES = 4 * 512 * 512 * 3 * 4


@pytest.fixture(scope="module")
def server(start):
    # The environment of the process must not widen what the server gives away.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ALLOWED_PATHS", "/etc")
        patch.setenv("GRADIO_SHARE", "True")
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        return start(StubEngine(side=512), max_upload_mb=1)


@pytest.fixture(scope="module")
def connect(server):
    # Patient, since the machine may be busy.
    return lambda: Client(server.url, verbose=False, httpx_kwargs={"timeout": 60})


@pytest.fixture(scope="module")
def client(connect):
    return connect()


def get(address):
    return httpx.get(address, timeout=60)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_endpoints_take_the_prompt_first_and_need_nothing_else(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for name in ("/generate", "/compare"):
        first, *rest = endpoints[name]["parameters"]
        assert first["parameter_name"] == "prompt"
        assert all(one["parameter_has_default"] for one in rest)
    assert "/cancel" in endpoints


def test_fifty_jobs_of_parallel_clients_none_lost_or_swapped(server, connect):
    clients = [connect() for _ in range(5)]
    before, runs_before = resident_bytes(), len(server.state.runs.list())
    jobs = {}
    for number in range(50):
        client = clients[number % 5]
        settings = {**DENSE, "num_inference_steps": 3, "seed": number}
        jobs[number] = client.submit(f"video {number}", **settings, api_name="/generate")
    # One of the clients takes its requests back, another one asks for all of its jobs to be cancelled.
    dropped = {number for number in jobs if number % 5 in (3, 4)}
    for number in dropped:
        if number % 5 == 3:
            jobs[number].cancel()
    assert clients[4].predict(api_name="/cancel") <= 10
    results = {}
    for number in jobs.keys() - dropped:
        results[number] = jobs[number].result(timeout=120)
    for number, (video, seed, report) in results.items():
        assert seed == number
        assert report["prompt"] == f"video {number}"
        path = video if isinstance(video, str) else video["video"]
        assert Path(path).read_text() == f"brightness {number}"
    deadline = time.monotonic() + 60
    while server.state.jobs.counts() != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.state.jobs.counts() == (0, 0)
    runs = server.state.runs.list()
    seeds = [run.report["seed"] for run in runs[: len(runs) - runs_before]]
    # A job that ran already when it was taken back may have ended; none ran twice.
    assert len(seeds) == len(set(seeds))
    assert results.keys() <= set(seeds)
    assert len(set(seeds) & dropped) < len(dropped)
    del jobs, results
    gc.collect()
    # Searches of other servers in this process are not meant.
    assert [one for one in gc.get_objects() if type(one) is Job and one.kind == "generate"] == []
    # All results together are 30 times this.
    assert resident_bytes() - before < 12 * FRAME_BYTES


def test_a_session_cancels_its_own_jobs_alone(server, connect):
    mine, theirs = connect(), connect()
    slow = {**DENSE, "num_inference_steps": 100, "prompt": "slow"}
    running = mine.submit(**slow, api_name="/generate")
    other = theirs.submit(**{**DENSE, "prompt": "other", "seed": 9}, api_name="/generate")
    deadline = time.monotonic() + 60
    while server.state.jobs.counts() != (1, 1) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert mine.predict(api_name="/cancel") == 1
    with pytest.raises(Exception, match="cancelled"):
        running.result(timeout=60)
    assert other.result(timeout=60)[1] == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"model": "/etc"}, "not in the list"),
        ({"source": "plan", "plan_name": "../../etc/passwd"}, "plan name"),
        ({"dial": 77}, "greater than maximum"),
        ({"width": 10**9}, "greater than maximum"),
    ],
)
def test_what_is_refused_is_told_without_a_traceback(client, values, message):
    with pytest.raises(Exception, match=message) as caught:
        client.predict(**{"prompt": "a", **SMALL, **values}, api_name="/generate")
    assert "Traceback" not in str(caught.value)


def test_a_fault_of_the_server_tells_nothing_of_it(client):
    with pytest.raises(Exception, match="internal error") as caught:
        client.predict("break", **DENSE, api_name="/generate")
    assert "secret" not in str(caught.value)
    assert "RuntimeError" not in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "~/.bashrc"])
def test_files_of_the_machine_are_not_served(server, path):
    for route in ("gradio_api/file=", "file=", "static/", "assets/"):
        answer = get(f"{server.url}{route}{path}")
        assert answer.status_code >= 400, route
        assert "root:" not in answer.text


def test_the_output_folder_is_not_served(server):
    secret = server.state.runs.root / "notes.txt"
    secret.write_text("mine")
    assert get(f"{server.url}gradio_api/file={secret}").status_code in (403, 404)


def test_a_file_of_the_machine_is_no_upload(server, client):
    plan = server.state.runs.root / "plan.json"
    plan.write_text("{}")
    endpoint = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/generate"]
    values = {one["parameter_name"]: one["parameter_default"] for one in endpoint["parameters"]}
    values |= {"prompt": "a", "source": "plan", "plan_file": {"path": str(plan), "meta": {"_type": "gradio.FileData"}}}
    # Not through the client, which would upload the file.
    call = f"{server.url}gradio_api/call/generate"
    event = httpx.post(call, json={"data": list(values.values())}, timeout=60).json()["event_id"]
    answer = get(f"{call}/{event}").text
    assert "event: error" in answer
    assert "version" not in answer, "the plan was read"
    assert "Traceback" not in answer


@pytest.mark.parametrize("field", ["plan_file", "image"])
def test_the_server_fetches_nothing_that_a_client_names(server, client, field):
    address = {"path": "http://example.org/a.png", "meta": {"_type": "gradio.FileData"}}
    endpoint = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/generate"]
    values = {one["parameter_name"]: one["parameter_default"] for one in endpoint["parameters"]}
    values |= {"prompt": "a", field: address}
    call = f"{server.url}gradio_api/call/generate"
    event = httpx.post(call, json={"data": list(values.values())}, timeout=60).json()["event_id"]
    assert "accepted are uploads" in get(f"{call}/{event}").text


def test_uploads_are_limited_in_size_and_type(client, tmp_path):
    (tmp_path / "large.json").write_bytes(b" " * (2 << 20))
    (tmp_path / "plan.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "image.png").write_bytes(b"no image")
    with pytest.raises(Exception, match=re.compile("size|413|large", re.I)):
        client.predict("a", **SMALL, plan_file=handle_file(tmp_path / "large.json"), api_name="/generate")
    with pytest.raises(Exception, match=re.compile("type", re.I)):
        client.predict("a", **SMALL, source="plan", plan_file=handle_file(tmp_path / "plan.pkl"), api_name="/generate")
    with pytest.raises(Exception, match=re.compile("image|error", re.I)) as caught:
        client.predict("a", **SMALL, image=handle_file(tmp_path / "image.png"), api_name="/generate")
    assert "Traceback" not in str(caught.value)


def test_a_bad_plan_is_told_and_nothing_breaks(client, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"format": "fastdit-plan", "version": 1, "surprise": 1}))
    with pytest.raises(Exception, match="Field required"):
        client.predict("a", **SMALL, source="plan", plan_file=handle_file(tmp_path / "plan.json"), api_name="/generate")
    assert client.predict("a", **DENSE, seed=3, api_name="/generate")[1] == 3


def test_the_server_is_for_this_machine_whatever_the_environment_says(server):
    page = server.page
    assert page.server_name == "127.0.0.1"
    assert page.share is False
    assert server.share_url is None
    assert page.allowed_paths == []
    assert page.mcp_server is not True


def test_pages_of_other_sites_may_not_call_the_server(server):
    answer = httpx.post(
        f"{server.url}gradio_api/call/cancel",
        json={"data": []},
        headers={"Origin": "https://evil.example"},
        timeout=60,
    )
    assert answer.headers.get("access-control-allow-origin") != "https://evil.example"


def test_an_address_is_only_changed_by_asking(tmp_path):
    assert launch_arguments(ServerSettings(output_dir=tmp_path))["server_name"] == "127.0.0.1"
    open_to_all = launch_arguments(ServerSettings(output_dir=tmp_path, host="0.0.0.0", share=True))
    assert (open_to_all["server_name"], open_to_all["share"]) == ("0.0.0.0", True)


def test_many_pages_can_be_asked_at_once(server):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: get(server.url).status_code, range(12)))
    assert answers == [200] * 12
