"""`fastdit ui --mcp` as a process, as MCP clients see it: its tools, what they give, and what they refuse."""

import ast
import asyncio
import base64
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from ui_process import started, unused_ports

mcp = pytest.importorskip("mcp", reason="the tools need the package mcp: pip install 'fastdit[mcp]'")

PROMPT = "a red circle moving left on a dark background"
CLIP = {"prompt": PROMPT, "width": 64, "height": 64, "duration": 17 / 12, "num_inference_steps": 2}
TOOLS = {
    *("generate", "cancel", "compare", "look_inside", "cancel_recording", "inside_run", "inside_patch"),
    *("search_start", "search_stop", "search_resume", "search_show", "search_list", "search_save_plan"),
    *("library_list", "library_show", "library_report", "library_delete"),
}
SECRET = "/etc/passwd"
ON_THE_SERVER = {"path": SECRET, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of the tools, and the folder of the server's temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    (port,) = unused_ports(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        with started(["ui", "--mcp"], tmp_path_factory.mktemp("runs"), port):
            yield f"http://127.0.0.1:{port}/gradio_api/mcp/", folder
    # What tools were given goes with the server.
    assert list(folder.rglob("*.json")) == []


@asynccontextmanager
async def connected(address):
    from mcp.client.streamable_http import streamable_http_client

    async with (
        httpx.AsyncClient(timeout=120) as patient,
        streamable_http_client(address, http_client=patient) as (read, write, _),
        mcp.ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session


def ask(server, calls):
    """What `calls(session)` returns, by a client of its own."""

    async def run():
        async with connected(server[0]) as session:
            return await calls(session)

    return asyncio.run(asyncio.wait_for(run(), 240))


async def call(session, tool, **arguments):
    """The contents that a tool gives."""
    result = await session.call_tool(tool, arguments)
    assert not result.isError, result.content
    return result.content


def test_every_action_is_a_tool_that_says_what_it_takes(server):
    tools = {one.name: one for one in ask(server, lambda session: session.list_tools()).tools}
    assert tools.keys() == TOOLS
    assert tools["generate"].inputSchema["required"] == tools["compare"].inputSchema["required"] == ["prompt"]
    for tool in tools.values():
        assert tool.description, tool.name
        for name, field in tool.inputSchema["properties"].items():
            # Names of runs, plans and searches come later.
            assert field.get("enum") != [], (tool.name, name)
            assert field.get("description") or tool.name.startswith("library"), (tool.name, name)


def test_a_clip_is_generated_served_and_in_the_library(server):
    async def calls(session):
        before = await call(session, "library_list")
        made = await call(session, "generate", **CLIP)
        listed = await call(session, "library_list")
        name = ast.literal_eval(listed[0].text)["data"][0][0]
        return before, made, name, await call(session, "library_show", name=name), await call(session, "search_list")

    before, (video, seed, report), name, shown, searches = ask(server, calls)
    assert ast.literal_eval(before[0].text)["data"] == []
    assert b"ftyp" in httpx.get(video.text, timeout=60).content[:16]
    assert seed.text == "0"
    report = ast.literal_eval(report.text)
    assert (report["prompt"], report["settings"]["num_frames"], report["num_inference_steps"]) == (PROMPT, 17, 2)
    assert PROMPT in shown[0].text
    assert name in shown[0].text
    assert [one.text for one in searches] == ["[]"]


def test_names_that_came_after_the_start_are_taken_and_pictures_are_pictures(server):
    async def calls(session):
        asked = {"prompt": PROMPT, "steps": 2, "width": 64, "height": 64, "duration": 17 / 12}
        name = (await call(session, "look_inside", **asked, layers="3", recorded_steps="1"))[0].text
        site = {"transformer": 0, "layer": 3, "step": 1, "head": 0, "frame": 1, "row": 2, "column": 3}
        return (
            name,
            await call(session, "inside_run", name=name),
            await call(session, "inside_patch", name=name, **site),
        )

    _, run, patch = ask(server, calls)
    pictures = [base64.b64decode(one.data) for one in patch if one.type == "image"]
    assert len(pictures) == 2
    assert all(one.startswith(b"\x89PNG") for one in pictures)
    assert any("Layer 3, head 0, step 1" in one.text for one in patch if one.type == "text")
    assert any(one.type == "image" for one in run)


def test_a_running_job_is_cancelled_by_the_tool(server):
    async def calls(session):
        running = asyncio.create_task(session.call_tool("generate", {**CLIP, "num_inference_steps": 100}))
        cancelled = "0"
        while cancelled == "0":
            cancelled = (await call(session, "cancel"))[0].text
        return cancelled, await running

    cancelled, result = ask(server, calls)
    assert cancelled == "1"
    assert result.isError
    assert "cancelled" in result.content[0].text


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("generate", {"prompt": " "}, "prompt is empty"),
        ("generate", {**CLIP, "model": "/etc"}, "not one of"),
        ("generate", {**CLIP, "source": "plan", "plan_name": "../../etc/passwd"}, "plan name"),
        ("generate", {**CLIP, "source": "plan", "plan_file": SECRET}, "Invalid file data"),
        ("generate", {**CLIP, "source": "plan", "plan_file": "http://127.0.0.1:9/plan.json"}, "accepted are uploads"),
        ("generate", {**CLIP, "source": "plan", "plan_file": ON_THE_SERVER}, "not of type"),
        ("generate", {**CLIP, "prompt": ON_THE_SERVER}, "not of type"),
        ("generate", {**CLIP, "source": "plan", "plan_file": "data:application/json;base64,e30="}, "missing"),
        ("library_show", {"name": "../../etc"}, "not in the library"),
        ("search_show", {"name": "../../etc"}, "not on this server"),
    ],
)
def test_what_is_refused_is_told_without_a_traceback(server, tool, arguments, message):
    result = ask(server, lambda session: session.call_tool(tool, arguments))
    text = result.content[0].text
    assert result.isError
    assert message in text
    assert "Traceback" not in text
    assert "root:" not in text
    assert not list(Path("/tmp/gradio").rglob("file.json"))
