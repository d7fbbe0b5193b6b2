"""The search page: one HTML file and the few addresses that it asks.

Images are asked for by number, never by path (evaluate/search/collection.py). Nothing is loaded
from elsewhere: the page's own security policy forbids it.
"""

import base64
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from evaluate.search.collection import Collection, Picture
from evaluate.search.engine import Engine, Hit
from evaluate.search.heat import as_png, color_of

PAGE = "page.html"
MOST_HITS = 120
MOST_NAMES = 40
MOST_CHARS = 300  # of a query
MOST_UPLOADED_BYTES = 32_000_000
CARD_PX = 256
WHOLE_PX = 960
NUM_NEIGHBORS = 8
PROTECTION = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
CACHED = {"Cache-Control": "private, max-age=3600"}


@dataclass(frozen=True)
class Fate:
    """What curation did with an image for one model."""

    model: str
    is_kept: bool
    text: str


@dataclass(frozen=True)
class Site:
    """What the page shows."""

    title: str
    note: str
    """One line on the images."""
    engines: Mapping[str, Engine]
    """One per model, by its name; all search the same collection."""
    collection: Collection
    fates: Callable[[str], Sequence[Fate]] | None
    """What curation did with an image of the pool, by its key; None for a folder."""
    examples: Sequence[str]
    """Words to begin with."""


class BadRequestError(ValueError):
    """A question that cannot be answered; the message says why."""


def make_app(site: Site, hosts: Sequence[str]) -> Starlette:
    """The web application. `hosts`: names under which it may be addressed, so that no other page
    can reach it under a name of its own (DNS rebinding).
    """
    page = (files("evaluate.search") / PAGE).read_text()
    answers = _Answers(site)

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=PROTECTION)

    async def add(request: Request) -> Response:
        # Counted as it comes, because a body without an announced size may have any.
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MOST_UPLOADED_BYTES:
                return _refused(f"the image has more than {MOST_UPLOADED_BYTES} bytes: take less")

        return await _answer(lambda: JSONResponse(answers.add(bytes(data))))

    def asked(answer: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            return await _answer(lambda: answer(request))

        return respond

    routes = [
        Route("/", show),
        Route("/about", asked(answers.about)),
        Route("/search", asked(answers.search)),
        Route("/neighbors/{name}", asked(answers.neighbors)),
        Route("/image/{name}", asked(answers.image)),
        Route("/heat/{name}", asked(answers.heat)),
        Route("/parts/{name}", asked(answers.parts)),
        Route("/details/{name}", asked(answers.details)),
        Route("/images", add, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


async def _answer(answer: Callable[[], Response]) -> Response:
    """Work in a thread; what cannot be answered becomes a line of text with its status."""
    # A model works for seconds: on the event loop, every other request would wait for it.
    try:
        response = await run_in_threadpool(answer)
    except LookupError as error:
        return _refused(str(error.args[0]), 404)
    except ValueError as error:
        return _refused(str(error))
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _refused(reason: str, status: int = 400) -> Response:
    return JSONResponse({"error": reason}, status)


class _Answers:
    """What each address answers."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def about(self, request: Request) -> Response:
        """What the page shows before anything is asked."""
        site = self.site
        return JSONResponse(
            {
                "title": site.title,
                "note": site.note,
                "models": list(site.engines),
                "num_images": len(site.collection.gallery),
                "has_fates": site.fates is not None,
                "examples": list(site.examples),
            }
        )

    def search(self, request: Request) -> Response:
        """The best images for some words, and the milliseconds that it took to find them."""
        words = _words(request)
        count = min(_number(request, "count", 24), MOST_HITS)
        engine = self._engine(request)

        start = time.perf_counter()
        hits = engine.search(words, count)
        took_ms = 1000 * (time.perf_counter() - start)

        return JSONResponse({"hits": self._described(hits), "took_ms": round(took_ms, 1)})

    def neighbors(self, request: Request) -> Response:
        """The images that are most like one."""
        hits = self._engine(request).neighbors(self._picture(request), NUM_NEIGHBORS)
        return JSONResponse({"hits": self._described(hits)})

    def image(self, request: Request) -> Response:
        """A JPEG: the center square, or the whole image with `whole`."""
        is_whole = "whole" in request.query_params
        side = WHOLE_PX if is_whole else CARD_PX
        data = self.site.collection.as_jpeg(self._picture(request), side, not is_whole)
        return Response(data, media_type="image/jpeg", headers=CACHED)

    def heat(self, request: Request) -> Response:
        """A transparent PNG of the pixels that the words name, for the center square or with
        `whole`.
        """
        picture = self._picture(request)
        is_square = "whole" not in request.query_params
        heat = self._engine(request).heat(picture, _words(request), is_square)
        return Response(as_png(heat), media_type="image/png", headers=CACHED)

    def parts(self, request: Request) -> Response:
        """The name of every pixel as a picture, and the share and color of each name."""
        listed = request.query_params.get("names", "")
        names = [name for part in listed.split(",") if (name := part.strip())]
        if len(names) > MOST_NAMES or len(listed) > MOST_NAMES * MOST_CHARS:
            raise BadRequestError(f"{len(names)} names: at most {MOST_NAMES} are compared")

        parts = self._engine(request).parts(self._picture(request), names)
        colors = {name: "rgb({}, {}, {})".format(*color_of(i)) for i, name in enumerate(names)}
        return JSONResponse(
            {
                "picture": "data:image/png;base64,"
                + base64.b64encode(as_png(parts.picture)).decode(),
                "names": [
                    {"name": name, "share": share, "color": colors[name]}
                    for name, share in parts.shares.items()
                ],
            }
        )

    def details(self, request: Request) -> Response:
        """Name and caption of an image, and what curation did with it."""
        picture = self._picture(request)
        if picture.row is None:
            return JSONResponse({"name": "your image", "caption": "", "fates": []})

        gallery = self.site.collection.gallery
        name = gallery.name(picture.row)
        fates = self.site.fates(name) if self.site.fates else []
        return JSONResponse(
            {
                "name": name,
                "caption": gallery.caption(picture.row),
                "fates": [
                    {"model": fate.model, "is_kept": fate.is_kept, "text": fate.text}
                    for fate in fates
                ],
            }
        )

    def add(self, data: bytes) -> Mapping[str, str]:
        """Take in an image of the user's own."""
        return {"image": self.site.collection.add(data).name}

    def _engine(self, request: Request) -> Engine:
        name = request.query_params.get("model") or next(iter(self.site.engines))
        if name not in self.site.engines:
            raise BadRequestError(
                f"there is no model {name[:40]!r}: models are {', '.join(self.site.engines)}"
            )
        return self.site.engines[name]

    def _picture(self, request: Request) -> Picture:
        return self.site.collection.picture(request.path_params["name"])

    def _described(self, hits: Sequence[Hit]) -> list[dict[str, object]]:
        """Hits as JSON; the page asks for each picture by its row."""
        gallery = self.site.collection.gallery
        return [
            {
                "image": str(hit.row),
                "cosine": round(hit.cosine, 4),
                "text": gallery.caption(hit.row) or gallery.name(hit.row),
            }
            for hit in hits
        ]


def _words(request: Request) -> str:
    words = request.query_params.get("words", "").strip()
    if not words or len(words) > MOST_CHARS:
        raise BadRequestError(
            f"words have {len(words)} characters: 1 to {MOST_CHARS} are needed; type some words"
        )
    return words


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BadRequestError(f"{name} is {text[:20]!r}: a number of at least 1 is needed")
    return int(text)
