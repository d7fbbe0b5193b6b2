"""The page's addresses, and the page itself in a browser."""

import base64
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient
from stripes import encoded, square

from evaluate.search import web
from evaluate.search.web import Site, make_app

HOST = "127.0.0.1"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture
def client(site: Site) -> TestClient:
    return TestClient(make_app(site, [HOST]), base_url=f"http://{HOST}")


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_words_are_answered_with_images(client: TestClient) -> None:
    answer = client.get("/search", params={"words": "yellow", "model": "uncurated", "count": 3})
    hits = answer.json()["hits"]
    assert len(hits) == 3
    assert hits[0]["text"] == "yellow.png"
    shown = picture(client.get(f"/image/{hits[0]['image']}").content)
    np.testing.assert_allclose(shown.mean((0, 1)), (255, 255, 0), atol=3)


def test_the_overlay_is_not_empty(client: TestClient) -> None:
    halves = client.get("/search", params={"words": "magenta", "count": 9}).json()["hits"]
    name = next(hit["image"] for hit in halves if hit["text"] == "zz-halves.png")
    for whole in ({}, {"whole": 1}):
        answer = client.get(f"/heat/{name}", params={"words": "blue", **whole})
        assert answer.headers["content-type"] == "image/png"
        alpha = picture(answer.content)[..., 3]
        assert alpha.max() > 100
        assert alpha.min() == 0


def test_parts_are_named_with_their_shares(client: TestClient) -> None:
    own = client.post("/images", content=encoded(square("red", "cyan"))).json()["image"]
    answer = client.get(f"/parts/{own}", params={"names": "cyan, red ,,black"}).json()
    assert {each["name"]: round(each["share"], 1) for each in answer["names"]} == {
        "cyan": 0.5,
        "red": 0.5,
        "black": 0.0,
    }
    png = base64.b64decode(answer["picture"].removeprefix("data:image/png;base64,"))
    assert picture(png)[..., 3].min() > 0
    assert client.get(f"/neighbors/{own}").json()["hits"]
    assert client.get(f"/details/{own}").json()["fates"] == []


def test_details_say_what_curation_did(client: TestClient) -> None:
    hit = client.get("/search", params={"words": "red"}).json()["hits"][0]
    details = client.get(f"/details/{hit['image']}").json()
    assert details["name"] == "red.png"
    assert details["fates"] == [{"model": "curated", "is_kept": True, "text": "about red.png"}]


@pytest.mark.parametrize(
    "path",
    [
        "/image/../secret.png",
        "/image/..%2fsecret.png",
        "/image/%2e%2e%2fsecret.png",
        "/image/%2Fetc%2Fpasswd",
        "/image/red.png",
        "/image/9",
        "/heat/..%2f..%2fsecret.png?words=red",
        "/../secret.png",
    ],
)
def test_no_path_leads_to_a_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/search?words=", "words have 0 characters"),
        (f"/search?words={'x' * 301}", "words have 301 characters"),
        ("/search?words=red&count=0", "count is '0'"),
        ("/search?words=red&count=many", "count is 'many'"),
        ("/search?words=red&model=best", "there is no model 'best': models are curated, uncurated"),
        ("/parts/0?names=red", "at least two different names are needed"),
        (f"/parts/0?names={quote(','.join(map(str, range(41))))}", "41 names: at most 40"),
    ],
)
def test_what_cannot_be_answered_is_named(client: TestClient, path: str, complaint: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"", "empty file"), (b"hello", "not an image"), (b"\xff\xd8\xff\xe0broken", "image")],
)
def test_a_bad_image_is_named(client: TestClient, data: bytes, complaint: str) -> None:
    answer = client.post("/images", content=data)
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]


def test_an_image_without_an_announced_size_is_taken_up_to_the_limit(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx sends an iterator in chunks, without Content-Length."""
    data = encoded(square("red", "cyan"))
    assert client.post("/images", content=iter([data[:100], data[100:]])).status_code == 200
    monkeypatch.setattr(web, "MOST_UPLOADED_BYTES", len(data) - 1)
    answer = client.post("/images", content=iter([data[:100], data[100:]]))
    assert answer.status_code == 400
    assert f"more than {len(data) - 1} bytes" in answer.json()["error"]


def test_another_host_is_refused(client: TestClient) -> None:
    assert client.get("/about", headers={"Host": "evil.example"}).status_code == 400


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    """The page on a free port."""
    server = uvicorn.Server(uvicorn.Config(make_app(site, [HOST]), HOST, 0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://{HOST}:{port}/"
    server.should_exit = True
    thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install chromium")
def test_a_browser_shows_results_overlay_and_parts(address: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with sync_api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))

        # By keyboard alone: the words have the focus, Enter asks.
        page.goto(address)
        page.wait_for_selector("#examples button")
        page.keyboard.type("a blue")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card:not([title='blue.png']) img.heat.there")
        assert page.text_content(".card .text") == "blue.png"
        assert page.locator(".card").count() == 9
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(MOST_OPAQUE) > 100

        page.locator(".card").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] .fate")
        page.fill("#names", "red, blue")
        page.keyboard.press("Enter")
        page.wait_for_selector("#legend li")
        assert page.text_content("#legend li") == "blue 100 %"
        page.keyboard.press("Escape")

        # Side by side, on a telephone and on a wide screen; there is no model to choose then.
        page.check("#compare")
        page.wait_for_selector(".two .column >> nth=1 >> img.heat.there")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        left, right = (page.locator(".column").nth(place).bounding_box() for place in (0, 1))
        assert left["width"] == right["width"]
        assert not page.is_visible("#model")
        page.locator(".column >> nth=1 >> .card >> nth=0").click()
        assert page.text_content("#by") == "answers of the model uncurated"
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 1200, "height": 800})
        assert page.locator(".column h2").all_text_contents() == ["curated", "uncurated"]

        # An own image opens with its like; a file that is none is named.
        (tmp_path / "green.png").write_bytes(encoded(square("green")))
        (tmp_path / "none.png").write_bytes(b"hello")
        page.set_input_files("#file", tmp_path / "green.png")
        page.wait_for_selector("#alike .card")
        assert page.text_content("#alike .text") == "green.png"
        page.keyboard.press("Escape")
        assert not problems
        page.set_input_files("#file", tmp_path / "none.png")
        page.wait_for_selector("#status.error")
        assert "not an image" in page.text_content("#status")
        browser.close()


MOST_OPAQUE = """() => {
  const heat = document.querySelector(".card:not([title='blue.png']) img.heat.there");
  const canvas = document.createElement("canvas");
  canvas.width = heat.naturalWidth;
  canvas.height = heat.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(heat, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.filter((_, i) => i % 4 === 3).reduce((most, alpha) => Math.max(most, alpha), 0);
}"""
