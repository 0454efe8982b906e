"""Samples a second, and the share of the device's peak, of the diffraction networks.

    python -m benchmarks.device_throughput                     # both presets of the seed, on a GPU
    python -m benchmarks.device_throughput --presets tiny --plane 32 --device cpu --steps 3

A step is forward, L1 loss, backward and Adam, under autocast in bf16 (weights in float32), on one
batch of random data. Variants, in turn, round by round: eager and compiled, channels-last or not.
A step counts as three forwards, as the headline numbers of Laanait et al. 2019 do; the peak is that
of a product of matrices in bf16, measured in the same run. The most expensive operators of an eager
and of a compiled step come from torch.profiler. A variant that does not fit the memory is recorded
as such.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.environment import describe_environment, write_json
from benchmarks.rounds import in_turn
from zoo.callback.throughput import TRAINING_PER_FORWARD
from zoo.callback.throughput_peak import measure_peak_flop_per_s, timed_s
from zoo.net.flop import forward_flop
from zoo.runtime import CONFIG_DIR

VARIANTS = {
    f"{how}, {order}": {"compiled": how == "compiled", "channels_last": order == "channels-last"}
    for how in ("eager", "compiled")
    for order in ("contiguous", "channels-last")
}
TOP_OPERATORS = 12
WARM_UP_STEPS = 3


def preset(name: str) -> DictConfig:
    """`conf/net/fc_densenet_<name>.yaml` over what it builds on."""
    config = OmegaConf.load(CONFIG_DIR / "net" / f"fc_densenet_{name}.yaml")
    base = OmegaConf.load(CONFIG_DIR / "net" / "fc_densenet.yaml")
    config.pop("defaults")
    return OmegaConf.merge(base, config)


def build(config: DictConfig, options: argparse.Namespace, **variant: bool) -> nn.Module:
    plane = options.plane if config.plane_px is not None else None
    with torch.device(options.device):
        net = instantiate(
            config,
            plane_px=plane,
            channels_last=variant["channels_last"],
            activation_checkpointing=options.checkpointing,
        )
    if variant["compiled"]:
        net.compile()
    return net


def training_step(net: nn.Module, x: Tensor, upscale: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    truth = torch.zeros(len(x), 1, x.shape[2] * upscale, x.shape[3] * upscale, device=x.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            image = net(x)
        F.l1_loss(image.float(), truth).backward()
        optimizer.step()

    return step


def measure_preset(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All variants of one preset, one variant's network in memory at a time."""
    config = preset(name)
    x = torch.randn(
        options.batch, config.in_channels, options.plane, options.plane, device=options.device
    )
    with torch.device("meta"):
        net = instantiate(config, plane_px=options.plane if config.plane_px else None)
    flop = TRAINING_PER_FORWARD * forward_flop(net, x[:1])
    result: dict[str, Any] = {
        "n_weights": sum(p.numel() for p in net.parameters()),
        "flop_per_sample": flop,
        "input": list(x.shape),
        "variants": {},
    }
    seconds: dict[str, list[float]] = {}
    peaks: list[float] = []
    rounds = tqdm(range(options.rounds), desc=name)
    for number in rounds:
        peaks.append(measure_peak_flop_per_s(x.device, torch.bfloat16))
        for variant in in_turn(VARIANTS, number):
            _round(config, options, variant, x, seconds, result["variants"])
    result["peak_flop_per_s"] = median(peaks)
    for variant, times in seconds.items():
        result["variants"][variant] |= _summary(times, options.batch, flop, median(peaks))
    return result


def _round(
    config: DictConfig,
    options: argparse.Namespace,
    variant: str,
    x: Tensor,
    seconds: dict[str, list[float]],
    results: dict[str, Any],
) -> None:
    if "failed" in results.get(variant, {}):
        return
    try:
        net = build(config, options, **VARIANTS[variant])
        step = training_step(net, x, config.upscale)
        for _ in range(WARM_UP_STEPS):
            step()
        seconds.setdefault(variant, []).extend(
            timed_s(step, x.device) for _ in range(options.steps)
        )
        if variant not in results:
            results[variant] = {"top_operators": _top_operators(step, x.device), **_memory(x)}
    except torch.OutOfMemoryError as error:
        results[variant] = {"failed": f"out of memory: {error}".splitlines()[0]}
    finally:
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _summary(times: list[float], batch: int, flop: int, peak: float) -> dict[str, Any]:
    low, middle, high = quantiles(times, n=4)
    return {
        "step_s": times,
        "step_s_quartiles": [low, middle, high],
        "samples_per_s": batch / middle,
        "flop_per_s": batch * flop / middle,
        "peak_share": batch * flop / middle / peak,
    }


def _memory(x: Tensor) -> dict[str, int]:
    if x.device.type != "cuda":
        return {}
    return {"peak_memory_nbytes": torch.cuda.max_memory_allocated(x.device)}


def _top_operators(step: Callable[[], None], device: torch.device) -> list[dict[str, Any]]:
    """Where the time of one step goes: operators by their own time on the device."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        timed_s(step, device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: getattr(e, key), reverse=True)
    total = sum(getattr(event, key) for event in events)
    return [
        {"name": e.key, "calls": e.count, "share": getattr(e, key) / total}
        for e in events[:TOP_OPERATORS]
    ]


def _print(name: str, result: dict[str, Any]) -> None:
    print(
        f"{name}: {result['n_weights']:,} weights, {result['flop_per_sample'] / 1e12:.4g} TFLOP a "
        f"sample, peak {result['peak_flop_per_s'] / 1e12:.4g} TFLOP/s"
    )
    for variant, row in result["variants"].items():
        if "failed" in row:
            print(f"  {variant:<24} {row['failed']}")
            continue
        top = row["top_operators"][0]
        print(
            f"  {variant:<24} {row['samples_per_s']:9.3f} samples/s  "
            f"{row['peak_share']:6.1%} of peak  (most time: {top['name']}, {top['share']:.0%})"
        )


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{describe_environment()['cpu']}, {torch.get_num_threads()} thread(s)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["23m", "220m"], help="23m, 220m, tiny")
    parser.add_argument(
        "--plane", type=int, default=512, help="side of the input's plane in pixels"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a variant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    options = parser.parse_args()
    results = {}
    for name in options.presets:
        results[name] = measure_preset(name, options)
        _print(name, results[name])
    if options.output:
        environment = describe_environment() | {"device": device_name(options.device)}
        write_json(options.output, {"environment": environment, "results": results})
        print(f"written to {options.output}")


if __name__ == "__main__":
    main()
