"""Look at versions, ranks and the network before a long job.

Alone it tells of this machine. Started as the job will be, on every rank, it measures the link too:

    torchrun --nproc-per-node 2 --no-python gradsched doctor
"""

from __future__ import annotations

import os
import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_gradsched.core.candidates import candidates
from lightning_gradsched.core.cost import AlphaBeta, Fit, fit_all_reduce
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile
from lightning_gradsched.errors import ProcessGroupError, ProfileError

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PACKAGES = ("lightning-gradsched", "torch", "lightning", "pytorch-lightning", "numpy")
SIZES_NBYTES = (1 << 10, 1 << 20, 25 << 20)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--profile", type=Path, help="a backward profile (JSON): predict plans for that model")
    add("--backend", choices=("gloo", "nccl"), help="default: nccl where there is a GPU")
    add("--timeout-s", type=float, default=60.0, help="the longest wait for another rank")


def run(args: Namespace) -> int:
    """Print what is found, on rank 0.

    Raises:
        ProfileError: the profile cannot be read, or is given where no network can be measured.
        ProcessGroupError: the ranks do not come together within the time.
    """
    profile = None if args.profile is None else _read(args.profile)
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(_machine()))
    missing = [name for name in LAUNCH_VARIABLES if name not in os.environ]
    if missing:
        if profile is not None:
            raise ProfileError(f"--profile needs a network to plan for: {_how_to_launch(missing)}")
        print(f"network    not measured: {_how_to_launch(missing)}")
        return 0
    network = _measure(args.backend, args.timeout_s)
    if os.environ["RANK"] == "0":
        print("\n".join(_network(network)))
        if profile is not None:
            print("\n".join(_plans(profile, network)))
    return 0


def _read(path: Path) -> BackwardProfile:
    try:
        return BackwardProfile.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: expected a backward profile, got {error}") from error


def _how_to_launch(missing: list[str]) -> str:
    return (
        f"{', '.join(missing)} not set; start it as the job will be, for example"
        " torchrun --nproc-per-node 2 --no-python gradsched doctor"
    )


def _machine() -> Iterator[str]:
    import torch
    import torch.distributed as dist

    found = [f"{name} {_version(name)}" for name in PACKAGES]
    yield f"versions   python {platform.python_version()}, {', '.join(found)}"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"devices    {', '.join(devices) or 'no GPU'}; {os.cpu_count()} CPUs"
    backends = [name for name in ("nccl", "gloo", "mpi") if dist.is_backend_available(name)]
    yield f"backends   {', '.join(backends)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _measure(backend: str | None, timeout_s: float) -> NetworkProfile:
    import torch
    import torch.distributed as dist

    from lightning_gradsched.runtime.collectives import Collectives
    from lightning_gradsched.runtime.profiler import calibrate

    on_gpu = torch.cuda.is_available() and backend != "gloo"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group(
            backend or ("nccl" if on_gpu else "gloo"), timeout=timedelta(seconds=timeout_s)
        )
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessGroupError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join at {address}"
            f" within {timeout_s:g} s: {error}. See that all ranks were started and reach it."
        ) from error
    device = torch.device("cuda" if on_gpu else "cpu")
    collectives = Collectives(None, device, timeout_s)
    try:
        return calibrate(collectives, budget_s=2.0)
    finally:
        collectives.close()
        dist.destroy_process_group()


def _network(network: NetworkProfile) -> Iterator[str]:
    fit = fit_all_reduce(network)
    yield (
        f"ranks      {network.world_size}, nodes {network.n_nodes},"
        f" at most {network.ranks_per_node} ranks a node,"
        f" backend {network.backend}"
    )
    for nbytes in SIZES_NBYTES:
        seconds = fit.model.all_reduce_s(float(nbytes))
        algbw = nbytes / seconds / 1e9
        yield (
            f"all-reduce {nbytes / 2**20:8.3f} MiB  {seconds * 1e3:9.3f} ms"
            f"   algbw {algbw:.3f} GB/s"
        )
    yield f"fit        {_describe(fit)}"


def _describe(fit: Fit) -> str:
    if isinstance(fit.model, AlphaBeta):
        return (
            f"latency {fit.model.alpha_s * 1e6:.0f} us, {_rate(fit.model.beta_s_per_byte)},"
            f" within {fit.worst_error:.0%} of the measured medians"
        )
    return (
        f"no straight line (off by {fit.worst_error:.0%}); plans use the measured medians."
        " Is there other load on the machine or the network?"
    )


def _rate(beta_s_per_byte: float) -> str:
    return f"{1e-9 / beta_s_per_byte:.3f} GB/s" if beta_s_per_byte else "no cost per byte seen"


def _plans(profile: BackwardProfile, network: NetworkProfile) -> Iterator[str]:
    ranked = candidates(profile, fit_all_reduce(network).model, most=5)
    yield (
        f"plans for {len(profile.params)} parameters,"
        f" {sum(p.nbytes for p in profile.params) / 2**20:.1f} MiB,"
        f" backward {profile.backward_s * 1e3:.1f} ms: exposed time as predicted"
    )
    for candidate in ranked:
        plan = candidate.plan
        exposed_ms = candidate.exposed_s * 1e3
        yield f"  {plan.planner:<11} {len(plan.groups):>4} groups  {exposed_ms:9.3f} ms"
    best, own = ranked[0], next(c for c in ranked if c.plan.planner == "ddp")
    gain_s = own.exposed_s - best.exposed_s
    step_s = profile.forward_s + profile.backward_s + own.exposed_s
    yield (
        f"advice     planner='auto' may save up to {gain_s / step_s:.1%} of a step over DDP's caps"
        if gain_s > 0.01 * step_s
        else "advice     planner='ddp': no other plan is predicted to save 1% of a step"
    )
