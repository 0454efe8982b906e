"""Look at versions, ranks and the network before a long job, and plan for its model.

Alone it tells of this machine. Started as the job will be, on every rank, it measures the link too,
and predicts what plans leave exposed for a module, an experiment or a stored profile:

    torchrun --nproc-per-node 2 --no-python gradsched doctor
    srun gradsched doctor --devices 4 --num-nodes 2 --run-dir outputs
    srun gradsched doctor --module package.module:factory --input 8,3,224,224
    torchrun --nproc-per-node 2 --no-python gradsched doctor --experiment super_resolution
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile
from lightning_gradsched.errors import ModelError, ProcessGroupError, ProfileError

if TYPE_CHECKING:
    import torch

    from lightning_gradsched.commands.doctor_model import Model
    from lightning_gradsched.runtime.topology import Launch


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--profile", type=Path, help="plan for a backward profile (JSON)")
    model.add_argument(
        "--module",
        metavar="PACKAGE.MODULE:FACTORY",
        help="plan for the nn.Module, or (nn.Module, example input), that this function returns",
    )
    model.add_argument(
        "--experiment", help="plan for conf/experiment/EXPERIMENT.yaml; run from the checkout"
    )
    add("--input", type=_shape, help="shape of --module's example input, as 8,3,24,24")
    add("--backend", choices=("gloo", "nccl"), help="default: nccl where there is a GPU")
    add("--timeout-s", type=float, default=60.0, help="the longest wait for another rank")
    add("--run-dir", default=".", help="the folder that the job will write to; default: this one")
    add("--devices", help="ranks on each node that the job expects")
    add("--num-nodes", type=int, help="nodes that the job expects")


def run(args: Namespace) -> int:
    """Print what is found, on rank 0.

    Raises:
        ModelError: the module or experiment cannot be built, or its step does not work.
        ProfileError: the profile cannot be read, or there is something to plan for and no network.
        ProcessGroupError: the ranks do not come together within the time.
        SystemExit: the pre-flight has found something, and printed it.
    """
    from lightning_gradsched.commands.doctor_lines import machine_lines, network_lines, plan_lines
    from lightning_gradsched.runtime.topology import launch_of

    launch = launch_of(os.environ)
    # Before the ranks join: they would wait for one that a bad path has stopped.
    profile = None if args.profile is None else _read(args.profile)
    wanted = args.profile or args.module or args.experiment
    if wanted and launch is None:
        raise ProfileError(f"planning for {wanted} needs a network: {_how_to_launch()}")
    model = _load(args)
    speaks = launch is None or launch.rank == 0
    if speaks:
        print("\n".join(machine_lines()), flush=True)
    if launch is None:
        print(f"network    not measured: {_how_to_launch()}")
        return 0
    agreement = _preflight(args)
    if speaks:
        print(f"pre-flight {agreement}", flush=True)
    launch = launch_of(os.environ) or launch  # now with a free port
    with _joined(launch, args.backend, args.timeout_s) as device:
        network, measured = _measure(model, device, args.timeout_s)
    if speaks:
        print("\n".join(network_lines(network)))
        if profile := profile or measured:
            print("\n".join(plan_lines(profile, network)))
    return 0


def _preflight(args: Namespace) -> str:
    """What all ranks agree on, in words. Collective."""
    from lightning_gradsched.preflight import preflight

    agreement = preflight(
        run_dir=args.run_dir,
        devices=args.devices,
        num_nodes=args.num_nodes,
        accelerator="cpu" if args.backend == "gloo" else "auto",
        timeout_s=args.timeout_s,
    )
    if agreement is None:
        return "left out: a shell in a SLURM job"
    return (
        f"{agreement.n_ranks} ranks on {agreement.n_nodes} nodes: one world size, versions,"
        f" checkouts, clock and folder ({agreement.run_dir}), and ways between the nodes"
    )


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ArgumentTypeError(f"expected a shape like 8,3,24,24, got {text!r}")
    return shape


def _read(path: Path) -> BackwardProfile:
    try:
        return BackwardProfile.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: expected a backward profile, got {error}") from error


def _load(args: Namespace) -> Model | None:
    if args.input is not None and args.module is None:
        raise ModelError("--input: expected --module beside it, which it is the input of")
    if args.module is None and args.experiment is None:
        return None
    from lightning_gradsched.commands import doctor_model

    if args.module is not None:
        return doctor_model.from_factory(args.module, args.input)
    return doctor_model.from_experiment(args.experiment)


def _how_to_launch() -> str:
    from lightning_gradsched.runtime.topology import TORCHRUN_VARIABLES

    missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    return (
        f"{', '.join(missing)} not set, and no step of SLURM's; start it as the job will be, for"
        " example torchrun --nproc-per-node 2 --no-python gradsched doctor, or srun gradsched"
        " doctor"
    )


@contextmanager
def _joined(launch: Launch, backend: str | None, timeout_s: float) -> Iterator[torch.device]:
    """In the process group of all ranks, on the device that this one works on."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available() and backend != "gloo"
    if on_gpu:
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group(
            backend or ("nccl" if on_gpu else "gloo"),
            init_method=f"tcp://{launch.address}:{launch.port}",
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(seconds=timeout_s),
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessGroupError(
            f"rank {launch.rank} of {launch.world_size} could not join at"
            f" {launch.address}:{launch.port} within {timeout_s:g} s: {error}."
            " See that all ranks were started and reach it; MASTER_ADDR and MASTER_PORT choose"
            " another."
        ) from error
    try:
        yield torch.device("cuda" if on_gpu else "cpu")
    finally:
        dist.destroy_process_group()


def _measure(
    model: Model | None, device: torch.device, timeout_s: float
) -> tuple[NetworkProfile, BackwardProfile | None]:
    """The network, and the profile of the model's steps if there is a model. Collective."""
    from lightning_gradsched.runtime.calibration import network_profile, places_of
    from lightning_gradsched.runtime.collectives import Collectives

    if model is not None:
        from lightning_gradsched.commands import doctor_model

        return doctor_model.measure(model, device, timeout_s)
    collectives = Collectives(None, device, timeout_s)
    try:
        return network_profile(collectives, places_of(collectives), None), None
    finally:
        collectives.close()
