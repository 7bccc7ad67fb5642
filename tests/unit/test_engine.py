"""Upscaler: what goes in comes out bigger, exact where it can be, the same however frames are batched."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vsr_hpc.engine import platform as engine
from vsr_hpc.engine.device_facts import DeviceFacts
from vsr_hpc.engine.geometry import output_picture
from vsr_hpc.engine.platform import platform_record
from vsr_hpc.engine.settings import UpscaleRequest, UpscaleSettings, resolve_settings
from vsr_hpc.engine.upscaler import Upscaler
from vsr_hpc.errors import BackendError, JobError, MediaError, ModelError
from vsr_hpc.media.picture import Colour, Frame, Picture, PixelFormat
from vsr_hpc.models.cards import Card, Precision, card_of_file, find_card
from vsr_hpc.models.networks import Rrdb, build

CPU = DeviceFacts(kind="cpu", name="test", memory_gib=4, has_fast_bf16=False, has_fast_fp16=False)
SUBSAMPLING = {"420": (1, 1), "422": (1, 0), "444": (0, 0)}


def pixel(sub: str = "420", depth: int = 8, *, alpha: bool = False) -> PixelFormat:
    w, h = SUBSAMPLING[sub]
    name = f"yuv{'a' if alpha else ''}{sub}p{'' if depth == 8 else f'{depth}le'}"
    return PixelFormat(name=name, kind="yuv", depth=depth, log2_chroma_w=w, log2_chroma_h=h, has_alpha=alpha)


def picture(width: int = 32, height: int = 24, form: PixelFormat | None = None, **tags: object) -> Picture:
    tags = {"matrix": 1, "is_range_tagged": True, **tags}
    return Picture(width=width, height=height, pixel=form or pixel(), colour=Colour(**tags))  # type: ignore[arg-type]


def noise_frame(shown: Picture, index: int = 0) -> Frame:
    dice = np.random.default_rng(index)
    top = 1 if shown.pixel.depth == 32 else 2**shown.pixel.depth
    planes = [(dice.random(shape) * top).astype(shown.pixel.dtype) for shape in shown.plane_shapes()]
    return Frame(index=index, planes=tuple(planes))


def upscaler(card: Card, shown: Picture, weights: Path | None = None, **wanted: object) -> Upscaler:
    request = UpscaleRequest(**wanted)  # type: ignore[arg-type]
    settings = resolve_settings(request, card, shown, CPU)
    out = output_picture(shown, settings.width, settings.height, request.pixel or shown.pixel)
    return Upscaler(card, weights, shown, out, settings, threads=1)


@pytest.fixture
def compact(tmp_path: Path) -> tuple[Card, Path]:
    return random_network(tmp_path, num_feat=8, num_conv=3, scale=2)


def random_network(folder: Path, *, num_feat: int, num_conv: int, scale: int) -> tuple[Card, Path]:
    torch.manual_seed(7)
    parameters = {"num_feat": num_feat, "num_conv": num_conv, "act_type": "prelu"}
    template = find_card("realesr-animevideov3").model_dump() | {"parameters": parameters, "scale": scale}
    path = folder / "random.safetensors"
    save_file(build(Card.model_validate(template)).state_dict(), path)
    return card_of_file(path), path


class Identity(nn.Module):
    """A x1 network that returns its input; what remains is the RGB path."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0 and x.max() <= 1, "the network saw values outside its range"
        return x


def identity_upscaler(monkeypatch: pytest.MonkeyPatch, shown: Picture, **wanted: object) -> Upscaler:
    monkeypatch.setattr(Upscaler, "_load", lambda self, card, path: Identity())
    card = find_card("realesr-animevideov3").model_copy(update={"scale": 1})
    return upscaler(card, shown, Path("unused"), **wanted)


# Filters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 10, 16])
@pytest.mark.parametrize("sub", ["420", "422", "444"])
@pytest.mark.parametrize("name", ["nearest", "bicubic", "lanczos"])
def test_filters_are_bit_equal_at_scale_1(name: str, sub: str, depth: int) -> None:
    shown = picture(form=pixel(sub, depth))
    frame = noise_frame(shown)
    (out,) = upscaler(find_card(name), shown, scale=Fraction(1))([frame])
    for before, after in zip(frame.planes, out.planes, strict=True):
        assert after.dtype == before.dtype
        assert np.array_equal(before, after)


def test_a_frame_keeps_its_number() -> None:
    shown = picture()
    out = upscaler(find_card("bicubic"), shown)([noise_frame(shown, 5), noise_frame(shown, 9)])
    assert [frame.index for frame in out] == [5, 9]


@pytest.mark.parametrize("form", [pixel(alpha=True), PixelFormat(name="gray10le", kind="grey", depth=10)])
def test_alpha_and_grey_are_scaled_like_any_plane(form: PixelFormat) -> None:
    shown = picture(form=form)
    made = upscaler(find_card("lanczos"), shown, scale=Fraction(3, 2))
    (out,) = made([noise_frame(shown)])
    wanted = output_picture(shown, 48, 36, form)
    assert tuple(plane.shape for plane in out.planes) == wanted.plane_shapes()


def test_filters_keep_head_and_footroom() -> None:
    shown = picture()
    planes = tuple(np.full(shape, 254, np.uint8) for shape in shown.plane_shapes())
    (out,) = upscaler(find_card("bicubic"), shown)([Frame(index=0, planes=planes)])
    assert all((plane == 254).all() for plane in out.planes)


def test_a_plane_may_be_a_view() -> None:
    shown = picture()
    frame = noise_frame(shown)
    views = tuple(np.repeat(plane, 2, axis=1)[:, ::2] for plane in frame.planes)
    made = upscaler(find_card("bicubic"), shown)
    first, second = made([frame])[0], made([Frame(index=0, planes=views)])[0]
    assert all(np.array_equal(a, b) for a, b in zip(first.planes, second.planes, strict=True))


# Settings --------------------------------------------------------------------------------------------------


def test_every_wrong_setting_is_reported_at_once(compact: tuple[Card, Path]) -> None:
    request = UpscaleRequest(scale=Fraction(-1), blend=2.0, grain=-1.0, batch=0, tile=3)
    with pytest.raises(JobError) as caught:
        resolve_settings(request, compact[0], picture(), CPU)
    for word in ("scale=-1", "blend=2", "grain=-1", "batch=0", "tile=3"):
        assert word in str(caught.value)


def test_settings_are_json_and_depend_on_device_facts_alone(compact: tuple[Card, Path]) -> None:
    gpu = DeviceFacts(kind="cuda", name="T4", memory_gib=16, has_fast_bf16=False, has_fast_fp16=True)
    shown = picture(1920, 1080)
    card = find_card("RealESRGAN_x4plus")
    first, second = (resolve_settings(UpscaleRequest(), card, shown, gpu) for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(asdict(first))) == asdict(first)
    assert (first.device, first.precision) == ("cuda", "fp16")
    assert first.tile is not None and first.tile % 32 == 0


@pytest.mark.parametrize(
    ("facts", "precision"),
    [({"has_fast_bf16": True}, "bf16"), ({"has_fast_bf16": False}, "fp32")],
)
def test_precision_follows_what_the_device_does_well(facts: dict[str, bool], precision: str) -> None:
    device = replace(CPU, **facts)  # type: ignore[arg-type]
    card = find_card("realesr-animevideov3")
    assert resolve_settings(UpscaleRequest(), card, picture(), device).precision == precision


def test_platform_record_is_text() -> None:
    record = platform_record("cpu", "fp32")
    assert record["device"] == "cpu" and all(isinstance(value, str) for value in record.values())


# Networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batching_and_repeating_change_no_bit(compact: tuple[Card, Path], precision: Precision) -> None:
    shown = picture()
    frames = [noise_frame(shown, i) for i in range(4)]
    runs = [upscaler(*with_shown(compact, shown), batch=b, precision=precision)(frames) for b in (1, 2, 2)]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))


def with_shown(compact: tuple[Card, Path], shown: Picture) -> tuple[Card, Picture, Path]:
    return compact[0], shown, compact[1]


@pytest.mark.parametrize("size", [(32, 24), (33, 25), (61, 47)])
@pytest.mark.parametrize("tile", [16, 20, 32])
def test_tiled_compact_equals_whole_within_rounding(
    compact: tuple[Card, Path], size: tuple[int, int], tile: int
) -> None:
    shown = picture(*size, form=pixel("444"))
    frame = noise_frame(shown)
    whole = upscaler(*with_shown(compact, shown), tile=0, precision="fp32")([frame])[0]
    tiled = upscaler(*with_shown(compact, shown), tile=tile, precision="fp32")([frame])[0]
    for a, b in zip(whole.planes, tiled.planes, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_a_tiled_picture_with_too_little_overlap_differs(compact: tuple[Card, Path]) -> None:
    shown = picture(64, 48, form=pixel("444", 16))
    frame = noise_frame(shown)
    card = compact[0].model_copy(update={"overlap": 0})
    whole = upscaler(card, shown, compact[1], tile=0)([frame])[0]
    tiled = upscaler(card, shown, compact[1], tile=16)([frame])[0]
    assert not np.array_equal(whole.planes[0], tiled.planes[0])


@pytest.mark.parametrize("wanted", [{"scale": Fraction(1)}, {"scale": Fraction(3)}, {"size": (80, 44)}])
def test_output_size_is_independent_of_the_networks_scale(
    compact: tuple[Card, Path], wanted: dict[str, object]
) -> None:
    shown = picture()
    made = upscaler(*with_shown(compact, shown), **wanted)
    (out,) = made([noise_frame(shown)])
    settings = resolve_settings(UpscaleRequest(**wanted), compact[0], shown, CPU)  # type: ignore[arg-type]
    assert out.planes[0].shape == (settings.height, settings.width)


def test_short_memory_halves_the_batch_and_loses_no_frame(
    compact: tuple[Card, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown = picture()
    made = upscaler(*with_shown(compact, shown), batch=4)
    run = made._pass

    def starved(frames: list[Frame]) -> list[Frame]:
        if len(frames) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return run(frames)

    monkeypatch.setattr(made, "_pass", starved)
    out = made([noise_frame(shown, i) for i in range(5)])
    assert [frame.index for frame in out] == [0, 1, 2, 3, 4]
    assert made.batch == 1
    assert "batch halved" in caplog.text


def test_no_memory_for_one_frame_is_a_backend_error_with_the_way_out(
    compact: tuple[Card, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = upscaler(*with_shown(compact, picture()))

    def starved(frames: list[Frame]) -> list[Frame]:
        raise MemoryError("no memory")

    monkeypatch.setattr(made, "_pass", starved)
    with pytest.raises(BackendError, match="--tile"):
        made([noise_frame(picture())])


def test_an_error_that_is_not_memory_is_not_swallowed(
    compact: tuple[Card, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = upscaler(*with_shown(compact, picture()), batch=2)

    def broken(frames: list[Frame]) -> list[Frame]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(made, "_pass", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        made([noise_frame(picture())])


def test_a_device_fault_is_a_backend_error(
    compact: tuple[Card, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = upscaler(*with_shown(compact, picture()))

    def broken(frames: list[Frame]) -> list[Frame]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(made, "_pass", broken)
    with pytest.raises(BackendError, match="frame 0: CUDA error"):
        made([noise_frame(picture())])


def test_a_frame_of_another_size_is_a_media_error() -> None:
    made = upscaler(find_card("bicubic"), picture())
    with pytest.raises(MediaError, match="frame 7"):
        made([noise_frame(picture(34, 24), 7)])


def test_feathered_rrdb_tiles_stay_near_the_whole(tmp_path: Path) -> None:
    torch.manual_seed(5)
    path = tmp_path / "rrdb.safetensors"
    save_file(Rrdb(num_feat=8, num_block=1, num_grow_ch=4, scale=2).state_dict(), path)
    card = card_of_file(path).model_copy(update={"overlap": 8})
    assert not card.is_tiled_exactly
    shown = picture(67, 45, form=pixel("444"))
    frame = noise_frame(shown)
    whole = upscaler(card, shown, path, tile=0)([frame])[0]
    tiled = upscaler(card, shown, path, tile=16)([frame])[0]
    for a, b in zip(whole.planes, tiled.planes, strict=True):
        assert a.shape == b.shape == (90, 134)
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["bicubic", "network"])
def test_kinds_change_through_rgb_without_a_colour_shift(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gbr = PixelFormat(name="gbrp", kind="rgb", depth=8)
    shown = picture(form=gbr, matrix=0, is_range_tagged=False)
    planes = tuple(np.full((24, 32), code, np.uint8) for code in (0, 0, 255))  # G, B, R: pure red
    wanted = {"pixel": pixel(), "scale": Fraction(1)}
    if name == "network":
        made = identity_upscaler(monkeypatch, shown, **wanted)
    else:
        made = upscaler(find_card(name), shown, **wanted)
    (out,) = made([Frame(index=0, planes=planes)])
    assert [int(plane[8, 8]) for plane in out.planes] == [81, 90, 240]  # BT.601, since it is below 720 lines


def test_canary_passes_and_catches_nan(compact: tuple[Card, Path]) -> None:
    made = upscaler(*with_shown(compact, picture()))
    assert made.canary() == made.canary()
    assert made._network is not None
    next(made._network.parameters()).fill_(float("nan"))
    with pytest.raises(BackendError, match="non-finite"):
        made.canary()


def test_a_network_without_weights_says_how_to_get_them(compact: tuple[Card, Path]) -> None:
    with pytest.raises(ModelError, match="vsr models pull"):
        upscaler(compact[0], picture(), None)


def test_blend_1_is_the_filter_and_blend_0_is_the_network(compact: tuple[Card, Path]) -> None:
    shown = picture()
    frame = noise_frame(shown)
    filtered = upscaler(find_card("bicubic"), shown)([frame])[0]
    mixed = upscaler(*with_shown(compact, shown), blend=1.0)([frame])[0]
    assert all(np.array_equal(a, b) for a, b in zip(filtered.planes, mixed.planes, strict=True))


def test_grain_depends_on_the_frames_index_and_not_on_the_batch() -> None:
    shown = picture(form=pixel("444"))
    frames = [Frame(index=i, planes=noise_frame(shown).planes) for i in (3, 4)]
    together = upscaler(find_card("bicubic"), shown, grain=4.0, batch=2)(frames)
    alone = upscaler(find_card("bicubic"), shown, grain=4.0)(frames[1:])
    assert np.array_equal(together[1].planes[0], alone[0].planes[0])
    assert not np.array_equal(together[0].planes[0], together[1].planes[0])


def test_grain_has_the_asked_strength() -> None:
    shown = picture(64, 48)
    planes = tuple(np.full(shape, 128, np.uint8) for shape in shown.plane_shapes())
    (out,) = upscaler(find_card("bicubic"), shown, grain=5.0)([Frame(index=1, planes=planes)])
    assert abs(float(out.planes[0].std()) - 5) < 0.3
    assert (out.planes[1] == 128).all()


# The RGB path with a network that changes nothing ----------------------------------------------------------


@pytest.mark.parametrize("matrix", [10, 14])
def test_codings_without_a_way_to_rgb_are_refused_by_name(compact: tuple[Card, Path], matrix: int) -> None:
    with pytest.raises(MediaError, match=f"\\({matrix}\\)"):
        upscaler(*with_shown(compact, picture(matrix=matrix)))
    upscaler(find_card("bicubic"), picture(matrix=matrix))


@pytest.mark.parametrize("matrix", [1, 6, 8, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 12])
def test_identity_network_keeps_444_within_one_code_even_out_of_range(
    monkeypatch: pytest.MonkeyPatch, matrix: int, full: bool, depth: int
) -> None:
    shown = picture(form=pixel("444", depth), matrix=matrix, is_full_range=full)
    frame = noise_frame(shown)  # most random codes are no colour at all: super-whites and beyond the gamut
    made = identity_upscaler(monkeypatch, shown)
    (out,) = made([frame])
    for before, after in zip(frame.planes, out.planes, strict=True):
        assert np.abs(before.astype(int) - after.astype(int)).max() <= 1
    assert made.clipped > 0


def test_clip_policy_clips_what_carry_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = picture(form=pixel("444"))
    planes = tuple(
        np.full(shape, code, np.uint8)
        for shape, code in zip(shown.plane_shapes(), (254, 128, 128), strict=True)
    )
    frame = Frame(index=0, planes=planes)
    carried = identity_upscaler(monkeypatch, shown)([frame])[0]
    clipped = identity_upscaler(monkeypatch, shown, clip="clip")([frame])[0]
    assert (carried.planes[0] == 254).all()
    assert (clipped.planes[0] == 235).all()


@pytest.mark.parametrize("kind", ["grey", "rgb"])
@pytest.mark.parametrize("depth", [8, 16, 32])
def test_identity_network_keeps_rgb_and_grey(monkeypatch: pytest.MonkeyPatch, kind: str, depth: int) -> None:
    form = PixelFormat(name="any", kind=kind, depth=depth, has_alpha=kind == "rgb")  # type: ignore[arg-type]
    shown = picture(form=form, matrix=0, is_range_tagged=False)
    frame = noise_frame(shown)
    if depth == 32:
        frame.planes[0][0, :4] = (50.0, 400.0, -0.5, 1e-4)  # scene-linear light above 1 and below 0 survives
    (out,) = identity_upscaler(monkeypatch, shown)([frame])
    for before, after in zip(frame.planes, out.planes, strict=True):
        if depth == 32:
            assert np.allclose(before, after, rtol=2e-5, atol=1e-6)
        else:
            assert np.array_equal(before, after)


def test_the_settings_and_the_output_must_agree() -> None:
    shown = picture()
    settings = resolve_settings(UpscaleRequest(), find_card("bicubic"), shown, CPU)
    assert isinstance(settings, UpscaleSettings)
    with pytest.raises(JobError):
        Upscaler(find_card("bicubic"), None, shown, shown, settings)


def test_allocator_tuning_can_be_called_twice() -> None:
    assert engine.tune_allocator() == engine.tune_allocator()


def test_naming_the_guessed_matrix_changes_no_sample() -> None:
    """An untagged 360-line clip becomes a 720-line one that names BT.601: still plane by plane."""
    shown = picture(640, 360, matrix=2)
    frame = noise_frame(shown)
    made = upscaler(find_card("nearest"), shown)
    assert not made._goes_through_rgb
    assert np.array_equal(made([frame])[0].planes[1][::2, ::2], frame.planes[1])
