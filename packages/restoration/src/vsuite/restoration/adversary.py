"""The discriminator of GAN training: it owns its optimiser, learns within each step, and is kept in the run's checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from vsuite.core.training.processes import mean_over_processes
from vsuite.restoration.losses import gan_loss
from vsuite.restoration.models.unet_discriminator import UNetDiscriminator


class Adversary:
    """A U-Net discriminator and its Adam.

    Args:
        learning_rate, betas: of Adam; the rate stays constant.
        features: of the network; seed: of its initial weights.
    """

    def __init__(self, learning_rate: float, betas: tuple[float, float], *, features: int = 64, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = UNetDiscriminator(features=features)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=learning_rate, betas=betas)

    def learn(self, restored: Tensor, real: Tensor) -> dict[str, Tensor]:
        """One update, from pictures (B, 3, H, W); the terms of its own loss, to be logged.

        It comes before the generator's loss is computed (the published code does it after), since an update between the
        generator's forward and backward passes would change weights that the latter needs.
        """
        self.network.requires_grad_(True)
        terms = {
            "discriminator/real": gan_loss(self.network(real).float(), real=True),
            "discriminator/restored": gan_loss(self.network(restored.detach()).float(), real=False),
        }
        self.optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                mean_over_processes(parameter.grad)
        self.optimiser.step()
        return {name: term.detach() for name, term in terms.items()}

    def loss(self, restored: Tensor) -> Tensor:
        """What the generator pays for not being taken as real."""
        self.network.requires_grad_(False)
        return gan_loss(self.network(restored).float(), real=True)

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimiser.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimizer"])

    def hook(self) -> AdversaryHook:
        """What `vsuite.core.training.train` needs to keep it."""
        return AdversaryHook(self)


class AdversaryHook(Hook):
    """Keeps the discriminator on the run's device and in its checkpoints."""

    def __init__(self, adversary: Adversary) -> None:
        self.adversary = adversary

    def before_run(self, runner: Any) -> None:
        self.adversary.network.to(runner.device)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["adversary"] = self.adversary.state()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.adversary.load_state(checkpoint["adversary"])
