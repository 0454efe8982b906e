"""What ``gradsched doctor`` prints: machine, network, plans and advice, a line at a time."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from lightning_gradsched.core.candidates import Candidate, candidates
from lightning_gradsched.core.cost import AlphaBeta, CostModel, Fit, fit_all_reduce
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile

PACKAGES = ("lightning-gradsched", "torch", "lightning", "pytorch-lightning", "numpy")
SIZES_NBYTES = (1 << 10, 1 << 20, 25 << 20)


def machine_lines() -> Iterator[str]:
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


def network_lines(network: NetworkProfile) -> Iterator[str]:
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
    if isinstance(fit.model, AlphaBeta) and fit.model.beta_s_per_byte and network.world_size > 1:
        # In a ring each rank sends, and receives, so many times the message.
        share = 2 * (network.world_size - 1) / network.world_size
        gbit_per_s = 8e-9 * share / fit.model.beta_s_per_byte
        yield f"link       as a ring: {gbit_per_s:.3g} Gbit/s sent and received by each rank"


def _describe(fit: Fit) -> str:
    if isinstance(fit.model, AlphaBeta):
        hidden = " (hidden by what goes before)" if fit.model.hides else ""
        odd = f", {fit.odd_nbytes[0]} bytes passed over" if fit.odd_nbytes else ""
        return (
            f"latency {fit.model.alpha_s * 1e6:.0f} us{hidden}, {_rate(fit.model.beta_s_per_byte)},"
            f" at most {fit.worst_error:.0%} off the measured median, at {fit.worst_nbytes}"
            f" bytes{odd}"
        )
    return (
        f"no straight line (off by {fit.worst_error:.0%} at {fit.worst_nbytes} bytes); plans use"
        " the measured medians. Is there other load on the machine or the network?"
    )


def _rate(beta_s_per_byte: float) -> str:
    return f"{1e-9 / beta_s_per_byte:.3f} GB/s" if beta_s_per_byte else "no cost per byte seen"


def plan_lines(profile: BackwardProfile, network: NetworkProfile) -> Iterator[str]:
    cost = fit_all_reduce(network).model
    ranked = candidates(profile, cost, most=5)
    compute_s = profile.forward_s + profile.backward_s
    yield (
        f"model      {len(profile.params)} parameters, {_nbytes(profile) / 2**20:.1f} MiB,"
        f" forward {profile.forward_s * 1e3:.1f} ms, backward {profile.backward_s * 1e3:.1f} ms;"
        " exposed time as predicted:"
    )
    for candidate in ranked:
        plan, exposed_s = candidate.plan, candidate.exposed_s
        yield (
            f"  {plan.planner:<11} {len(plan.groups):>4} groups  {exposed_s * 1e3:9.3f} ms"
            f"  {exposed_s / (compute_s + exposed_s):6.1%} of a step"
        )
    for advice in _advice(profile, network, ranked, cost):
        yield f"advice     {advice}"


def _advice(
    profile: BackwardProfile,
    network: NetworkProfile,
    ranked: Sequence[Candidate],
    cost: CostModel,
) -> Iterator[str]:
    if network.world_size == 1:
        yield "one rank reduces nothing: start as many as the job will have"
        return
    best, own = ranked[0], next(c for c in ranked if c.plan.planner == "ddp")
    gain_s = own.exposed_s - best.exposed_s
    compute_s = profile.forward_s + profile.backward_s
    step_s = compute_s + own.exposed_s
    yield (
        f"planner='auto' may save up to {gain_s / step_s:.1%} of a step over DDP's caps"
        if gain_s > 0.01 * step_s
        else "planner='ddp': no other plan is predicted to save 1% of a step"
    )
    reduce_s = cost.all_reduce_s(float(_nbytes(profile)))
    if reduce_s > compute_s:
        yield (
            f"all gradients at once take {reduce_s * 1e3:.1f} ms to reduce, a step computes for"
            f" {compute_s * 1e3:.1f} ms: no plan hides that; a larger batch a rank, or"
            " accumulate_grad_batches, makes reductions rarer"
        )


def _nbytes(profile: BackwardProfile) -> int:
    return sum(param.nbytes for param in profile.params)
