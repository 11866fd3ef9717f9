"""`fastdit ui` as a process."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import httpx


def unused_ports(number):
    """Ports that nobody listens on."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(number)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@contextmanager
def started(words, output_dir, port):
    """The app as a process that has said where it is; told to end as a user does."""
    command = [sys.executable, "-m", "fastdit.cli", *words, "--port", str(port), "--output-dir", str(output_dir)]
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
        # Seconds on a quiet machine; far more where several servers end beside other tests.
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
        process.stdout.close()
        process.wait()
