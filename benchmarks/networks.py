"""Networks alone on this CPU, against the matrix rate measured beside them: eager, compiled, OpenVINO.

    python benchmarks/networks.py
    python benchmarks/networks.py --rounds 9 --weights realesr-animevideov3.pth

bf16, all cores, as many frames side by side as the pipeline has lanes. Rounds are interleaved: the matrix
product, then every contestant, then the next round; the table has medians. `torch.compile` needs a C++
compiler and OpenVINO its package; what is not there is left out and said.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vsr_hpc.system.environment import set_thread_policy

set_thread_policy()
import torch

from benchmarks.random_weights import random_models
from vsr_hpc.bench.device_rates import matrix_gflops, seconds_of
from vsr_hpc.engine.device_facts import cpu_flags, cpu_name
from vsr_hpc.engine.platform import tune_allocator
from vsr_hpc.models import weights
from vsr_hpc.models.cards import Card

SIZES = {"compact": (320, 180), "compact32": (320, 180), "rrdb": (160, 90)}
CPU = torch.device("cpu")
Pass = Callable[[], object]


def main() -> None:
    wanted = _arguments()
    tune_allocator()
    torch.set_num_threads(1)
    lanes = len(os.sched_getaffinity(0))
    flags = " ".join(each for each in ("avx512_bf16", "amx_bf16") if each in cpu_flags())
    print(f"{cpu_name()}, {lanes} cores, {flags or 'no bf16 instructions'}, torch {torch.__version__}")
    print("| network | size | way | frames/s | GFLOP/s | of the matrix rate |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="vsr-networks-") as name, torch.inference_mode():
        for key, (card, path) in random_models(Path(name), wanted.weights).items():
            _network(key, card, path, lanes, wanted)
    print(f"load of this machine {os.getloadavg()[0]:.1f}; medians of {wanted.rounds} rounds")


def _network(key: str, card: Card, path: Path, lanes: int, wanted: argparse.Namespace) -> None:
    width, height = SIZES[key]
    contestants = _contestants(card, path, (width, height), lanes, wanted.ways)
    spent: dict[str, list[float]] = {each: [] for each in contestants}
    rates = []
    for _ in range(wanted.rounds):
        rates.append(matrix_gflops(CPU, "bf16", lanes=lanes))
        for each, (run, side_by_side) in contestants.items():
            spent[each] += seconds_of(run, CPU, rounds=1, lanes=side_by_side)
    rate = statistics.median(rates)
    operations = float(card.operations_per_pixel) * width * height / 1e9
    print(f"| (matrix product) | | | | {rate:.0f} | |")
    for each, seconds in spent.items():
        one = statistics.median(seconds)
        share = operations / one / rate
        print(f"| {key} | {width}x{height} | {each} | {1 / one:.2f} | {operations / one:.0f} | {share:.0%} |")


def _contestants(
    card: Card, path: Path, size: tuple[int, int], lanes: int, ways: list[str]
) -> dict[str, tuple[Pass, int]]:
    """Each way's pass over one frame, and how many of them run side by side."""
    network = weights.open_network(card, path).to(torch.bfloat16)
    network = network.to(memory_format=torch.channels_last)
    dice = torch.Generator().manual_seed(1)
    frame = torch.rand((1, 3, size[1], size[0]), generator=dice).to(torch.bfloat16)
    frame = frame.contiguous(memory_format=torch.channels_last)
    found: dict[str, tuple[Pass, int]] = {}
    if "eager" in ways:
        found[f"torch, {lanes} lanes"] = (_inferred(lambda: network(frame)), lanes)
    if "compiled" in ways:
        if shutil.which("g++"):
            compiled = torch.compile(network, fullgraph=True)
            found[f"torch.compile, {lanes} lanes"] = (_inferred(lambda: compiled(frame)), lanes)
        else:
            print("no g++: torch.compile left out", file=sys.stderr)
    if "openvino" in ways:
        if importlib.util.find_spec("openvino"):
            found["OpenVINO"] = (_openvino(weights.open_network(card, path), frame.float(), lanes), 1)
        else:
            print("no openvino package: left out", file=sys.stderr)
    return found


def _inferred(run: Pass) -> Pass:
    """Threads of their own do not inherit the mode."""

    def inside() -> object:
        with torch.inference_mode():
            return run()

    return inside


def _openvino(network: torch.nn.Module, frame: torch.Tensor, threads: int) -> Pass:
    import openvino

    model: Any = openvino.convert_model(network, example_input=frame, input=[tuple(frame.shape)])
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(model, "CPU", {**hints, "PERFORMANCE_HINT": "LATENCY"})
    request, samples = compiled.create_infer_request(), frame.numpy()
    return lambda: request.infer([samples], share_inputs=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="of Compact-16; random ones if left out")
    parser.add_argument("--rounds", type=int, default=7)
    every = ["eager", "compiled", "openvino"]
    parser.add_argument("--ways", nargs="*", default=every, choices=every)
    return parser.parse_args()


if __name__ == "__main__":
    main()
