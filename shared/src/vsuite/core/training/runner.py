"""The training loop: mmengine's `Runner`, mended once, here.

What is replaced and why (as of mmengine 0.10.7): checkpoints (not atomic, not readable with `weights_only`, without
random states or the sampler's position), autocast and several processes without CUDA (both crash), the collection of
facts about the environment (crashes beside a broken torchvision), names of experiments (one-second resolution, so two
runs share their logs), and the files it leaves about. The loop itself is in `loop.py`. Everything that is kept happens
between steps.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed
from mmengine.visualization import Visualizer
from pydantic import BaseModel
from torch import nn

from vsuite.core.devices import autocast, pick_device
from vsuite.core.errors import InputError
from vsuite.core.files import remove_leftovers, writing
from vsuite.core.training import checkpoint, heap, processes, progress
from vsuite.core.training.data import StreamSampler, make_loader, to_device
from vsuite.core.training.loop import AutocastOptimiser, TaskModel, TrainingLoop
from vsuite.core.training.optimiser import AveragedModel, make_optimiser
from vsuite.core.training.report import write_report
from vsuite.core.training.schedules import get_schedule
from vsuite.core.training.settings import TrainingSettings, keep_settings
from vsuite.core.training.task import TrainingResult, TrainingTask
from vsuite.core.training.track import Best, LossWindow
from vsuite.core.weights import save_weights


def train(
    task: TrainingTask,
    settings: TrainingSettings,
    folder: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    resolved: BaseModel | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainingResult:
    """Trains a model into a run folder, alone or as one of the processes that torchrun started.

    A run that was killed continues with `resume` from its last checkpoint, on the CPU to bit-equal losses; with
    `resume` a folder without a run starts one. Ctrl-C saves the step that is being made and raises `KeyboardInterrupt`.

    A run, also a finished one, may be lengthened: resumed with more `steps` or `epochs`. From there on, the learning
    rate is the schedule's over the new length.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        resolved: the domain's full settings, to be kept as `settings.yaml` and compared on resuming; `settings` where None.
        hooks: of mmengine, for those who know it; called at the usual points with the runner.

    Raises:
        InputError: for a folder that holds a run already (without `resume`), changed settings, a loss that is not
            finite (the checkpoints before it stay), a disk that cannot be written to.
    """
    folder = Path(folder)
    with processes.process_group(pick_device(device)) as place, heap.reused():
        if settings.precision == "fp16" and place.device.type != "cuda":
            raise InputError(f"precision fp16 needs a CUDA device, and this is {place.device.type}; use bf16 or fp32")
        processes.first_alone(lambda: keep_settings(resolved or settings, folder, resume=resume))
        runner = TrainingRunner(task, settings, folder, place, hooks)
        try:
            runner.train()
            return runner.result()
        except KeyboardInterrupt:
            runner.tell_interrupted()
            raise
        finally:
            runner.close()


class TrainingRunner(Runner):
    """mmengine's Runner for a `TrainingTask`. Hooks find `task`, `settings`, `device`, `network` and `average` here.

    Attributes:
        network: the task's own model, unwrapped; average: its averaged weights, or None.
        seconds: of training before this process took over.
    """

    def __init__(self, task: TrainingTask, settings: TrainingSettings, folder: Path, place: processes.Place, hooks: Sequence[Hook]) -> None:
        device, rank, world_size = place
        self.task, self.settings, self.folder, self.device = task, settings, folder, device
        self._rank, self._world_size = rank, world_size
        data = task.training_data()
        self.num_samples = len(data)
        self.step_samples = settings.batch_size * settings.accumulate * world_size
        self.total_steps = settings.total_steps(self.num_samples, world_size)
        stop = self.total_steps * self.step_samples
        self.sampler = StreamSampler(self.num_samples, settings.batch_size, settings.seed, stop=stop, rank=rank, world_size=world_size)
        self.loader = make_loader(data, self.sampler, settings.seed, workers=settings.workers, pin_memory=device.type == "cuda")
        self.schedule = get_schedule(settings.schedule)
        self.window = LossWindow()
        self.best = Best(settings.best_metric, settings.best_mode)
        self.seconds = 0.0
        self.saved_step: int | None = None
        self.progress = progress.Progress(self.total_steps, shown=rank == 0)
        self.was_deterministic = torch.are_deterministic_algorithms_enabled()
        super().__init__(
            model={},
            work_dir=str(folder),
            train_dataloader=self.loader,
            train_cfg={},
            optim_wrapper={},
            # mmengine's own hooks read the iteration and the losses from its message hub, which the first of these fills.
            default_hooks=dict.fromkeys(("timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"))
            | ({} if hooks else {"runtime_info": None}),
            custom_hooks=list(hooks),
            launcher="pytorch" if world_size > 1 else "none",
            randomness={"seed": settings.seed, "deterministic": settings.deterministic},
            experiment_name=f"vsuite-{uuid.uuid4().hex}",
        )

    # What mmengine would do on its own.

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        self._timestamp = ""  # so that no folder named after the time is made; the experiment's name is unique already

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Nothing: the collection crashes beside a broken torchvision, and nobody reads it."""

    def dump_config(self) -> None:
        """Nothing: `settings.yaml` says it."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        return MMLogger.get_instance(self.experiment_name, log_level="ERROR")

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        return Visualizer.get_instance(self.experiment_name)

    def build_model(self, model: Any) -> TaskModel:
        self.network = self.task.build_model().to(self.device)
        decay = self.settings.ema_decay
        self.average = AveragedModel(self.network, decay) if decay else None
        if self.settings.compile:
            self.network.compile()
        set_random_seed((self.settings.seed + self.rank) % 2**32)  # from here on, processes drop different units
        return TaskModel(self.task, self.network)

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        assert isinstance(model, TaskModel)
        model.network = processes.distribute(model.network, self.device)
        return model

    def build_train_loop(self, loop: Any) -> TrainingLoop:
        return loop if isinstance(loop, TrainingLoop) else TrainingLoop(self)

    def build_optim_wrapper(self, optim_wrapper: Any) -> AutocastOptimiser:
        if isinstance(optim_wrapper, AutocastOptimiser):
            return optim_wrapper
        return AutocastOptimiser(make_optimiser(self.network, self.settings), self.settings, self.device)

    def load_or_resume(self) -> None:
        path = self.folder / "checkpoints" / "last.pth"
        content = processes.first_alone(lambda: checkpoint.read_checkpoint(path) if path.exists() else None)
        if content is not None:
            self.call_hook("after_load_checkpoint", checkpoint=content)
            try:
                self._restore(content, path)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{path}: is no checkpoint of this run: {' '.join(str(error).split())}") from error
        if self.rank == 0:
            for folder in (self.folder, path.parent):
                remove_leftovers(folder)
            progress.truncate_records(self.folder / "metrics.jsonl", self.step)
        if content is not None:
            self._tell_resumed(content["total_steps"])
        self.progress.begin(self.step)
        self.began = time.perf_counter() - self.seconds

    # What a run consists of.

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.train_loop.iter // self.settings.accumulate

    @property
    def between_steps(self) -> bool:
        return self.train_loop.iter % self.settings.accumulate == 0

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and kept."""
        return self.network if self.average is None else self.average.model

    def epochs_done(self, iterations: int) -> float:
        return iterations * self.step_samples / self.settings.accumulate / self.num_samples

    def set_learning_rate(self) -> None:
        rate = self.schedule(self.step, self.total_steps, self.settings)
        for group in self.optim_wrapper.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)

    def finish_step(self) -> None:
        """What comes after each update: average, log, validate, save."""
        settings, step = self.settings, self.step
        last = step == self.total_steps or self.train_loop.stop_training
        if self.average is not None:
            self.average.update(self.network)
        if last or step % settings.log_every == 0:
            self._log()
        self.progress.advance(step)
        if last or step % settings.validate_every == 0:
            self._validate()
        if last or self.train_loop.stop_training or step % settings.checkpoint_every == 0:
            self.save()

    def _check_losses(self) -> None:
        found = self.window.first_not_finite()
        if found is not None:
            self._fail(self.step - found[0] // self.settings.accumulate, f"the loss is not finite ({found[1]})")

    def _fail(self, step: int, what: str) -> None:
        kept = self.folder / "checkpoints" / "last.pth"
        remedy = "try a lower learning_rate, clip_gradients, a longer warm-up" + (
            "" if self.settings.precision == "fp32" else ", precision fp32"
        )
        raise InputError(f"step {step}: {what}; {remedy}" + (f"; {kept} is from before and stays" if kept.exists() else ""))

    def _log(self) -> None:
        self._check_losses()
        heap.trim()
        terms = self.window.means()
        if self.rank != 0:
            return
        loss, rate = terms.pop("loss"), self.optim_wrapper.optimizer.param_groups[0]["lr"]
        record = {"step": self.step, "epoch": round(self.epochs_done(self.train_loop.iter), 4), "loss": loss, "terms": terms}
        record |= {"learning_rate": rate, "seconds": round(time.perf_counter() - self.began, 3)}
        progress.append_record(self.folder / "metrics.jsonl", record)
        self.progress.log(self.step, loss, rate)

    def _validate(self) -> None:
        self._check_losses()
        self.call_hook("before_val")
        self.call_hook("before_val_epoch")
        model = self.evaluated
        processes.share_buffers(model)
        model.eval()
        with checkpoint.random_state_kept(self.device), torch.no_grad(), autocast(self.device, self.settings.precision):
            found = {} if self.best.metric is None else self.task.validate(model, self.device, self.rank, self.world_size)
            metrics = processes.from_rank_0({name: float(value) for name, value in found.items()})
            improved = self.best.update(self.step, metrics)
            if self.rank == 0:
                self._keep(model, metrics, improved)
        self.model.train()
        self._heed_patience()
        self.call_hook("after_val_epoch", metrics=metrics)
        self.call_hook("after_val")

    def _heed_patience(self) -> None:
        patience = self.settings.early_stopping
        if patience is not None and self.best.stale >= patience:
            self.train_loop.stop_training = True

    def _keep(self, model: nn.Module, metrics: dict[str, float], improved: bool) -> None:
        """Writes what a validation leaves in the run folder."""
        if metrics:
            progress.append_record(self.folder / "metrics.jsonl", {"step": self.step, "validation": metrics})
            self.progress.validated(self.step, metrics, improved)
        if improved:
            save_weights(model, self.folder / "checkpoints" / "best.safetensors", metadata=self.task.metadata())
        pictures = self.folder / "pictures"
        with writing(pictures):
            pictures.mkdir(exist_ok=True)
        self.task.pictures(model, self.device, pictures)
        write_report(self.folder)

    def save(self) -> None:
        """Replaces `checkpoints/last.pth`, unless it is of this step; every process takes part, rank 0 writes."""
        if self.saved_step == self.step:
            return
        self._check_losses()
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            self._fail(self.step, "the weights are no longer finite")
        ranks = processes.from_all({"random": checkpoint.random_state(self.device), "window": self.window.state()})
        if self.rank == 0:
            self._write_checkpoint(ranks)
        self.saved_step = self.step

    def _write_checkpoint(self, ranks: list[Any]) -> None:
        epoch, position = divmod(self.step * self.step_samples, self.num_samples)
        content = {
            "format": 1,
            "step": self.step,
            "total_steps": self.total_steps,
            "seconds": time.perf_counter() - self.began,
            "model": self.network.state_dict(),
            "optimizer": self.optim_wrapper.optimizer.state_dict(),
            "scaler": self.optim_wrapper.scaler.state_dict(),
            "sampler": {"epoch": epoch, "position": position, "num_samples": self.num_samples},
            "best": self.best.state(),
            "ranks": ranks,
        }
        if self.average is not None:
            content |= {"model_ema": self.average.model.state_dict(), "ema_updates": self.average.updates}
        self.call_hook("before_save_checkpoint", checkpoint=content)
        checkpoint.write_checkpoint(content, self.folder / "checkpoints" / "last.pth")

    def _restore(self, content: dict[str, Any], path: Path) -> None:
        sampler, ranks = content["sampler"], content["ranks"]
        if sampler["num_samples"] != self.num_samples:
            raise InputError(f"{path}: was trained on {sampler['num_samples']} samples, and there are {self.num_samples} now")
        if len(ranks) != self.world_size:
            raise InputError(f"{path}: was trained by {len(ranks)} processes, and there are {self.world_size} now")
        self.network.load_state_dict(content["model"])
        self.optim_wrapper.optimizer.load_state_dict(content["optimizer"])
        self.optim_wrapper.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.model.load_state_dict(content["model_ema"])
            self.average.updates = content["ema_updates"]
        self.saved_step = content["step"]
        self.train_loop.iter = content["step"] * self.settings.accumulate
        self.sampler.start = sampler["epoch"] * self.num_samples + sampler["position"]
        self.best.load_state(content["best"])
        self.seconds = content["seconds"]
        self._heed_patience()
        mine = ranks[self.rank]
        self.window.passes = [to_device(losses, self.device) for losses in mine["window"]]
        checkpoint.set_random_state(mine["random"], self.device)

    def _tell_resumed(self, total_before: int) -> None:
        """Says how a resumed run goes on, where that is not as before."""
        step, total = self.step, self.total_steps
        if total > total_before:
            rate = "the learning rate is now the schedule's over all of them"
            self.progress.say(f"lengthened from {total_before:,} to {total:,} steps, of which {step:,} are done; {rate}")
        if step >= total:
            length = "steps" if self.settings.steps is not None else "epochs"
            self.progress.say(f"all {total:,} steps are done; to go on, give more: --set training.{length}=...")
        elif self.train_loop.stop_training:
            remedy = "--set training.early_stopping=... (null for never)"
            self.progress.say(f"stopped at step {step:,} of {total:,}, since validations were no longer better; to go on: {remedy}")

    def tell_interrupted(self) -> None:
        """Says what an interrupted run has kept."""
        if self.saved_step is None:
            kept = "nothing is saved yet; --resume starts from the beginning"
        else:
            kept = f"step {self.saved_step:,} of {self.total_steps:,} is saved; --resume continues from there"
        self.progress.close()
        self.progress.say(f"{self.folder}: {kept}")

    def result(self) -> TrainingResult:
        return TrainingResult(
            folder=self.folder,
            best_path=self.folder / "checkpoints" / "best.safetensors",
            best_metrics=self.best.metrics,
            best_step=self.best.step,
            steps_done=self.step,
            stopped_early=self.step < self.total_steps,
        )

    def close(self) -> None:
        """Takes back what mmengine keeps for the whole process, so that the next run starts afresh."""
        self.progress.close()
        for kind in (DefaultScope, MMLogger, MessageHub, Visualizer):
            kind._instance_dict.pop(self.experiment_name, None)
        torch.use_deterministic_algorithms(self.was_deterministic)
