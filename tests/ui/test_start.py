"""`fastdit ui` as a process: it starts soon, without a network, says where it is, and ends on a signal."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from fastdit.cli import main

# On two quiet cores it answers after about half of this; counted in CPU time, so that a busy machine does not matter.
CPU_SECONDS = 10


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def unused_ports():
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(3)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@pytest.fixture
def free_port(unused_ports):
    return unused_ports[0]


@contextmanager
def started(output_dir, port):
    """The app as a process that has said where it is; told to end as a user does."""
    command = [sys.executable, "-m", "fastdit.cli", "ui", "--port", str(port), "--output-dir", str(output_dir)]
    # No proxy and no Hub can be reached.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = process.stdout.readline()
        while "http://" not in line and process.poll() is None:
            line += process.stdout.readline()
        assert re.search(rf"http://127.0.0.1:{port}/", line), line
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=60).status_code == 200
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
        process.stdout.close()
        process.wait()


def test_it_starts_within_ten_seconds(tmp_path, unused_ports):
    used = []
    # A first start may compile bytecode and share its core with others; the quickest is what the app needs.
    for port in unused_ports:
        with started(tmp_path / "runs", port) as process:
            used.append(cpu_seconds(process.pid))
        if used[-1] < CPU_SECONDS:
            return
    pytest.fail(f"CPU seconds of the starts: {used}")


def test_it_listens_on_this_machine_alone_and_ends_on_a_signal(tmp_path, free_port):
    with started(tmp_path / "runs", free_port) as process:
        listening = Path(f"/proc/{process.pid}/net/tcp").read_text()
        assert f"0100007F:{free_port:04X}" in listening
        assert f"00000000:{free_port:04X}" not in listening
    # The code of a process that was killed is negative.
    assert process.returncode >= 0
    assert (tmp_path / "runs").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "0"], "port=0"),
        (["--host", "not an address"], "host="),
        (["--max-upload-mb", "0"], "max_upload_mb"),
        (["--model", "tiny", "tiny"], "each once"),
    ],
)
def test_wrong_usage_is_told(tmp_path, capsys, words, message):
    assert main(["ui", "--output-dir", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_tools_without_their_package_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert main(["ui", "--output-dir", str(tmp_path), "--mcp"]) == 2
    assert "fastdit[mcp]" in capsys.readouterr().err


def test_a_port_in_use_is_told(tmp_path, capsys, free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        assert main(["ui", "--output-dir", str(tmp_path), "--port", str(free_port)]) == 2
    assert "in use" in capsys.readouterr().err
