"""The sources: how each is made with Debian's ffmpeg, mkvmerge and libheif, and what is due from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source. `lines` are shell commands that write `{out}`; `{t}` is a folder for what they need.

    `refused` is a part of the sentence with which it must be refused. `loses` names checks in which the
    output may differ, since it says so itself. Pictures are compared bit by bit where `is_exact`: other
    codecs are decoded with other rounding by other versions of FFmpeg. `seen` names a file beside it that
    the tools read in its place, where Debian's cannot read it.
    """

    name: str
    family: str
    suffix: str
    lines: tuple[str, ...]
    output: str = ".mkv"
    refused: str = ""
    loses: tuple[str, ...] = ()
    is_exact: bool = True
    seen: str = ""
    options: dict[str, Any] = field(default_factory=dict)


FF = "ffmpeg -v error -nostdin -y"
V = "-f lavfi -i testsrc2=s=64x48:r=10:d=1.2"
BIG = "-f lavfi -i testsrc2=s=128x96:r=10:d=1.2"
A = "-f lavfi -i sine=440:r=44100:d=1.2"
X264 = "-c:v libx264 -preset veryfast -threads 1"
AV1 = "-c:v libaom-av1 -cpu-used 8 -row-mt 0 -threads 1 -crf 40 -b:v 0"


def encode(options: str, source: str = V) -> tuple[str, ...]:
    return (f"{FF} {source} {options} {{out}}",)


def all_sources() -> tuple[Source, ...]:
    found = (
        *_codecs(),
        *_layouts(),
        *_colours(),
        *_times(),
        *_sounds(),
        *_beside(),
        *_shapes(),
        *_stills(),
        *_faults(),
    )
    names = [each.name for each in found]
    assert len(set(names)) == len(names), "two sources have one name"
    return found


def _codecs() -> Iterator[Source]:
    """Codec and container. DCT codecs are decoded with other rounding by other versions of FFmpeg."""
    plain = {
        "h264": (X264, "mp4 mkv mov ts avi flv m4v 3gp nut"),
        "hevc": ("-c:v libx265 -preset ultrafast -x265-params log-level=error", "mp4 mkv ts mov"),
        "vp8": ("-c:v libvpx", "webm mkv"),
        "vp9": ("-c:v libvpx-vp9 -cpu-used 8", "webm mkv mp4 ivf"),
        "ffv1": ("-c:v ffv1 -level 3", "mkv avi nut"),
        "huffyuv": ("-c:v huffyuv -pix_fmt yuv422p", "avi"),
        "ffvhuff": ("-c:v ffvhuff", "avi mkv"),
        "utvideo": ("-c:v utvideo", "avi mkv"),
        "qtrle": ("-c:v qtrle", "mov"),
        "png": ("-c:v png -pix_fmt rgb24", "mov avi"),
        "raw": ("-c:v rawvideo -pix_fmt yuv420p", "avi nut"),
        "raw-uyvy": ("-c:v rawvideo -pix_fmt uyvy422", "mov"),
        "raw-bgr": ("-c:v rawvideo -pix_fmt bgr24", "avi"),
        "v210": ("-c:v v210 -pix_fmt yuv422p10le", "mov"),
        "magicyuv": ("-c:v magicyuv -pix_fmt yuv444p", "avi"),
    }
    for codec, (options, suffixes) in plain.items():
        for suffix in suffixes.split():
            yield Source(
                name=f"{codec}-{suffix}",
                family="codecs",
                suffix=f".{suffix}",
                lines=encode(options),
                loses=("times",) if (codec, suffix) == ("h264", "avi") else (),  # AVI has none of B-frames
            )
    yield Source(name="av1-mp4", family="codecs", suffix=".mp4", lines=encode(AV1, BIG))
    yield Source(name="av1-webm", family="codecs", suffix=".webm", lines=encode(AV1, BIG))
    yield Source(name="av1-mkv", family="codecs", suffix=".mkv", lines=encode(AV1, BIG))
    yield Source(name="gif", family="codecs", suffix=".gif", lines=encode(""))
    rounded = {
        "mpeg2": ("-r 25 -c:v mpeg2video", "mpg ts mkv vob mxf m2v"),
        "mpeg1": ("-r 25 -c:v mpeg1video", "mpg mkv"),
        "mpeg4": ("-c:v mpeg4", "avi mp4 mkv m4v"),
        "msmpeg4": ("-c:v msmpeg4", "avi"),
        "wmv1": ("-c:v wmv1", "asf"),
        "wmv2": ("-c:v wmv2", "wmv"),
        "flv1": ("-c:v flv1", "flv"),
        "theora": ("-c:v libtheora", "ogv mkv"),
        "mjpeg": ("-c:v mjpeg -pix_fmt yuvj420p", "avi mov mkv"),
        "prores": ("-c:v prores_ks -profile:v 3", "mov mkv"),
        "cinepak": ("-c:v cinepak", "avi"),
        "svq1": ("-c:v svq1 -pix_fmt yuv410p", "mov"),
        "snow": ("-c:v snow -strict -2", "nut"),
        "jpeg2000": ("-c:v jpeg2000", "mov"),
        "roq": ("-r 30 -s 64x48 -c:v roqvideo", "roq"),
    }
    for codec, (options, suffixes) in rounded.items():
        for suffix in suffixes.split():
            yield Source(
                name=f"{codec}-{suffix}",
                family="codecs",
                suffix=f".{suffix}",
                lines=encode(options),
                is_exact=False,
            )
    yield Source(
        name="dv-avi",
        family="codecs",
        suffix=".avi",
        lines=encode("-c:v dvvideo -pix_fmt yuv420p -s 720x576 -r 25 -frames:v 6"),
        is_exact=False,
        options={"picture": {"field_order": "progressive"}},
    )
    yield Source(
        name="dnxhd-mov",
        family="codecs",
        suffix=".mov",
        lines=encode("-c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p -s 256x128 -frames:v 5"),
        is_exact=False,
    )
    for suffix in ("h264", "hevc"):
        coded = X264 if suffix == "h264" else "-c:v libx265 -preset ultrafast -x265-params log-level=error"
        yield Source(
            name=f"raw-{suffix}",
            family="codecs",
            suffix=f".{suffix}",
            lines=encode(coded),
            options={"images": {"rate": 10}},
            loses=("times",),
        )


def _layouts() -> Iterator[Source]:
    """Sample layouts, most of them in FFV1."""
    names = (
        "yuv444p yuv422p yuv411p yuv440p yuv410p yuv420p10le yuv422p10le yuv444p10le yuv420p12le yuv422p12le "
        "yuv444p12le yuv420p16le yuv422p16le yuv444p16le gray gray10le gray12le gray16le gbrp10le gbrp12le "
        "gbrp14le gbrp16le yuva420p yuva422p yuva444p yuva420p10le yuva444p10le gbrap10le bgr0 bgra rgb48le"
    )
    for name in names.split():
        yield Source(
            name=f"ffv1-{name}",
            family="sample layouts",
            suffix=".mkv",
            lines=encode(f"-c:v ffv1 -level 3 -pix_fmt {name}"),
        )
    for profile, name in (("high10", "yuv420p10le"), ("high422", "yuv422p"), ("high444", "yuv444p")):
        yield Source(
            name=f"h264-{name}",
            family="sample layouts",
            suffix=".mp4",
            output=".mp4",
            lines=encode(f"{X264} -profile:v {profile} -pix_fmt {name}"),
        )
    for name in ("yuv420p10le", "yuv422p10le", "yuv444p", "yuv444p12le", "gray", "gbrp"):
        yield Source(
            name=f"hevc-{name}",
            family="sample layouts",
            suffix=".mkv",
            lines=encode(f"-c:v libx265 -preset ultrafast -x265-params log-level=error -pix_fmt {name}"),
        )


def _colours() -> Iterator[Source]:
    """Colour tags, ranges, siting, static HDR10."""
    spaces = {
        "bt709": (1, "bt709", "bt709", "bt709"),
        "smpte170m": (6, "smpte170m", "smpte170m", "smpte170m"),
        "bt470bg": (5, "bt470bg", "bt470bg", "gamma28"),
        "smpte240m": (7, "smpte240m", "smpte240m", "smpte240m"),
        "fcc": (4, "fcc", "bt470m", "gamma22"),
        "bt2020": (9, "bt2020nc", "bt2020", "bt2020-10"),
        "ycgco": (8, "ycgco", "bt709", "bt709"),
    }
    for name, (_, matrix, primaries, transfer) in spaces.items():
        for span in ("tv", "pc"):
            tags = (
                f"-colorspace {matrix} -color_primaries {primaries} -color_trc {transfer} -color_range {span}"
            )
            yield Source(
                name=f"colour-{name}-{span}",
                family="colour",
                suffix=".mp4",
                output=".mp4",
                lines=encode(f"{X264} -pix_fmt yuv444p {tags}" if name == "ycgco" else f"{X264} {tags}"),
            )
    for place in ("left", "center", "topleft", "top", "bottomleft"):
        yield Source(
            name=f"siting-{place}",
            family="colour",
            suffix=".mp4",
            output=".mp4",
            lines=encode(f"{X264} -chroma_sample_location {place}"),
        )
    light = (
        "max-cll=1000,400:"
        "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    )
    for name, transfer in (("pq", "smpte2084"), ("hlg", "arib-std-b67")):
        tags = f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc:range=limited"
        for suffix in (".mp4", ".mkv"):
            params = f"log-level=error:{tags}" + (f":hdr10=1:{light}" if name == "pq" else "")
            yield Source(
                name=f"hdr-{name}-{suffix[1:]}",
                family="colour",
                suffix=suffix,
                output=suffix,
                lines=encode(f"-c:v libx265 -preset ultrafast -pix_fmt yuv420p10le -x265-params '{params}'"),
            )
    yield Source(
        name="limited-range-alone",
        family="colour",
        suffix=".webm",
        output=".mp4",
        lines=encode("-c:v libvpx-vp9 -cpu-used 8 -color_range tv"),
    )
    yield Source(
        name="mjpeg-422-centre",
        family="colour",
        suffix=".mov",
        output=".mp4",
        lines=encode("-c:v mjpeg -pix_fmt yuvj422p -q:v 3"),
        is_exact=False,
        loses=("siting",),
    )


def _times() -> Iterator[Source]:
    """Frame rates, variable rates, offsets, order of frames."""
    for rate in ("24000/1001", "30000/1001", "60000/1001", "1", "12", "50", "120", "1000/1001", "17/2"):
        for suffix in (".mp4", ".mkv"):
            yield Source(
                name=f"rate-{rate.replace('/', 'over')}-{suffix[1:]}",
                family="time",
                suffix=suffix,
                output=suffix,
                lines=encode(f"{X264} -frames:v 12", f"-f lavfi -i testsrc2=s=64x48:r={rate}"),
            )
    jitter = "-vf \"setpts='(N+0.4*mod(N*7,5)/5)/10/TB'\" -vsync vfr -video_track_timescale 90000"
    yield Source(
        name="vfr-mp4", family="time", suffix=".mp4", output=".mp4", lines=encode(f"{jitter} {X264}")
    )
    yield Source(
        name="vfr-mkv", family="time", suffix=".mkv", lines=encode(f"{jitter.split(' -video')[0]} {X264}")
    )
    gap = "-vf \"setpts='(N+if(gt(N,5),40,0))/10/TB'\" -vsync vfr"
    yield Source(name="gap-mkv", family="time", suffix=".mkv", lines=encode(f"{gap} {X264}"))
    for shift in ("0.5", "-0.5", "7", "36000"):
        for suffix in (".mkv", ".ts") if not shift.startswith("-") else (".mp4",):
            yield Source(
                name=f"offset-{shift}-{suffix[1:]}",
                family="time",
                suffix=suffix,
                lines=(f"{FF} {V} {A} {X264} -c:a aac -output_ts_offset {shift} -muxdelay 0 {{out}}",),
                # Debian's FFmpeg 5.1 does not skip the samples that Matroska says of AAC; later ones do.
                loses=("sound",) if shift.startswith("-") else (),
            )
    for name, options in {
        "b-pyramid": "-bf 4 -x264-params b-pyramid=normal:b-adapt=0:ref=4",
        "open-gop": "-g 6 -bf 2 -x264-params open-gop=1:b-adapt=0",
        "intra": "-g 1",
        "one-gop": "-g 1000 -bf 3",
        "field-coded-flags": "-flags +ilme",
    }.items():
        for suffix in (".mp4", ".ts"):
            yield Source(
                name=f"{name}-{suffix[1:]}",
                family="time",
                suffix=suffix,
                lines=encode(f"{X264} {options}"),
                options={"picture": {"field_order": "progressive"}} if "field" in name else {},
            )
    for count in (1, 2):
        yield Source(
            name=f"frames-{count}",
            family="time",
            suffix=".mp4",
            output=".mp4",
            lines=encode(f"{X264} -frames:v {count}"),
        )
    yield Source(
        name="cut-by-edit-list",
        family="time",
        suffix=".mp4",
        output=".mp4",
        lines=(
            f"{FF} {V} {A} {X264} -g 100 -c:a aac {{t}}/a.mp4",
            f"{FF} -ss 0.5 -i {{t}}/a.mp4 -c copy {{out}}",
        ),
    )


def _sounds() -> Iterator[Source]:
    kinds = {
        "aac": ("-c:a aac", "mp4 mkv ts mov"),
        "mp3": ("-c:a libmp3lame", "mp4 mkv avi ts"),
        "mp2": ("-c:a mp2", "mkv ts"),
        "ac3": ("-c:a ac3", "mp4 mkv ts"),
        "eac3": ("-c:a eac3", "mkv mp4"),
        "opus": ("-c:a libopus", "mkv mp4"),
        "vorbis": ("-c:a libvorbis", "mkv"),
        "flac": ("-c:a flac -strict -2", "mkv mp4"),
        "alac": ("-c:a alac", "mov mkv mp4"),
        "pcm16": ("-c:a pcm_s16le", "mkv avi mov"),
        "pcm24": ("-c:a pcm_s24le", "mkv mov"),
        "pcm-be": ("-c:a pcm_s16be", "mov"),
        "pcm-float": ("-c:a pcm_f32le", "mkv"),
        "pcm8": ("-c:a pcm_u8", "avi"),
        "mulaw": ("-c:a pcm_mulaw", "avi mov"),
        "adpcm-ms": ("-c:a adpcm_ms", "avi"),
        "adpcm-ima": ("-c:a adpcm_ima_wav", "avi"),
        "wma1": ("-c:a wmav1", "asf"),
        "wma2": ("-c:a wmav2", "asf mkv"),
        "tta": ("-c:a tta", "mkv"),
        "wavpack": ("-c:a wavpack", "mkv"),
        "truehd": ("-ar 48000 -c:a truehd -strict -2", "mkv"),
        "dts": ("-ar 48000 -c:a dca -strict -2", "mkv"),
    }
    for kind, (options, suffixes) in kinds.items():
        for suffix in suffixes.split():
            video = "-c:v mpeg4" if suffix in ("avi", "asf") else X264
            yield Source(
                name=f"sound-{kind}-{suffix}",
                family="sound",
                suffix=f".{suffix}",
                output=".mkv" if suffix in ("ts", "avi", "asf") else f".{suffix}",
                lines=(f"{FF} {V} {A} {video} {options} {{out}}",),
                is_exact=suffix not in ("avi", "asf"),
            )
    for layout in ("mono", "5.1", "7.1"):
        yield Source(
            name=f"sound-{layout}",
            family="sound",
            suffix=".mkv",
            lines=(
                f"{FF} {V} -f lavfi -i anoisesrc=d=1.2:c=pink -af aformat=channel_layouts={layout} {X264} "
                "-c:a flac {out}",
            ),
        )
    for shift in ("0.3", "-0.2"):
        for suffix in (".mkv", ".mp4"):
            yield Source(
                name=f"sound-at-{shift}-{suffix[1:]}",
                family="sound",
                suffix=suffix,
                output=suffix,
                lines=(f"{FF} {V} -itsoffset {shift} {A} {X264} -c:a ac3 {{out}}",),
            )
    for seconds in ("0.4", "3"):
        yield Source(
            name=f"sound-of-{seconds}s",
            family="sound",
            suffix=".mkv",
            lines=(f"{FF} {V} -f lavfi -i sine=440:d={seconds} {X264} -c:a aac {{out}}",),
        )
    yield Source(
        name="sound-two-languages",
        family="sound",
        suffix=".mkv",
        lines=(
            f"{FF} {V} {A} -f lavfi -i sine=880:d=1.2 -map 0 -map 1 -map 2 {X264} -c:a aac "
            "-metadata:s:a:0 language=deu "
            "-metadata:s:a:1 language=fra -metadata:s:a:1 title='Deuxième piste' -disposition:a:0 0 "
            "-disposition:a:1 default {out}",
        ),
    )


SRT = (
    "printf '1\\n00:00:00,100 --> 00:00:00,500\\n<i>One</i>\\n\\n2\\n00:00:00,600 --> 00:00:01,100\\nTwo\\n' "
    ">{t}/a.srt"
)


def _beside() -> Iterator[Source]:
    """Subtitles, chapters, attachments, covers, tags, dispositions."""
    for codec, suffix in (
        ("srt", "mkv"),
        ("ass", "mkv"),
        ("webvtt", "mkv"),
        ("mov_text", "mp4"),
        ("mov_text", "mov"),
    ):
        yield Source(
            name=f"captions-{codec}-{suffix}",
            family="beside the picture",
            suffix=f".{suffix}",
            output=f".{suffix}",
            lines=(SRT, f"{FF} {V} -i {{t}}/a.srt {X264} -c:s {codec} -metadata:s:s language=eng {{out}}"),
        )
    yield Source(
        name="captions-dvd",
        family="beside the picture",
        suffix=".mkv",
        lines=(
            SRT,
            f"{FF} {V} -f lavfi -i color=s=64x48 -i {{t}}/a.srt -map 0 -map 2 {X264} -c:s srt {{t}}/b.mkv",
            "mkvmerge -q -o {out} --forced-display-flag 1:1 --default-track-flag 1:0 {t}/b.mkv",
        ),
    )
    meta = (
        "printf ';FFMETADATA1\\ntitle=Ünïcode — title\\ncomment=a, b\\n"
        "[CHAPTER]\\nTIMEBASE=1/1000\\nSTART=0\\nEND=400\\n"
        "title=First\\n[CHAPTER]\\nTIMEBASE=1/1000\\nSTART=400\\nEND=1200\\ntitle=Second\\n' >{t}/m.txt"
    )
    for suffix in ("mkv", "mp4", "mov"):
        yield Source(
            name=f"chapters-tags-{suffix}",
            family="beside the picture",
            suffix=f".{suffix}",
            output=f".{suffix}",
            lines=(meta, f"{FF} {V} -i {{t}}/m.txt -map_metadata 1 {X264} {{out}}"),
        )
        yield Source(
            name=f"cover-{suffix}",
            family="beside the picture",
            suffix=f".{suffix}",
            output=f".{suffix}",
            lines=(
                f"{FF} -f lavfi -i color=red:s=32x32 -frames:v 1 {{t}}/c.png",
                f"{FF} {V} {X264} -attach {{t}}/c.png -metadata:s:t mimetype=image/png {{out}}"
                if suffix == "mkv"
                else f"{FF} {V} -i {{t}}/c.png -map 0 -map 1 {X264} -c:v:1 png "
                "-disposition:v:1 attached_pic {out}",
            ),
        )
    yield Source(
        name="font",
        family="beside the picture",
        suffix=".mkv",
        lines=(
            "head -c 3000 /dev/zero >{t}/f.ttf",
            f"{FF} {V} {X264} -attach {{t}}/f.ttf -metadata:s:t mimetype=application/x-truetype-font {{out}}",
        ),
    )
    yield Source(
        name="font-to-mp4",
        family="beside the picture",
        suffix=".mkv",
        output=".mp4",
        lines=(
            "head -c 3000 /dev/zero >{t}/f.ttf",
            f"{FF} {V} {X264} -attach {{t}}/f.ttf -metadata:s:t mimetype=application/x-truetype-font {{out}}",
        ),
        refused=".mp4 cannot hold it; name the output .mkv",
    )
    yield Source(
        name="location-mov",
        family="beside the picture",
        suffix=".mov",
        output=".mov",
        lines=encode(f"{X264} -metadata location='+40.7388-074.0002+035.880/'"),
    )
    yield Source(
        name="phone-tags-mov",
        family="beside the picture",
        suffix=".mov",
        output=".mov",
        lines=encode(
            f"{X264} -movflags use_metadata_tags -metadata com.apple.quicktime.make=Maker "
            "-metadata com.apple.quicktime.location.ISO6709='+40.7388-074.0002+035.880/'"
        ),
    )
    yield Source(
        name="timecode-mov",
        family="beside the picture",
        suffix=".mov",
        output=".mov",
        lines=encode(f"{X264} -r 25 -timecode 01:02:03:04"),
    )
    yield Source(
        name="two-videos",
        family="beside the picture",
        suffix=".mkv",
        lines=(f"{FF} {V} -f lavfi -i testsrc=s=32x32:r=10:d=1.2 -map 0 -map 1 {X264} {{out}}",),
    )


def _shapes() -> Iterator[Source]:
    """Sizes, sample aspects, rotation, two views in a picture."""
    for size in ("65x49", "16x16", "2x2", "320x8", "8x320", "66x50", "126x94"):
        layout = "yuv444p" if size in ("65x49",) else "yuv420p"
        yield Source(
            name=f"size-{size}",
            family="shape",
            suffix=".mkv",
            lines=encode(f"{X264} -pix_fmt {layout}", f"-f lavfi -i testsrc2=s={size}:r=10:d=0.8"),
        )
    for aspect in ("128/117", "16/11", "1/2", "10/11"):
        for suffix in (".mp4", ".mkv"):
            yield Source(
                name=f"aspect-{aspect.replace('/', 'to')}-{suffix[1:]}",
                family="shape",
                suffix=suffix,
                output=suffix,
                lines=encode(f"-vf setsar={aspect} {X264}"),
            )
    for turn in (90, 180, 270):
        yield Source(
            name=f"turned-{turn}",
            family="shape",
            suffix=".mp4",
            output=".mp4",
            lines=(
                f"{FF} {V} {X264} {{t}}/a.mp4",
                f"{FF} -i {{t}}/a.mp4 -c copy -metadata:s:v rotate={turn} {{out}}",
            ),
        )
    modes = "side_by_side_left_first side_by_side_right_first top_bottom_left_first top_bottom_right_first"
    for mode in modes.split():
        yield Source(
            name=f"views-{mode}",
            family="shape",
            suffix=".mkv",
            lines=(
                f"{FF} {V} {X264} {{t}}/a.mkv",
                f"mkvmerge -q -o {{out}} --stereo-mode 0:{mode} {{t}}/a.mkv",
            ),
        )
    yield Source(
        name="display-size",
        family="shape",
        suffix=".mkv",
        lines=(f"{FF} {V} {X264} {{t}}/a.mkv", "mkvmerge -q -o {out} --display-dimensions 0:96x48 {t}/a.mkv"),
    )
    yield Source(
        name="crop",
        family="shape",
        suffix=".mkv",
        lines=(f"{FF} {V} {X264} {{t}}/a.mkv", "mkvmerge -q -o {out} --cropping 0:2,2,2,2 {t}/a.mkv"),
        refused="asks players to crop the picture",
    )


def _stills() -> Iterator[Source]:
    def still(name: str, suffix: str, options: str, output: str = ".png", **more: Any) -> Source:
        return Source(
            name=f"still-{name}",
            family="stills",
            suffix=suffix,
            output=output,
            lines=encode(f"-frames:v 1 -update 1 {options}"),
            **more,
        )

    yield still("png", ".png", "-pix_fmt rgb24")
    yield still("png-grey", ".png", "-pix_fmt gray")
    yield still("png-16", ".png", "-pix_fmt rgb48be")
    yield still("png-alpha", ".png", "-pix_fmt rgba")
    yield still("png-palette", ".png", "-pix_fmt pal8")
    yield still("png-bits", ".png", "-pix_fmt monob")
    yield still("tiff", ".tif", "-pix_fmt rgb24", ".tif")
    yield still("tiff-16", ".tif", "-pix_fmt rgb48le", ".tif")
    yield still("jpeg", ".jpg", "-pix_fmt yuvj420p -q:v 2", ".jpg", is_exact=False)
    yield still("webp", ".webp", "-lossless 1", ".png", is_exact=False)
    yield still("exr", ".exr", "-pix_fmt gbrpf32le", ".exr")
    yield still("exr-half", ".exr", "-pix_fmt gbrpf32le -format half", ".exr")
    flat = "-f lavfi -i testsrc2=s=128x96:r=10:d=1.2"
    yield Source(
        name="still-avif",
        family="stills",
        suffix=".avif",
        output=".png",
        lines=(f"{FF} {flat} -frames:v 1 -still-picture 1 {AV1} {{out}}",),
        is_exact=False,
    )
    yield Source(
        name="still-heic",
        family="stills",
        suffix=".heic",
        output=".png",
        lines=(
            f"{FF} {flat} -frames:v 1 {{t}}/a.png",
            "heif-enc -q 90 {t}/a.png -o {out}",
            "heif-convert {out} {t}/seen.png",
        ),
        is_exact=False,
        seen="seen.png",
    )


def _faults() -> Iterator[Source]:
    """What cannot be upscaled as it is, and is refused with a sentence."""

    def fault(name: str, suffix: str, refused: str, *lines: str) -> Source:
        return Source(name=f"fault-{name}", family="faults", suffix=suffix, lines=lines, refused=refused)

    mp4 = f"{FF} {V} {X264} -g 6 {{t}}/a.mp4"
    yield fault("cut-off-mp4", ".mp4", "cut off", mp4, "head -c 2000 {t}/a.mp4 >{out}")
    yield fault("no-moov", ".mp4", "the file is cut off", mp4, "head -c 900 {t}/a.mp4 >{out}")
    yield fault("empty", ".mp4", "is empty", ": >{out}")
    yield fault("text", ".mkv", "cannot open this as a video", "echo hello >{out}")
    yield fault("sound-alone", ".mp4", "has no video stream", f"{FF} {A} -c:a aac {{out}}")
    yield fault("playlist", ".mp4", "cannot open", "printf '#EXTM3U\\n#EXTINF:1,\\n/etc/passwd\\n' >{out}")
    for order in ("tff", "bff"):
        yield fault(
            f"interlaced-{order}",
            ".mkv",
            "is interlaced",
            f"{FF} -f lavfi -i testsrc2=s=64x48:r=50:d=1 -vf tinterlace=interleave_top,setfield={order} "
            f"{X264} -flags +ilme+ildct -x264-params {order}=1 {{out}}",
        )
    part = f"{FF} -f lavfi -i testsrc2=s={{size}}:r=10:d=0.6 {X264}"
    yield fault(
        "size-changes",
        ".ts",
        "the picture changes at frame",
        part.replace("{size}", "64x48") + " -muxdelay 0 {t}/a.ts",
        part.replace("{size}", "96x48") + " -muxdelay 0 -output_ts_offset 0.6 {t}/b.ts",
        "cat {t}/a.ts {t}/b.ts >{out}",
    )
    tags = "-x264-params colormatrix={m}:colorprim={m}:transfer={m}"
    yield fault(
        "colour-changes",
        ".ts",
        "the colour tags change at frame",
        part.replace("{size}", "64x48") + f" {tags.replace('{m}', 'bt709')} -muxdelay 0 {{t}}/a.ts",
        part.replace("{size}", "64x48")
        + f" {tags.replace('{m}', 'smpte170m')} -muxdelay 0 -output_ts_offset 0.6 {{t}}/b.ts",
        "cat {t}/a.ts {t}/b.ts >{out}",
    )
    yield fault(
        "two-recordings",
        ".ts",
        "the clock jumps back",
        part.replace("{size}", "64x48") + " {t}/a.ts",
        "cat {t}/a.ts {t}/a.ts >{out}",
    )
