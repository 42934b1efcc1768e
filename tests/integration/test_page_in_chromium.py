"""The status page in a real browser: it is drawn, readable, and nothing of it is refused."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_node.service import WebThread
from dicom_node.web.app import Probe
from dicom_node.worker import Worker
from tests.dicom_node.nodes import QueuedNode, copying_engine, queued_node

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--enable-logging=stderr --v=0"
).split()
WIDTH, HEIGHT = 1280, 900


@pytest.fixture(scope="module")
def chromium() -> str:
    """Return the browser, or skip."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("chromium is not installed")
    return found


@pytest.fixture
def node(tmp_path) -> Iterator[tuple[QueuedNode, str]]:
    """Yield a node with a held result, and the address of its page."""
    made = queued_node(tmp_path / "node", web={"port": 0})
    Worker(made.settings, made.store, engine=copying_engine(passed=False)).run_once()
    probe = Probe(
        scp_listening=lambda: True,
        scp_port=lambda: 11112,
        workers=threading.active_count,
        failing_tasks=list,
    )
    web = WebThread(made.settings, made.store, probe)
    web.start()
    yield made, web.address
    web.stop()
    made.store.close()


def browse(chromium: str, profile: Path, *arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [chromium, *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_browser_draws_the_table_and_refuses_nothing(chromium, node, tmp_path):
    _, address = node

    done = browse(chromium, tmp_path / "profile", "--dump-dom", address)

    assert re.search(r'<span class="chip look">HELD</span>', done.stdout)
    assert "The residual is twice the noise." in done.stdout
    assert "Content Security Policy" not in done.stderr


def test_the_page_is_styled_and_fits_its_window(chromium, node, tmp_path):
    _, address = node
    picture = tmp_path / "page.png"

    browse(
        chromium,
        tmp_path / "profile",
        f"--window-size={WIDTH},{HEIGHT}",
        f"--screenshot={picture}",
        address,
    )

    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    amber = (abs(pixels - [0xFD, 0xF0, 0xD5]) < 4).all(axis=2)  # --look-paper: the HELD chip
    assert amber.sum() > 300
    assert pixels[:, -8:].min() > 200  # no text runs out of the window, only a pale line


def test_the_job_page_says_what_to_do(chromium, node, tmp_path):
    made, address = node

    done = browse(chromium, tmp_path / "profile", "--dump-dom", f"{address}jobs/{made.job.id}")

    assert f"dicom-node release {made.job.id}" in done.stdout
    assert "Quality figures" in done.stdout
