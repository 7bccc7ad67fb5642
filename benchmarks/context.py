"""How far a video network's windows are from the whole sequence, as their context grows.

    python benchmarks/context.py CLIP... --model BasicVSR_REDS4        published weights, where there are some
    python benchmarks/context.py CLIP... --stand-in stand-in.pth       a small one trained here for minutes

Each clip is the truth: it is shrunk by four with an antialiased bicubic filter, upscaled once as one window
and once in windows of --window frames with each context, and both are held against it. Shown are the mean
and the worst frame's loss of luma PSNR, and the jump at borders: how much more the picture changes there from
frame to frame than it does in the whole sequence, in 8-bit codes. The rule that a card's context must meet:
mean <= 0.05 dB, worst frame <= 0.3 dB, and no jump (<= 0.05 codes).

    python benchmarks/context.py TRAIN_CLIP... --make-stand-in stand-in.pth --steps 800
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vsr_hpc.engine.colour import Coding
from vsr_hpc.engine.recurrent import Propagation
from vsr_hpc.media.clip.probe import index_clip, probe_clip
from vsr_hpc.media.clip.reader import read_frames
from vsr_hpc.media.source import local_source
from vsr_hpc.models.cards import Card, card_of_file, find_card
from vsr_hpc.models.networks import build
from vsr_hpc.models.weights import ensure, open_network
from vsr_hpc.planning.plan import Temporal, windows

SIDE = 80
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


def pictures_of(path: Path, most: int, side: int) -> Tensor:
    """(frames, 3, rows, columns) in [0, 1] of one scene, the middle of each frame, sides a multiple of 16."""
    source = local_source(path)
    clip = probe_clip(source)
    timeline = index_clip(clip, source)
    coding, made = Coding(clip.picture), []
    for frame in read_frames(clip, timeline, source, 0, min(most, len(timeline))):
        rgb = coding.to_rgb([torch.from_numpy(each.astype(np.float32))[None] for each in frame.planes])
        high, wide = (min(side, length // 16 * 16) for length in rgb.shape[-2:])
        top, left = (rgb.shape[-2] - high) // 2, (rgb.shape[-1] - wide) // 2
        made.append(rgb[0, :, top : top + high, left : left + wide].clamp(0, 1))
    return torch.stack(made)


def shrunk(pictures: Tensor) -> Tensor:
    small = functional.interpolate(pictures, scale_factor=0.25, mode="bicubic", antialias=True)
    return (small.clamp(0, 1) * 255).round() / 255


def luma(pictures: Tensor) -> Tensor:
    return sum(weight * pictures[:, i] for i, weight in enumerate(LUMA))  # type: ignore[return-value]


def psnr(made: Tensor, truth: Tensor) -> Tensor:
    error = (luma(made.clamp(0, 1)) - luma(truth))[:, 8:-8, 8:-8]
    return -10 * error.square().mean(dim=(1, 2)).log10()


def in_windows(runner: Propagation, small: Tensor, length: int, context: int) -> Tensor:
    rows, columns = small.shape[-2:]
    whole = [(slice(0, rows), slice(0, columns))]
    temporal = Temporal(longest=length, context=context, cuts=())
    made = []
    for each in windows(0, len(small), within=(0, len(small)), temporal=temporal):
        seen = small[each.read_start : each.read_stop]
        core = range(each.before, len(seen) - each.after)
        made += [parts[0] for parts in runner.run(lambda i, s=seen: s[i : i + 1], len(seen), core, whole)]
    return torch.cat(made)


def changes(made: Tensor, borders: list[int]) -> float:
    """Mean change of luma from the frame before to each border's frame, in codes."""
    values = luma(made.clamp(0, 1)) * 255
    return float(np.mean([(values[b] - values[b - 1]).abs().mean() for b in borders]))


def measure(path: Path, runner: Propagation, given: Any) -> None:
    truth = pictures_of(path, given.frames, given.side)
    small = shrunk(truth)
    plain = functional.interpolate(small, scale_factor=4.0, mode="bicubic")
    whole = in_windows(runner, small, len(small), 0)
    reference = psnr(whole, truth)
    borders = [
        each.start
        for each in windows(
            0, len(small), within=(0, len(small)), temporal=Temporal(longest=given.window, context=0, cuts=())
        )
    ][1:]
    steady = changes(whole, borders)
    size = f"{small.shape[-1]}x{small.shape[-2]}"
    print(f"\n{path.name}: {len(small)} frames of {size}, windows of {given.window}, {len(borders)} borders")
    print(f"bicubic {psnr(plain, truth).mean():.2f} dB, whole sequence {reference.mean():.2f} dB")
    print("| context | mean loss dB | worst frame dB | jump at borders, codes |\n|---|---|---|---|")
    for context in given.contexts:
        made = in_windows(runner, small, given.window, context)
        loss = reference - psnr(made, truth)
        jump = changes(made, borders) - steady
        print(f"| {context} | {loss.mean():+.4f} | {loss.max():+.3f} | {jump:+.3f} |", flush=True)


# A stand-in, where there are no published weights -----------------------------------------------------------


class NoFlow(nn.Module):
    """What SpyNet with zeros in its last layers gives, at no cost while training."""

    def forward(self, here: Tensor, there: Tensor) -> Tensor:
        return here.new_zeros((here.shape[0], 2, *here.shape[-2:]))


def train(paths: list[Path], target: Path, given: Any) -> None:
    """A BasicVSR of 16 features without motion compensation: only its memory is of interest here."""
    torch.manual_seed(0)
    card = stand_in_card(target)
    network, length = build(card), 15
    spynet = network.get_submodule("spynet")
    for name, parameter in spynet.named_parameters():
        if name.split(".")[-2] == "8":
            parameter.data.zero_()
    network.spynet = NoFlow()  # type: ignore[assignment]
    material = [pictures_of(path, given.frames, 480) for path in paths]
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-4)
    chance = np.random.default_rng(0)
    began = time.monotonic()
    for step in range(given.steps):
        clip = material[chance.integers(len(material))]
        at = chance.integers(0, len(clip) - length)
        top, left = (chance.integers(0, (side - SIDE) // 4 + 1) * 4 for side in clip.shape[-2:])
        truth = clip[at : at + length, :, top : top + SIDE, left : left + SIDE]
        loss = sparse_loss(network, shrunk(truth), truth, chance.choice(length, 2, replace=False))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 4e-4 * (1 - step / given.steps) + 1e-6
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - began:.0f} s", flush=True)
    network.spynet = spynet
    torch.save({"params": network.state_dict()}, target)


def sparse_loss(network: Any, small: Tensor, truth: Tensor, wanted: Any) -> Tensor:
    """Both directions over all frames; only some of them are finished, which is most of the work."""
    count, features = len(small), network.num_feat
    state, behind = small.new_zeros(1, features, *small.shape[-2:]), {}
    for i in reversed(range(count)):
        state = network.backward_trunk(torch.cat((small[i : i + 1], state), dim=1))
        behind[i] = state
    state, loss = torch.zeros_like(state), small.new_zeros(())
    for i in range(count):
        state = network.forward_trunk(torch.cat((small[i : i + 1], state), dim=1))
        if i in wanted:
            out = functional.leaky_relu(network.fusion(torch.cat((behind[i], state), dim=1)), 0.1)
            out = functional.leaky_relu(network.pixel_shuffle(network.upconv1(out)), 0.1)
            out = functional.leaky_relu(network.pixel_shuffle(network.upconv2(out)), 0.1)
            out = network.conv_last(functional.leaky_relu(network.conv_hr(out), 0.1))
            base = functional.interpolate(small[i : i + 1], scale_factor=4.0, mode="bilinear")
            error = out + base - truth[i : i + 1]
            loss = loss + (error.square() + 1e-6).sqrt().mean()
    return loss / len(wanted)


def stand_in_card(path: Path) -> Card:
    published = next(card for card in map(find_card, ["BasicVSR_REDS4"]))
    small = {"num_feat": 16, "num_block": 4}
    return published.model_copy(update={"name": path.stem, "parameters": tuple(sorted(small.items()))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--stand-in", type=Path)
    parser.add_argument("--make-stand-in", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--side", type=int, default=480, help="of the truth, in pixels, at most")
    parser.add_argument("--window", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contexts", type=int, nargs="+", default=[0, 1, 2, 3, 5, 8, 10, 15, 20])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.make_stand_in:
        train(given.clips, given.make_stand_in, given)
        return
    card = card_of_file(given.stand_in) if given.stand_in else find_card(given.model or "BasicVSR_REDS4")
    path = given.stand_in or ensure(card)
    network = open_network(card, path).eval().requires_grad_(False)
    if given.stand_in:  # its SpyNet ends in zeros, so this is the same
        network.spynet = NoFlow()  # type: ignore[assignment]
    runner = Propagation(network, card)
    for each in itertools.chain(given.clips):
        measure(each, runner, given)


if __name__ == "__main__":
    main()
