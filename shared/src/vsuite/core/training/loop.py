"""The passes and steps of training, for mmengine: what its `Runner` loops over, calls and optimises with.

An iteration of mmengine is one forward pass; a step of ours is one update, `accumulate` iterations.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop
from torch import Tensor, nn

from vsuite.core.devices import autocast
from vsuite.core.errors import InputError
from vsuite.core.training.data import to_device
from vsuite.core.training.interrupt import deferred_interrupt
from vsuite.core.training.settings import TrainingSettings
from vsuite.core.training.task import TrainingTask

if TYPE_CHECKING:
    from vsuite.core.training.runner import TrainingRunner


class AutocastOptimiser(OptimWrapper):
    """mmengine's wrapper (accumulation, gradients shared at the last pass only) with autocast on any device."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainingSettings, device: torch.device) -> None:
        super().__init__(optimizer, accumulative_counts=settings.accumulate)
        self.device = device
        self.precision = settings.precision
        self.largest_norm = settings.clip_gradients
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(self.device, self.precision):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.largest_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.largest_norm)
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update()


class TaskModel(nn.Module):
    """What mmengine calls: one training pass of the task's model, which may be wrapped for several processes."""

    def __init__(self, task: TrainingTask, network: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.network = network

    def train_step(self, data: dict[str, Tensor], optim_wrapper: AutocastOptimiser) -> dict[str, Tensor]:
        with optim_wrapper.optim_context(self.network):
            terms = self.task.loss(self.network, data)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        optim_wrapper.update_params(loss)
        return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items() if name != "loss"}}


class TrainingLoop(BaseLoop):
    """Iterations until the last step; mmengine's hooks see the usual attributes and calls."""

    def __init__(self, runner: TrainingRunner) -> None:
        super().__init__(runner, runner.loader)
        self.max_iters = runner.total_steps * runner.settings.accumulate
        self.iter = 0
        self.stop_training = False  # may be set by a hook; heeded between steps

    @property
    def epoch(self) -> int:
        return int(self.runner.epochs_done(self.iter))

    @property
    def max_epochs(self) -> int:
        return math.ceil(self.runner.epochs_done(self.max_iters))

    def run(self) -> None:
        runner: TrainingRunner = self.runner
        with deferred_interrupt(alone=runner.world_size == 1) as interrupt:
            runner.call_hook("before_train")
            runner.call_hook("before_train_epoch")
            runner.model.train()
            batches = iter(self.dataloader)
            epoch = self.epoch
            while self.iter < self.max_iters and not (self.stop_training and runner.between_steps):
                self._one_pass(to_device(_next_batch(batches), runner.device))
                if runner.between_steps:
                    runner.finish_step()
                    if interrupt.wanted:
                        runner.save()
                        raise KeyboardInterrupt
                if self.epoch > epoch and self.iter < self.max_iters:
                    epoch = self.epoch
                    runner.call_hook("after_train_epoch")
                    runner.call_hook("before_train_epoch")
            runner.call_hook("after_train_epoch")
            runner.call_hook("after_train")

    def _one_pass(self, batch: dict[str, Any]) -> None:
        runner: TrainingRunner = self.runner
        if runner.between_steps:
            runner.set_learning_rate()
        runner.call_hook("before_train_iter", batch_idx=self.iter, data_batch=batch)
        outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        runner.window.passes.append(outputs)
        runner.call_hook("after_train_iter", batch_idx=self.iter, data_batch=batch, outputs=outputs)
        self.iter += 1


def _next_batch(batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    try:
        return next(batches)
    except InputError as error:  # one from a worker process carries that process's traceback in its message
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ", 1)[-1]) from error
