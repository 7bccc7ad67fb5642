"""Requests as nobody should send them: real bodies damaged, headers and options of all kinds."""

from __future__ import annotations

import base64
import http.client
import json
import struct

from hypothesis import strategies as st

from tests.serving.samples import clip, still
from tests.serving.served import Served

_TYPES = (
    "image/png", "image/jpeg", "image/webp", "video/mp4", "video/x-matroska", "application/json",
    "application/jsonlines", "application/x-recordio", "application/octet-stream", "text/html", "",
    "application/x-vsr-planes; width=16; height=16; pixel=gray", "application/x-vsr-planes; width=-1",
    "application/x-vsr-planes; width=8; height=8; pixel=bayer_bggr8",
    "application/x-vsr-planes; pixel=\xe9",
)  # fmt: skip
_OPTIONS = (
    "scale", "size", "model", "quality", "crf", "codec", "preset", "audio", "blend", "grain", "seed",
    "stream", "deinterlace", "tile", "x",
)  # fmt: skip
_VALUES = (
    "2", "1", "0.5", "16", "-1", "nan", "inf", "1e400", "true", "x", "", "tiny", "nearest", "lossless",
    "h264", "av1", "ffv1", "64x64", "9999x1", "1x1", "../../etc/passwd", "none", "aac", "63", "ultrafast",
)  # fmt: skip
_visible = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


def _samples() -> list[bytes]:
    stills = [still(kind, 24, 16) for kind in ("png", "jpeg", "webp")]
    return [*stills, clip("mp4", 3), clip("mkv", 3, audio=False)]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real body with bytes changed, taken out, cut off or put before another one."""
    body = bytearray(draw(st.sampled_from(_samples())))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(body) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "drop", "huge", "insert")))
        if kind == "flip" and body:
            body[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del body[at:]
        elif kind == "drop":
            del body[at : at + draw(st.integers(1, 64))]
        elif kind == "huge":
            body[at : at + 4] = draw(st.sampled_from((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")))
        else:
            body[at:at] = draw(st.binary(max_size=32))
    return bytes(body)


def _enveloped(body: bytes, fields: dict[str, object]) -> bytes:
    return json.dumps({"body": base64.b64encode(body).decode(), **fields}).encode()


def _recorded(bodies: list[bytes]) -> bytes:
    return b"".join(
        struct.pack("<II", 0xCED7230A, len(each)) + each + bytes(-len(each) % 4) for each in bodies
    )


_documents = st.recursive(
    st.none() | st.integers() | _visible, lambda each: st.lists(each) | st.dictionaries(_visible, each)
)
bodies = st.one_of(
    damaged(),
    damaged(),
    st.binary(max_size=300),
    st.sampled_from(_samples()),
    st.builds(
        _enveloped,
        damaged(),
        st.dictionaries(
            st.sampled_from(("content_type", "accept", "options", "url")),
            st.one_of(
                st.sampled_from(_TYPES), st.dictionaries(st.sampled_from(_OPTIONS), st.sampled_from(_VALUES))
            ),
        ),
    ),
    st.builds(_recorded, st.lists(damaged(), max_size=3)),
    _documents.map(lambda each: json.dumps(each).encode()),
)
_pairs = st.lists(
    st.tuples(st.sampled_from(_OPTIONS), st.one_of(st.sampled_from(_VALUES), _visible)), max_size=3
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "Content-Type": st.one_of(st.sampled_from(_TYPES), _visible).map(
            lambda text: text.encode("latin-1", "ignore").decode("latin-1")
        ),
        "Accept": st.one_of(st.sampled_from([*_TYPES, "*/*", "image/*;q=0.1, */*;q=nan"]), _visible),
        "X-Amzn-SageMaker-Custom-Attributes": st.one_of(
            _pairs.map(lambda pairs: ";".join(f"{key}={value}" for key, value in pairs)), _visible
        ),
        "X-Request-Id": _visible,
        "X-Amzn-SageMaker-Target-Model": _visible,
    },
)
paths = st.one_of(
    st.just("/invocations"),
    st.just("/invocations"),
    _pairs.map(lambda pairs: "/invocations?" + "&".join(f"{key}={value}" for key, value in pairs)),
    st.sampled_from(("/models", "/models/x/invoke", "/models/%2e%2e/invoke", "/invocations/", "//", "/%00")),
)
_methods = st.sampled_from(("POST",) * 9 + ("GET", "PUT", "DELETE"))
_RIGHT = {
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp",
    b"\x1a\x45": "video/x-matroska", b"{": "application/json", b"\x0a\x23\xd7\xce": "application/x-recordio",
}  # fmt: skip
_good_pairs = st.lists(
    st.sampled_from(
        ("scale=2", "scale=1", "scale=1.5", "size=40x30", "model=tiny", "model=nearest", "crf=30",
         "codec=h264", "codec=ffv1", "preset=ultrafast", "blend=0.5", "grain=4", "seed=7", "audio=none",
         "deinterlace=true",
         "quality=50", "stream=true")
    ),
    max_size=2, unique_by=lambda pair: pair.split("=")[0],
)  # fmt: skip

Request = tuple[str, str, bytes, dict[str, str]]


@st.composite
def plausible(draw: st.DrawFn) -> Request:
    """A damaged body under its right name with options that exist: what gets far inside."""
    body = draw(bodies)
    kind = next((kind for magic, kind in _RIGHT.items() if body.startswith(magic)), "video/mp4")
    sent = {"Content-Type": kind, "X-Amzn-SageMaker-Custom-Attributes": ";".join(draw(_good_pairs))}
    accept = draw(st.sampled_from(("", "*/*", "image/png", "image/webp", "video/mp4", "application/json")))
    return "POST", "/invocations", body, sent | ({"Accept": accept} if accept else {})


requests = st.one_of(plausible(), plausible(), plausible(), st.tuples(_methods, paths, bodies, headers))


def check(server: Served, method: str, path: str, body: bytes, sent: dict[str, str]) -> int:
    """Whatever comes in, the answer is a success or a refusal with its reason, never a fault.

    A streamed clip whose damage shows late is a success that is cut off, for all to see.
    """
    safe = "".join(each for each in path if "!" <= each <= "~")
    try:
        reply = server.request(method, safe, body, sent)
    except http.client.IncompleteRead:
        assert "stream=true" in f"{safe} {sent}"
        return 200
    assert reply.status < 500 or reply.status == 503, "".join(server.lines[-60:])
    if reply.status >= 400:
        assert reply.error["code"] and reply.error["message"]
        assert "Traceback" not in reply.error["message"]
        assert reply.error["code"] not in ("deadline", "backend", "server"), reply.error
    return reply.status
