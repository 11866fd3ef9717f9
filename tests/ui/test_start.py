"""`fastdit ui` as a process: it starts soon, without a network, says where it is, and ends on a signal."""

import os
import socket
import sys
from pathlib import Path

import pytest
from ui_process import started, unused_ports

from fastdit.cli import main

# On two quiet cores it answers after about half of this; counted in CPU time, so that a busy machine does not matter.
CPU_SECONDS = 10


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def free_port():
    return unused_ports(1)[0]


def test_it_starts_within_ten_seconds(tmp_path):
    used = []
    # A first start may compile bytecode and share its core with others; the quickest is what the app needs.
    for port in unused_ports(3):
        with started(["ui"], tmp_path / "runs", port) as process:
            used.append(cpu_seconds(process.pid))
        if used[-1] < CPU_SECONDS:
            return
    pytest.fail(f"CPU seconds of the starts: {used}")


def test_it_listens_on_this_machine_alone_and_ends_on_a_signal(tmp_path, free_port):
    with started(["ui"], tmp_path / "runs", free_port) as process:
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
