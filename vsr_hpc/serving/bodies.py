"""Requests inside bodies: JSON with base64, JSON lines and RecordIO of batch transform."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsr_hpc.serving.limits import Limits
from vsr_hpc.serving.refusals import Refusal

_RECORDIO_MAGIC = 0xCED7230A


class _Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    body: str
    """base64"""
    content_type: str = Field("", max_length=1024)
    accept: str = Field("", max_length=1024)
    options: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enveloped:
    """A request that came inside JSON."""

    body: bytes
    content_type: str
    accept: str
    options: tuple[tuple[str, object], ...]


def open_envelope(document: bytes) -> Enveloped:
    """{"body": base64, "content_type": "image/png", "accept": "image/webp", "options": {"scale": 2}}"""
    try:
        found = _Envelope.model_validate_json(document)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        raise Refusal(
            400, "json", f"the JSON is not a request ({where or 'document'}: {first['msg'][:160]}); write "
            '{"body": "<base64>", "content_type": "image/png", "options": {"scale": 2}}'
        ) from exc  # fmt: skip
    try:
        body = base64.b64decode(found.body, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Refusal(400, "json", f"body is not base64 ({exc})") from exc
    return Enveloped(
        body=body,
        content_type=found.content_type,
        accept=found.accept,
        options=tuple(found.options.items()),
    )


def envelope(body: bytes, media_type: str, facts: Sequence[tuple[str, str]]) -> bytes:
    """An answer as JSON, the request's mirror."""
    document: dict[str, Any] = {"body": base64.b64encode(body).decode("ascii"), "content_type": media_type}
    return json.dumps(document | dict(facts)).encode()


def error_document(refusal: Refusal, request_id: str) -> bytes:
    """Every error answer: what, with the numbers, and the id that the log has."""
    found: dict[str, Any] = {"code": refusal.code, "message": refusal.text, **refusal.numbers}
    return json.dumps({"error": found, "request_id": request_id}).encode()


def split_lines(body: bytes, limits: Limits) -> list[bytes]:
    """The records of JSON lines; empty lines are no records."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    _check_count(len(lines), limits)
    return lines


def split_recordio(body: bytes, limits: Limits) -> list[bytes]:
    """The records of MXNet's RecordIO: magic, length, content, padding to four bytes."""
    records, at = [], 0
    while at < len(body):
        if at + 8 > len(body):
            raise Refusal(400, "recordio", f"RecordIO: cut off at byte {at}")
        magic, length = struct.unpack_from("<II", body, at)
        if magic != _RECORDIO_MAGIC:
            raise Refusal(400, "recordio", f"RecordIO: no record begins at byte {at}")
        if length >> 29:
            raise Refusal(400, "recordio", f"RecordIO: a record in parts at byte {at} is not read here")
        if at + 8 + length > len(body):
            raise Refusal(
                400, "recordio", f"RecordIO: the record at byte {at} says {length} bytes, "
                f"{len(body) - at - 8} are left"
            )  # fmt: skip
        records.append(body[at + 8 : at + 8 + length])
        _check_count(len(records), limits)
        at += 8 + length + (-length) % 4
    _check_count(len(records), limits)
    return records


def join_recordio(records: Sequence[bytes]) -> bytes:
    return b"".join(
        struct.pack("<II", _RECORDIO_MAGIC, len(record)) + record + b"\0" * (-len(record) % 4)
        for record in records
    )


def _check_count(found: int, limits: Limits) -> None:
    if not found:
        raise Refusal(400, "records", "the body holds no record")
    if found > limits.records:
        raise Refusal(
            413, "records", f"the body holds more than {limits.records} records; "
            "set a smaller MaxPayloadInMB, or BatchStrategy SingleRecord",
            numbers={"limit_records": limits.records},
        )  # fmt: skip
