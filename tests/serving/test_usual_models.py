"""A server that was told of no model answers with the package's own, by what comes in."""

from __future__ import annotations

from pathlib import Path

from tests.serving.samples import decoded, still
from tests.serving.served import served


def test_stills_and_clips_get_the_models_made_for_them(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        for body, media_type, query, name, width in (
            (still(), "image/png", "", "vsr-clean-x2", 128),
            (still(), "image/png", "?scale=4", "vsr-clean-x4", 256),
            (still("jpeg"), "image/jpeg", "", "vsr-video-x2", 128),
            (still(), "image/png", "?model=vsr-video-x4", "vsr-video-x4", 256),
        ):
            reply = server.invoke(body, media_type, f"/invocations{query}")
            assert reply.status == 200, reply.body
            assert decoded(reply.body)[0].width == width
            assert f"model={name}" in reply.headers["x-amzn-sagemaker-custom-attributes"].split(";")
        assert server.invoke(still(), "image/png", "/invocations?model=bicubic").status == 422
