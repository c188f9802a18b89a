"""A made-up run, the app that serves it, and a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.made_world import ROOT, make

PATIENCE = 60_000  # milliseconds, for machines that do other things too


class Served:
    """The app in a process of its own, on the run below `root`."""

    def __init__(self, root, page="demo/app.py", **environment):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.root, self.url = root, f"http://localhost:{self.port}"
        command = [sys.executable, "-m", "streamlit", "run", page, "--server.headless", "true"]
        self.process = subprocess.Popen(
            [*command, "--server.port", str(self.port)],
            cwd=ROOT,
            env=os.environ | {"TMV_ROOT": str(root)} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PATIENCE // 100):
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1)
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the app does not answer")

    def seconds(self):
        """Processor time that the app has used."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def holds(self, library):
        """Whether a library is loaded."""
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()


def serve(root, *page, **environment):
    served = Served(root, *page, **environment)
    yield served
    served.process.terminate()
    served.process.wait()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def app(world):
    yield from serve(world)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """Open a page of given width and colours; everything that it asks for and hears is kept in `asked` and `heard`."""
    contexts = []

    def open_page(url, *, width=1280, colours="light"):
        context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=colours)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.heard = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: page.heard.append(frame)))
        page.goto(url)
        page.locator("h1").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def run_app():
    """The app on the run of this repository, where there is one."""
    if not (ROOT / "data/ensemble/policy.json").exists():
        pytest.skip("needs a run: `make repro`")
    yield from serve(ROOT)
