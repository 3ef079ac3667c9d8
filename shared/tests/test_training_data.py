"""The order of samples and their randomness depend on the seed, the epoch and the index alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.training import TrainingSettings
from vsuite.core.training.data import StreamSampler, make_loader, to_device
from vsuite.core.training.optimiser import AveragedModel, make_optimiser, parameter_groups

sizes = st.integers(1, 40)


class Numbers:
    def __len__(self) -> int:
        return 37

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        if index == 36 and getattr(self, "broken", False):
            raise InputError("case_36.nii.gz: no such file")
        return {"index": torch.tensor(index), "noise": torch.tensor(rng.normal())}


@given(num_samples=sizes, batch_size=st.integers(1, 9), world_size=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_is_a_permutation_shared_by_the_processes(num_samples: int, batch_size: int, world_size: int, seed: int) -> None:
    stop = 3 * num_samples
    shares = [list(StreamSampler(num_samples, batch_size, seed, stop=stop, rank=r, world_size=world_size)) for r in range(world_size)]
    stream = [key for batches in zip(*shares, strict=True) for place in zip(*batches, strict=True) for key in place]
    for epoch in range(3):
        part = stream[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(index for index, _ in part) == list(range(num_samples))
        assert {e for _, e in part} == {epoch}


@given(num_samples=sizes, batch_size=st.integers(1, 9), skipped=st.integers(0, 30))
def test_a_resumed_sampler_continues_the_stream(num_samples: int, batch_size: int, skipped: int) -> None:
    stop = 40 * batch_size
    whole = list(StreamSampler(num_samples, batch_size, 5, stop=stop))
    resumed = StreamSampler(num_samples, batch_size, 5, stop=stop)
    resumed.start = skipped * batch_size
    assert len(resumed) == len(whole) - skipped
    assert list(resumed) == whole[skipped:]


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(itertools.chain(*StreamSampler(37, 37, seed, stop=74))) for seed in range(5)]
    assert len(set(orders)) == 5
    assert [i for i, _ in orders[0][:37]] != [i for i, _ in orders[0][37:]]


class Ragged:
    """Samples of many sizes, which stay apart."""

    def __len__(self) -> int:
        return 6

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"points": torch.arange(index + 1.0)}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
        return {"points": [sample["points"] for sample in samples]}


def test_samples_of_many_sizes_are_collated_by_the_data_set() -> None:
    batches = list(make_loader(Ragged(), StreamSampler(6, 2, 0, stop=6), 0, workers=0, pin_memory=False))
    assert sorted(len(points) for batch in batches for points in batch["points"]) == [1, 2, 3, 4, 5, 6]
    moved = to_device(batches[0], torch.device("meta"))
    assert [points.device.type for points in moved["points"]] == ["meta", "meta"]


def test_workers_change_nothing() -> None:
    def batches(workers: int) -> list[dict[str, Tensor]]:
        return list(make_loader(Numbers(), StreamSampler(37, 8, 3, stop=80), 3, workers=workers, pin_memory=False))

    alone, helped = batches(0), batches(2)
    assert len(alone) == 10
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["noise"], other["noise"])
    noise = torch.cat([batch["noise"] for batch in alone])
    assert len(noise.unique()) == len(noise)  # the second epoch augments anew


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        StreamSampler(0, 4, 0, stop=8)


def test_norms_biases_and_one_dimensional_parameters_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm([4, 4]), nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5))
    model.register_parameter("scale", nn.Parameter(torch.ones(7)))
    model.register_parameter("table", nn.Parameter(torch.ones(7, 2)))
    model[2].bias.requires_grad_(False)
    decayed, spared = parameter_groups(model, 0.1)
    assert {p.shape for p in decayed["params"]} == {(4, 3), (5, 3, 1), (7, 2)}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(spared["params"]) == 6  # linear bias, two of each norm, scale
    (everything,) = parameter_groups(model, 0.1, decay_norms_and_biases=True)
    assert len(everything["params"]) == 9
    with pytest.raises(InputError, match="no parameters"):
        make_optimiser(nn.ReLU(), TrainingSettings(steps=1))


def test_averaged_weights_and_statistics_start_warm() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    weight = model[0].weight
    nn.init.zeros_(weight)
    average = AveragedModel(model, 0.5)
    expected = 0.0
    for n in range(20):
        nn.init.constant_(weight, n + 1.0)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (n + 1)
    assert average.model[0].weight.item() == pytest.approx(expected, rel=1e-6)
    model[1].running_mean.fill_(3.0)
    model[1].num_batches_tracked.fill_(7)
    average.update(model)
    assert average.model[1].running_mean.item() == pytest.approx(1.5)  # from 0, decay 0.5
    assert average.model[1].num_batches_tracked.item() == 7
    assert not any(p.requires_grad for p in average.model.parameters())
