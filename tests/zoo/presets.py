"""Presets of nets, as `conf/net` has them."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from zoo.runtime import CONFIG_DIR


def preset(name: str) -> DictConfig:
    """`conf/net/NAME.yaml` over what it builds on."""
    config = OmegaConf.load(CONFIG_DIR / "net" / f"{name}.yaml")
    parents = config.pop("defaults", [])
    return OmegaConf.merge(*(preset(parent) for parent in parents), config)


def build(name: str, **options: object) -> nn.Module:
    return instantiate(preset(name), **options)


def n_weights(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
