"""The search page in Chromium, where Chromium and its driver are installed (Debian: chromium, chromium-driver).

They are no requirement; elsewhere this file is skipped. The driver is spoken to in its own protocol (W3C WebDriver).
"""

import http.client
import json
import re
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image

from clips_jax.data.pictures import Pictures
from clips_jax.search import __main__ as command
from clips_jax.search.index import PictureIndex, make_index
from clips_jax.search.server import make_server
from tests.small_pretrained import pretrained

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="Chromium or chromedriver is not installed")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


class Browser:
    """One window of 390 x 844, a phone's."""

    def __init__(self, port: int, profile: str):
        self._port, self._path = port, "/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}", "--window-size=390,844"]}
        found = self.ask("POST", "", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self._path += f"/{found['sessionId']}"

    def ask(self, method: str, path: str, content: dict | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request(method, self._path + path, None if content is None else json.dumps(content))
        value = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(value, dict) and "error" in value), value
        return value

    def find(self, selector: str) -> str:
        return "/element/" + self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def type(self, selector: str, text: str) -> None:
        self.ask("POST", f"{self.find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self.ask("POST", f"{self.find(selector)}/click", {})

    def run(self, script: str):
        return self.ask("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def wait(self, script: str) -> None:
        """Until it is true."""
        end = time.monotonic() + 60
        while not self.run(script):
            assert time.monotonic() < end, self.run("document.body.innerText")
            time.sleep(0.05)


@pytest.fixture
def browser(tmp_path):
    with subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = next(
            int(found[1]) for line in process.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        browser = None
        try:
            browser = Browser(port, str(tmp_path / "profile"))
            yield browser
        finally:
            if browser is not None:
                browser.ask("DELETE", "")
            process.terminate()


@pytest.fixture
def page(tmp_path):
    """The address of the page on nine pictures, tall and wide ones, and on names that are HTML."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        shape = (20 + 40 * (i % 3), 100 - 40 * (i % 3), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"<b>{i}<b>&amp;.png")
    make_index(str(tmp_path / "index"), [str(folder)], pretrained(), 4)
    index, encoder = PictureIndex(str(tmp_path / "index")), pretrained().encoder
    server = make_server(
        index,
        Pictures(index.meta["paths"]),
        lambda text: encoder.texts([text])[0],
        lambda data: command.embed_picture(pretrained(), data),
        port=0,
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_type_a_query_click_a_result_upload_a_picture_go_back(browser, page, tmp_path):
    address, folder = page
    said, names = "document.querySelector('#said').innerText", "[...document.querySelectorAll('#results a')]"
    browser.ask("POST", "/url", {"url": address})
    browser.wait(f"{names}.length === 9")
    assert "9 pictures" in browser.run(said)
    browser.type("#text", "a <i>red</i> cat & dog\n")
    browser.wait(f"{said} === 'Best for “a <i>red</i> cat & dog”'")
    expected = [name for name, _ in _found(tmp_path, pretrained().encoder.texts(["a <i>red</i> cat & dog"])[0])]
    assert browser.run(f"{names}.map(a => a.innerText)") == expected
    browser.click("#results li:nth-child(3) button")
    browser.wait(f"{said} === 'Pictures like this one'")
    assert browser.run(f"{names}[0].innerText") == expected[2]
    picture = folder / expected[4]
    browser.type("#file", str(picture))
    browser.wait(f"{said}.startsWith('Pictures like <b>')")
    assert browser.run(f"{names}[0].innerText") == expected[4]
    (tmp_path / "no.png").write_bytes(b"no picture")
    browser.type("#file", str(tmp_path / "no.png"))
    browser.wait(f"{said} === 'That is not a picture that can be read.'")
    browser.ask("POST", "/back", {})
    browser.wait(f"{said}.startsWith('Best for') && {names}.length === 9")
    assert browser.run("document.querySelector('#text').value") == "a <i>red</i> cat & dog"
    # Every thumbnail is there and square, whatever the picture's shape; nothing is wider than a phone.
    images = "[...document.querySelectorAll('#results img')]"
    browser.run(f"{images}.forEach(image => image.loading = 'eager')")
    browser.wait(f"{images}.every(image => image.complete && image.naturalWidth)")
    sizes = browser.run(f"{images}.map(image => [image.clientWidth, image.parentElement.clientHeight])")
    assert all(abs(width - height) <= 1 for width, height in sizes), sizes
    assert not browser.run("document.documentElement.scrollWidth > innerWidth")


def _found(tmp_path, query: np.ndarray) -> list[tuple[str, float]]:
    index = PictureIndex(str(tmp_path / "index"))
    return [(index.names[number].rpartition("/")[2], score) for number, score in index.search(query, 9)]
