"""S3 alone: faults on the way, refusals explained, and what a run costs in requests."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.moto_server import Moto
from vsr_hpc.errors import BackendError, JobError
from vsr_hpc.storage.opening import open_store
from vsr_hpc.storage.s3_connection import MIB, S3Options
from vsr_hpc.storage.s3_store import S3Store
from vsr_hpc.storage.store import MissingObject

_SMALL_PARTS = S3Options(part_bytes=5 * MIB)


@pytest.fixture
def s3(moto: Moto) -> S3Store:
    moto.heal()
    store = S3Store.from_uri(f"s3://films/runs/{uuid.uuid4().hex}", _SMALL_PARTS)
    moto.requests()
    return store


def _impatient(store: S3Store) -> S3Store:
    return S3Store.from_uri(store.uri, replace(_SMALL_PARTS, tries=2, read_timeout_s=0.3))


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_server_errors_are_tried_again_and_counted(moto: Moto, s3: S3Store, status: int, code: str) -> None:
    moto.fail("status", method="PUT", status=status, code=code)
    s3.put("plan.json", b"{}")
    assert s3.requests["PutObject"] == 2
    assert s3.read("plan.json") == b"{}"


def test_server_errors_without_end_are_a_backend_error(moto: Moto, s3: S3Store) -> None:
    moto.fail("status", times=99, status=503, code="SlowDown")
    with pytest.raises(BackendError, match="503 SlowDown to PutObject, 2 tries"):
        _impatient(s3).put("plan.json", b"{}")


def test_create_that_met_its_own_success_has_won(moto: Moto, s3: S3Store) -> None:
    moto.fail("lost", method="PUT", path="leases/")
    assert s3.create("leases/00000.g1", b"me")
    assert s3.requests == {"PutObject": 2, "HeadObject": 1}


def test_create_that_lost_its_answer_and_the_race_has_not_won(moto: Moto, s3: S3Store) -> None:
    s3.put("leases/00000.g1", b"somebody else, with no mark")
    moto.fail("reset", method="PUT", path="leases/")
    assert not s3.create("leases/00000.g1", b"me")
    assert s3.read("leases/00000.g1") == b"somebody else, with no mark"


def test_create_tells_its_own_success_from_an_equal_content(moto: Moto, s3: S3Store) -> None:
    assert s3.create("control/cancelled.1", b"")
    moto.fail("reset", method="PUT", path="control/")
    assert not s3.create("control/cancelled.1", b"")


def test_create_tries_again_after_a_conflict(moto: Moto, s3: S3Store) -> None:
    moto.fail("status", method="PUT", times=2, status=409, code="ConditionalRequestConflict")
    assert s3.create("leases/00000.g1", b"me")
    assert s3.read("leases/00000.g1") == b"me"


def test_answer_that_breaks_off_is_taken_up_where_it_broke(moto: Moto, s3: S3Store) -> None:
    content = bytes(range(256)) * 20_000
    s3.put("segments/a.mp4", content)
    moto.requests()
    moto.fail("cut", method="GET", path="segments/", times=2)
    with s3.local("segments/a.mp4") as path:
        assert path.read_bytes() == content
    ranges = [line.split()[2] for line in moto.requests() if " bytes=" in line]
    assert len(ranges) == 2 and all(each > "bytes=1" for each in ranges)


def test_connection_reset_and_slow_answers_are_survived(moto: Moto, s3: S3Store) -> None:
    moto.fail("reset", method="PUT")
    s3.put("plan.json", b"{}")
    moto.fail("slow", method="GET", seconds=1.0)
    assert _impatient(s3).read("plan.json") == b"{}"


def test_upload_in_parts_survives_faults_in_each_kind_of_request(moto: Moto, s3: S3Store) -> None:
    content = b"abcdefg" * (2 * MIB)
    path = s3.scratch / "big.mp4"
    path.write_bytes(content)
    moto.fail("status", method="POST", path="?uploads", status=500)
    moto.fail("reset", method="PUT", path="partNumber=2")
    moto.fail("lost", method="PUT", path="partNumber=3")
    s3.put_file("segments/big.mp4", path)
    assert s3.read("segments/big.mp4") == content
    assert s3.requests["UploadPart"] == 5


@pytest.mark.parametrize("size_bytes", [1000, 11 * MIB])
def test_an_upload_that_succeeded_while_its_answer_was_lost_is_no_failure(
    moto: Moto, s3: S3Store, size_bytes: int
) -> None:
    """AWS answers a repeated CompleteMultipartUpload with 404; a repeated PUT meets its own success."""
    content = bytes(size_bytes)
    path = s3.scratch / "whole.mp4"
    path.write_bytes(content)
    method, asked = ("POST", "uploadId") if size_bytes > MIB else ("PUT", "segments/")
    moto.fail("lost", method=method, path=asked)
    if method == "POST":
        moto.fail("status", method=method, path=asked, status=404, code="NoSuchUpload")
    s3.publish_file("segments/whole.mp4", path, sha256="0", run="r.1", over=None)
    assert s3.read("segments/whole.mp4") == content and not path.exists()


def test_an_upload_that_was_ended_by_somebody_else_is_a_failure(moto: Moto, s3: S3Store) -> None:
    path = s3.scratch / "whole.mp4"
    path.write_bytes(bytes(11 * MIB))
    s3.put("segments/whole.mp4", b"of another worker")
    moto.fail("status", method="POST", path="uploadId", status=404, code="NoSuchUpload")
    with pytest.raises(BackendError, match="NoSuchUpload"):
        s3.put_file("segments/whole.mp4", path)
    assert path.exists()


def test_failed_upload_keeps_the_local_file(moto: Moto, s3: S3Store) -> None:
    path = s3.scratch / "kept.mp4"
    path.write_bytes(b"frames")
    moto.fail("status", times=9, status=500)
    with pytest.raises(BackendError):
        _impatient(s3).put_file("segments/kept.mp4", path)
    assert path.read_bytes() == b"frames"


def test_upload_of_a_file_that_is_not_there_is_refused(s3: S3Store) -> None:
    with pytest.raises(BackendError, match="gone"):
        s3.put_file("segments/x.mp4", s3.scratch / "never.mp4")


def test_local_file_goes_when_its_block_ends_even_by_an_error(s3: S3Store) -> None:
    s3.put("segments/a.mp4", b"frames")
    with pytest.raises(RuntimeError), s3.local("segments/a.mp4") as path:
        raise RuntimeError
    assert not path.exists()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", "needs s3:PutObject"),
        (400, "ExpiredToken", "have expired"),
        (403, "InvalidAccessKeyId", "refused the credentials"),
        (403, "SignatureDoesNotMatch", "refused the credentials"),
        (400, "AuthorizationHeaderMalformed", "another region; set AWS_REGION"),
        (400, "KMS.DisabledException", "KMS refused"),
        (404, "NoSuchBucket", "no bucket films; make it"),
        (501, "NotImplemented", "NotImplemented"),
    ],
)
def test_refusals_say_who_must_do_what(moto: Moto, s3: S3Store, status: int, code: str, says: str) -> None:
    moto.fail("status", method="PUT", status=status, code=code, times=9)
    with pytest.raises((JobError, BackendError), match=says) as refused:
        _impatient(s3).put("plan.json", b"{}")
    assert isinstance(refused.value, JobError) or status == 501
    assert "testing" not in str(refused.value)


def test_missing_bucket_is_not_taken_for_a_missing_object(moto: Moto) -> None:
    with pytest.raises(JobError, match="no bucket no-such-films"):
        open_store("s3://no-such-films/run").exists("job.json")


def test_missing_credentials_are_named(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(JobError, match="no AWS credentials"):
        open_store("s3://films/run").put("a", b"")


def test_unreachable_endpoint_is_a_backend_error(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(BackendError, match="cannot be reached"):
        S3Store.from_uri("s3://films/run", S3Options(tries=1)).put("a", b"")


def test_acceleration_with_an_endpoint_of_ones_own_is_refused(moto: Moto) -> None:
    with pytest.raises(JobError, match="Accelerate"):
        S3Store.from_uri("s3://films/run", S3Options(is_accelerated=True)).put("a", b"")


@pytest.mark.parametrize(
    "uri", ["s3://", "s3://films", "s3://films/", "s3://Films/run", "s3://a/b", "s3:/films/run"]
)
def test_addresses_that_are_no_prefix_are_refused(uri: str) -> None:
    with pytest.raises(JobError):
        S3Store.from_uri(uri)


def test_encryption_and_key_reach_every_upload(moto: Moto, s3: S3Store) -> None:
    options = S3Options(encryption="aws:kms", kms_key="alias/films", part_bytes=5 * MIB)
    store = S3Store.from_uri(s3.uri, options)
    store.put("a", b"1")
    store.create("b", b"2")
    path = store.scratch / "c"
    path.write_bytes(bytes(6 * MIB))
    store.put_file("c", path)
    prefix = s3.uri.removeprefix("s3://films/")
    for name in "abc":
        kept = moto.client("s3").head_object(Bucket="films", Key=f"{prefix}/{name}")
        assert (kept["ServerSideEncryption"], kept["SSEKMSKeyId"]) == ("aws:kms", "alias/films")


def test_uploads_carry_a_sha256_that_s3_checks(moto: Moto, s3: S3Store) -> None:
    s3.put("a", b"1")
    key = s3.uri.removeprefix("s3://films/") + "/a"
    kept = moto.client("s3").head_object(Bucket="films", Key=key, ChecksumMode="ENABLED")
    assert kept["ChecksumSHA256"] == "a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s="


def test_options_come_from_the_environment_and_are_checked() -> None:
    found = S3Options.from_environment({"VSR_S3_KMS_KEY": "alias/films", "VSR_S3_ACCELERATE": "1"})
    assert (found.encryption, found.kms_key, found.is_accelerated) == ("aws:kms", "alias/films", True)
    with pytest.raises(JobError, match="unknown"):
        S3Options.from_environment({"VSR_S3_ENCRYPTION": "rot13"})
    with pytest.raises(JobError, match="needs encryption"):
        S3Options(kms_key="alias/films")


def test_listing_is_paged(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"receipts/{n:05d}.json" for n in range(7)]
    for name in names:
        s3.put(name, b"")
    s3.requests.clear()
    monkeypatch.setattr("vsr_hpc.storage.s3_store._DELETED_AT_ONCE", 5)
    s3._client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 5}
    )
    assert [facts.name for facts in s3.list("receipts/")] == names
    assert s3.requests == {"ListObjectsV2": 2}
    s3.remove_all()
    assert s3.requests["DeleteObjects"] == 2
    assert s3.list("") == ()


def test_remove_all_ends_uploads_left_half_done(moto: Moto, s3: S3Store) -> None:
    key = s3.uri.removeprefix("s3://films/") + "/segments/half.mp4"
    moto.client("s3").create_multipart_upload(Bucket="films", Key=key)
    s3.remove_all()
    left = moto.client("s3").list_multipart_uploads(Bucket="films").get("Uploads", [])
    assert key not in [upload["Key"] for upload in left]


def test_one_shard_costs_at_most_six_requests(s3: S3Store) -> None:
    """Lease, its end, one heartbeat, segment and receipt by the worker; the segment once more by finish."""
    path: Path = s3.scratch / "00000.mp4"
    path.write_bytes(bytes(3 * MIB))
    s3.create("leases/00000.g1.json", b"lease")
    s3.put("workers/a.json", b"heartbeat")
    s3.put_file("segments/00000-ab.mp4", path)
    s3.create("receipts/00000.json", b"receipt")
    s3.create("leases/00000.g1.end.json", b"end")
    with s3.local("segments/00000-ab.mp4"):
        pass
    s3.now_s()
    assert s3.requests == {"PutObject": 5, "GetObject": 1}


def test_opening_a_store_sends_nothing(s3: S3Store) -> None:
    assert sum(S3Store.from_uri(s3.uri).requests.values()) == 0


def test_missing_object_costs_one_request_of_the_bucket_once(s3: S3Store) -> None:
    assert not s3.exists("a")
    assert not s3.exists("b")
    assert s3.requests == {"HeadObject": 2, "HeadBucket": 1}
    with pytest.raises(MissingObject):
        s3.read("a")


def test_missing_object_is_missing_where_only_names_below_a_prefix_may_be_listed(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IAM's condition on s3:prefix refuses HeadBucket, which has none."""

    def refused(**_: object) -> None:
        denied = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(denied, "HeadBucket")  # type: ignore[arg-type]

    monkeypatch.setattr(s3._connection.client, "head_bucket", refused)
    assert not s3.exists("a")
