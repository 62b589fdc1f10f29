# SPDX-License-Identifier: Apache-2.0
"""The report in headless Chromium, spoken to by its DevTools protocol over two pipes.

Skipped where no Chromium is on the path.
"""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--mute-audio", "--autoplay-policy=no-user-gesture-required"),
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and writes to 4.
EXEC = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(pipes[0], 3)
os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A browser with one page. errors: of its console, scripts, policy and network."""

    def __init__(self, profile):
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", EXEC, str(commands), str(answers), BROWSER, *FLAGS]
            + [f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self._to_page = b"", 0, {}
        self.errors, self._loaded = [], False
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._to_page = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def __call__(self, method, **params):
        """Result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._to_page}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _next(self):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], 120)
            read = os.read(self._from, 1 << 20) if ready else b""
            assert read, "the browser is gone or silent"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        params, method = message.get("params", {}), message.get("method")
        self._loaded |= method == "Page.loadEventFired"
        url = params.get("request", {}).get("url", "data:")
        if (
            method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
            or method == "Network.loadingFailed"
            or not url.startswith(("data:", "file:"))
        ):
            self.errors.append(params)
        return message

    def open(self, path):
        self._loaded = False
        self("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._next()

    def run(self, script):
        """Value of JavaScript, awaited."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(browser, written):
    browser.open(written)
    return browser


VISIBLE = """[...document.querySelectorAll(".question")].filter(q => q.checkVisibility())
  .map(q => [q.dataset.level, q.dataset.task, q.dataset.outcome])"""


def apply_filters(page, **values):
    for name, value in values.items():
        page.run(f"""{{const list = document.querySelector("select[name={name}]");
          list.value = {json.dumps(value)}; list.dispatchEvent(new Event("change"))}}""")
    return [tuple(q) for q in page.run(VISIBLE)]


def test_the_page_loads_without_errors(page):
    assert page.run("document.title").startswith("jaxasa") and page.errors == []
    # The images are there, and not broken.
    widths = page.run("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) > 10 and min(widths) > 0


def test_filters_select_questions(page):
    every = apply_filters(page)
    assert page.run('document.getElementById("shown").textContent') == str(len(every))
    for number, (name, values) in enumerate(
        {"level": ("L1", "L3"), "outcome": ("correct", "wrong"), "task": (every[0][1],)}.items()
    ):
        column = (0, 2, 1)[number]
        for value in values:
            found = apply_filters(page, **{name: value})
            assert found == [q for q in every if q[column] == value] and 0 < len(found) < len(every)
            assert page.run('document.getElementById("shown").textContent') == str(len(found))
        apply_filters(page, **{name: ""})
    both = apply_filters(page, level="L2", outcome="wrong")
    assert both == [q for q in every if q[0] == "L2" and q[2] == "wrong"] and both
    # Scenes without such a question are gone with them.
    scenes = """[...document.querySelectorAll(".scene")].filter(s => s.checkVisibility()).length"""
    assert page.run(scenes) == page.run(
        'document.querySelectorAll(".scene:has(.question:not([hidden]))").length'
    )
    assert apply_filters(page, level="L1", outcome="wrong") == [] and page.run(scenes) == 0
    assert apply_filters(page, level="", outcome="") == every


def test_report_page_audio_decodes(page):
    found = page.run("""Promise.all([...document.querySelectorAll("audio")].map(a =>
      new Promise(done => {
        a.oncanplaythrough = () => done(a.duration);
        a.onerror = () => done(a.error.message);
        a.load(); a.preload = "auto";
      })))""")
    assert len(found) > 10 and found == [pytest.approx(800 / 16_000, abs=0.01)] * len(found)


def test_only_one_sound_plays(page):
    page.run("""globalThis.sounds = [...document.querySelectorAll("audio")].slice(0, 2);
      for (const s of sounds) s.loop = true""")
    page.run("sounds[0].play()")
    page.run("sounds[1].play()")
    assert page.run("sounds.map(s => s.paused)") == [True, False]
    page.run("sounds[1].pause()")


def test_injected_scripts_do_not_run(page, written, tmp_path):
    """Even without escaping, the page's policy allows no other script."""
    html = written.read_text()
    bad = tmp_path / "bad.html"
    bad.write_text(html.replace("</body>", "<script>document.title = 'taken'</script></body>"))
    before = len(page.errors)
    page.open(bad)
    assert page.run("document.title").startswith("jaxasa: whole")
    assert "Content Security Policy" in json.dumps(page.errors[before:])
    del page.errors[before:]


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_phone_width_in_light_and_dark(page, written, scheme, dark):
    page.open(written)
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page("Emulation.setDeviceMetricsOverride", **size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page("Emulation.setEmulatedMedia", features=features)
    # Nothing makes the page itself scroll sideways: wide parts scroll on their own.
    assert page.run("document.documentElement.scrollWidth") == 390
    data = page("Page.captureScreenshot", format="png")["data"]
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))[..., :3]
    page("Emulation.clearDeviceMetricsOverride")
    # Text stands out from the page.
    levels = np.sort(pixels.mean(-1).ravel())
    paper = np.median(levels)
    assert (paper < 0.2) == dark
    assert (levels[-1] > 0.8) if dark else (levels[0] < 0.25)
