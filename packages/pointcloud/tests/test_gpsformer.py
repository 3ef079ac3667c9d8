"""GPSFormer: properties that hold whatever the weights are; training, folding, precision and export."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, create_model, list_models, model_info, optimize_for_inference
from vsuite.pointcloud.bench.plain.gpsformer import plain
from vsuite.pointcloud.few_shot import Episode, evaluate_few_shot, sample_episodes
from vsuite.pointcloud.losses import smooth_loss
from vsuite.pointcloud.models.gpsformer import GlobalPerception, GPSFormer, StructureScale, affine_basis, bounded_power
from vsuite.pointcloud.models.gpsformer_parts import GPSFormerParts
from vsuite.pointcloud.voting import vote

pytestmark = pytest.mark.filterwarnings("ignore:.*single point")  # clouds of a few points are sparse

TINY: dict[str, Any] = {"num_classes": 5, "stem_dim": 8, "widths": (8, 12, 16), "num_neighbours": 6, "head_dims": (12, 8)}
TINY_PARTS: dict[str, Any] = {"num_classes": 7, "num_categories": 3, "stem_dim": 8, "widths": (8, 12), "num_neighbours": 6}


def randomised(model: nn.Module) -> nn.Module:
    """Weights, norms (factors of both signs), powers and running statistics far from where they start, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            value.copy_(noise.abs() + 0.5)
        elif name.endswith(".p"):
            value.copy_(1.5 + 0.5 * noise)
        elif value.ndim > 1:
            value.copy_(noise / math.sqrt(value[0].numel()))
        else:
            value.copy_(noise if name.endswith("weight") else 0.3 * noise)
    return model.eval()


def sphere(batch: int, count: int, seed: int = 1) -> Tensor:
    """Points in the unit sphere: B, N, 3, float64 values that float32 holds."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(batch, count, 3, generator=generator), dim=-1)
    return (directions * torch.rand(batch, count, 1, generator=generator)).double()


@pytest.fixture(scope="module")
def three_forms() -> tuple[nn.Module, nn.Module, nn.Module]:
    fast, other = randomised(GPSFormer(**TINY).double()), plain(GPSFormer(**TINY).double()).eval()
    other.load_state_dict(fast.state_dict())
    return fast, other, optimize_for_inference(fast)


@given(st.integers(1, 3), st.integers(8, 70), st.integers(0, 99))
@settings(deadline=None, max_examples=12)
def test_any_size_equals_the_plain_form(three_forms: tuple[nn.Module, ...], batch: int, count: int, seed: int) -> None:
    fast, other, folded = three_forms
    points = sphere(batch, count, seed)
    before = points.clone()
    with torch.inference_mode():
        want = other(points)
        assert want.shape == (batch, 5)
        torch.testing.assert_close(fast(points), want)
        torch.testing.assert_close(folded(points), want)
    assert torch.equal(points, before)


def test_gradients_and_statistics_equal_those_of_the_plain_form() -> None:
    fast = randomised(GPSFormer(**TINY, dropout=0.0).double()).train()
    other = plain(GPSFormer(**TINY, dropout=0.0).double()).train()
    other.load_state_dict(fast.state_dict())
    points = sphere(3, 40)
    direction = torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double()
    for model in (fast, other):
        (model(points) * direction).sum().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), other.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}", rtol=1e-5, atol=1e-8)
    for (name, ours), theirs in zip(fast.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs[1], msg=lambda text, name=name: f"{name}: {text}")


@torch.inference_mode()
def test_parts_equal_the_plain_form() -> None:
    fast = randomised(GPSFormerParts(**TINY_PARTS).double())
    other = plain(GPSFormerParts(**TINY_PARTS).double()).eval()
    other.load_state_dict(fast.state_dict())
    points, categories = sphere(3, 33), torch.tensor([2, 0, 1])
    want = other(points, categories)
    assert want.shape == (3, 33, 7)
    torch.testing.assert_close(fast(points, categories), want)
    torch.testing.assert_close(optimize_for_inference(fast)(points, categories), want)
    changed = fast(points, torch.tensor([2, 1, 1]))
    assert torch.equal(changed[0], fast(points, categories)[0])
    assert not torch.allclose(changed[1], want[1])


@torch.inference_mode()
def test_a_sample_does_not_see_its_batch() -> None:
    model, points = randomised(GPSFormer(**TINY).double()), sphere(4, 37)
    torch.testing.assert_close(torch.cat([model(cloud[None]) for cloud in points]), model(points))


# Invariants of the page


@given(st.floats(-5, 5, width=32))
def test_the_affine_basis_of_power_one_is_the_identity(u: float) -> None:
    assert affine_basis(torch.tensor([u]), 1.0).item() == pytest.approx(u, abs=2e-6)


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=20), st.floats(1, 3))
def test_the_affine_basis_grows(values: list[float], power: float) -> None:
    u = torch.tensor(sorted(values), dtype=torch.float64)
    assert bool((affine_basis(u, power).diff() >= 0).all())


@pytest.mark.parametrize("power", [0.2, 1.0, 1.7, 3.0, 9.0])
def test_gradients_of_the_power_term_are_finite_at_zero(power: float) -> None:
    scale = StructureScale(4, 6).train()
    with torch.no_grad():
        scale.p.fill_(power)
    points, index = torch.zeros(1, 5, 3), torch.zeros(1, 2, 3, dtype=torch.long)  # every neighbour is the centre: u = 0
    features = torch.randn(1, 5, 4, requires_grad=True)
    out = scale(features, points, torch.zeros(1, 2, dtype=torch.long), index)
    out.sum().backward()
    assert bool(out.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in (features, *scale.parameters()) if p.grad is not None)


def test_a_power_outside_its_bounds_can_return() -> None:
    p = torch.tensor([0.5, 0.5, 1.0, 2.0, 4.0, 4.0], requires_grad=True)
    used = bounded_power(p)
    assert used.tolist() == [1, 1, 1, 2, 3, 3]
    (used * torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, -1.0])).sum().backward()
    assert p.grad.tolist() == [0, -1, 1, 1, 1, 0]


@pytest.mark.parametrize("silent", ["value.0.weight", "geo2"])
@torch.inference_mode()
def test_without_values_or_weights_the_power_term_is_a_constant(silent: str) -> None:
    scale = randomised(StructureScale(4, 6))
    for name, parameter in scale.named_parameters():
        if name.startswith(silent):
            parameter.zero_()
    points = sphere(2, 20).float()
    features, index = torch.randn(2, 20, 4), torch.randint(0, 20, (2, 7, 5))
    centres = torch.arange(7).expand(2, -1)
    low = F.relu(scale.low(features))[torch.arange(2).view(2, 1, 1), index].amax(2)
    constant = F.relu(scale.bn(torch.zeros(1, 6)))
    torch.testing.assert_close(scale(features, points, centres, index) - low, constant.expand(2, 7, 6), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_without_offset_the_graph_is_a_plain_edge_convolution() -> None:
    module = randomised(GlobalPerception(8, num_neighbours=5).double())
    module.offset[0].weight.zero_()
    module.offset[1].running_mean.zero_()
    module.offset[1].bias.zero_()
    features = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(3)).double()
    assert torch.equal(module.move(features), features)
    nearest = torch.cdist(features, features).argsort(-1)[..., :5]
    assert torch.equal(nearest[..., 0], torch.arange(30).expand(2, -1))  # the point itself
    near = features[torch.arange(2).view(2, 1, 1), nearest]
    centre = features.unsqueeze(2).expand_as(near)
    edges = module.edge(torch.cat([centre, near - centre], dim=-1))
    torch.testing.assert_close(module.graph_features(features, features), F.leaky_relu(edges, 0.2).amax(2))


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=10)
@torch.inference_mode()
def test_order_matters_only_through_the_first_point_and_full_balls(seed: int) -> None:
    points = sphere(1, 24, seed)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(23, generator=torch.Generator().manual_seed(seed))])
    free = randomised(GPSFormer(**TINY, num_samples=(24, 24, 24)).double())  # no ball is ever full
    torch.testing.assert_close(free(points[:, order]), free(points))


@torch.inference_mode()
def test_the_network_is_not_invariant_to_the_order_of_points() -> None:
    model, points = randomised(GPSFormer(**TINY).double()), sphere(1, 60)
    assert not torch.allclose(model(points.flip(1)), model(points))


@torch.inference_mode()
def test_duplicated_points_are_legal() -> None:
    model = randomised(GPSFormer(**TINY).double())
    for points in (sphere(2, 5).repeat(1, 6, 1), torch.zeros(2, 16, 3).double()):
        assert bool(model(points).isfinite().all())


# Training


@pytest.mark.parametrize("task", ["classification", "parts"])
def test_a_few_steps_bring_the_loss_down_and_reach_every_parameter(task: str) -> None:
    torch.manual_seed(0)
    points = torch.cat([sphere(4, 48, 1).float(), sphere(4, 48, 2).float() * torch.tensor([1.0, 0.2, 0.2])])
    points = 0.4 * points  # so that also the smallest balls of the last level hold more than their centre
    model: nn.Module
    if task == "classification":
        model = GPSFormer(**TINY, dropout=0.0)
        arguments, label = (points,), torch.tensor([0] * 4 + [1] * 4)
    else:
        model = GPSFormerParts(**TINY_PARTS, dropout=0.0)
        arguments, label = (points, torch.tensor([0, 1] * 4)), (points[..., 0] > 0).long()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(25):
        optimiser.zero_grad()
        loss = smooth_loss(model(*arguments), label, 0.0)
        loss.backward()
        if step == 0:
            # no effect in theory: a bias of the keys adds the same to all scores of a query, one of the values cancels in differences
            without = (".k.bias", ".value.1.bias")
            silent = [n for n, p in model.named_parameters() if p.grad is None or (not p.grad.any() and not n.endswith(without))]
            assert silent == []
        losses.append(loss.item())
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]


def test_a_batch_of_one_cannot_train() -> None:
    with pytest.raises(InputError, match="2 or more samples"):
        GPSFormer(**TINY).train()(sphere(1, 32).float())


def test_a_new_head() -> None:
    model = GPSFormer(**TINY)
    model.reset_head(9)
    assert model.eval()(sphere(1, 16).float()).shape == (1, 9)
    assert model.num_classes == 9
    with pytest.raises(InputError, match="num_classes"):
        model.reset_head(0)


# Precision, compiling, export


@torch.inference_mode()
def test_bf16_autocast() -> None:
    torch.manual_seed(0)
    model, points = GPSFormer(**TINY).eval(), sphere(4, 64).float()
    want = model(points)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(points)
    torch.testing.assert_close(got.float(), want, atol=0.05 * float(want.abs().max()), rtol=0.05)


def test_bf16_autocast_trains() -> None:
    model = GPSFormer(**TINY).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = smooth_loss(model(sphere(4, 32).float()), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_in_one_graph() -> None:
    model, points = randomised(GPSFormer(**TINY | {"widths": (8, 12)})), sphere(2, 40).float()
    compiled = torch.compile(model, dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(points), model(points), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_exported_to_onnx() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, points = randomised(GPSFormer(**TINY | {"widths": (8, 12)})), sphere(2, 40).float()
    buffer = io.BytesIO()
    torch.onnx.export(model, (points,), buffer, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for seed in (1, 5):  # another cloud takes other neighbours
        points = sphere(2, 40, seed).float()
        (got,) = session.run(None, {session.get_inputs()[0].name: points.numpy()})
        np.testing.assert_allclose(got, model(points).numpy(), atol=1e-4, rtol=1e-4)


# Bad input


def test_wrong_clouds_are_refused() -> None:
    model, bad = GPSFormer(**TINY).eval(), sphere(2, 20).float()
    bad[1, 3, 2] = float("nan")
    for points, message in (
        (bad, "NaN"),
        (bad[:, :7], "8 points or more; got 7"),
        (torch.zeros(2, 20, 4), r"B, N, 3.*\(2, 20, 4\)"),
        (torch.zeros(20, 3), r"B, N, 3.*\(20, 3\)"),
        (torch.zeros(2, 20, 3, dtype=torch.long), "int64"),
    ):
        with pytest.raises(InputError, match=message):
            model(points)
    parts = GPSFormerParts(**TINY_PARTS).eval()
    with pytest.raises(InputError, match="one integer a shape, 2"):
        parts(sphere(2, 20).float(), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (8, 10)}, "multiples of num_heads"),
        ({"widths": ()}, "multiples of num_heads"),
        ({"num_classes": 0}, "num_classes"),
        ({"radii": (0.1,)}, "of one length"),
        ({"num_neighbours": 0}, "num_neighbours"),
        ({"dropout": 1.0}, "dropout"),
        ({"head_dims": ()}, "head_dims"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPSFormer(**TINY | options)


@torch.inference_mode()
def test_millimetres_warn_and_normalised_clouds_do_not() -> None:
    model, points = GPSFormer(**TINY).eval(), sphere(2, 256).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(points)
        model(points.repeat(1, 2, 1))
    with pytest.warns(UserWarning, match="unit sphere"):
        model(1000 * points)


# The registry


@pytest.mark.parametrize("name", ["gpsformer", "gpsformer_elite", "gpsformer_parts", "pointnet2"])
def test_registered(name: str) -> None:
    assert name in list_models()
    info = model_info(name)
    assert info.published
    assert ("reconstruction" in info.summary) == (name != "pointnet2")
    assert create_model(name, num_classes=3).num_classes == 3


# Voting


def test_votes_do_not_pile_up() -> None:
    seen: list[Tensor] = []

    def network(points: Tensor) -> Tensor:
        seen.append(points.clone())
        return points.sum(1)

    points = sphere(2, 10)
    before = points.clone()
    probabilities = vote(network, points, copies=6)
    assert torch.equal(points, before)
    assert torch.equal(seen[0], points)
    factors = torch.stack([copy / points for copy in seen[1:]])
    assert float(factors.min()) >= 0.85 - 1e-9
    assert float(factors.max()) <= 1.15 + 1e-9
    torch.testing.assert_close(factors, factors[:, :1, :1].expand_as(factors))  # one factor an axis and copy
    assert len({round(float(factor[0, 0, 0]), 9) for factor in factors}) == 5
    torch.testing.assert_close(probabilities, torch.stack([network(copy).float().softmax(-1) for copy in list(seen)]).mean(0))
    assert torch.equal(vote(network, points, copies=1), network(points).float().softmax(-1))
    torch.testing.assert_close(vote(network, points[:1], copies=6), probabilities[:1])
    with pytest.raises(InputError, match="1 or more copies"):
        vote(network, points, copies=0)


# Few-shot


@given(st.integers(2, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 999))
@settings(deadline=None, max_examples=25)
def test_episodes(ways: int, shots: int, queries: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(8).repeat(12))
    episodes = sample_episodes(labels, ways=ways, shots=shots, queries=queries, episodes=3, seed=seed)
    for episode in episodes:
        assert len(set(episode.classes)) == ways
        assert not set(episode.train) & set(episode.test)
        assert len(set(episode.train)) == ways * shots
        assert len(set(episode.test)) == ways * queries
        assert labels[episode.train].tolist() == [episode.classes[i] for i in episode.train_labels]
        assert labels[episode.test].tolist() == [episode.classes[i] for i in episode.test_labels]
    again = sample_episodes(labels, ways=ways, shots=shots, queries=queries, episodes=2, seed=seed)
    assert all(np.array_equal(a.train, b.train) for a, b in zip(again, episodes, strict=False))


def test_few_shot_scores() -> None:
    labels = np.arange(4).repeat(30)
    episodes = sample_episodes(labels, ways=4, shots=10, queries=20, episodes=2)
    right: Iterator[int] = itertools.cycle([1, 0])

    def predict(episode: Episode) -> np.ndarray:
        return episode.test_labels if next(right) else np.zeros(80, int)

    result = evaluate_few_shot(episodes, predict)
    assert (result.mean, result.std) == (0.625, 0.375)
    assert str(result) == "62.5 ± 37.5 % over 2 episodes"
    with pytest.raises(InputError, match="must return 80 labels"):
        evaluate_few_shot(episodes, lambda _: [0])
    with pytest.raises(InputError, match="5-way 10-shot needs 5 classes of 30 shapes or more; there are 4"):
        sample_episodes(labels)
    with pytest.raises(InputError, match="2 or more ways"):
        sample_episodes(labels, ways=1)
