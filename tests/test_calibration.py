"""Calibration: which images, which layers read a group, and what they are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.calibration import calibration_of, observe, random_images, readers_of, super_classes
from edgeprune.data import TensorLoader
from edgeprune.errors import DataError, ModelError, SchemeError
from tests.training.fakes import make_data


def loader_of(images, labels):
    return TensorLoader(images, labels, batch_size=4, normalization=ep.Normalization())


def test_takes_as_many_of_each_class_in_turn():
    data = make_data()
    found = calibration_of(data, 3)
    classes = len(data.classes)
    assert found.labels.tolist() == [*range(classes)] * 3
    images = torch.cat([images for images, _ in data.calib])
    labels = torch.cat([labels for _, labels in data.calib])
    for number in range(classes):
        assert torch.equal(found.images[number::classes], images[labels == number][:3])


def test_a_seed_draws_among_a_classes_images():
    data = make_data()
    first, again, other = (calibration_of(data, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert other.labels.tolist() == [0, 1, 2] * 4
    known = torch.cat([images for images, _ in data.calib])
    truth = torch.cat([labels for _, labels in data.calib])
    for image, label in zip(other.images, other.labels, strict=True):
        (place,) = (known == image).flatten(1).all(1).nonzero().flatten().tolist()
        assert truth[place] == label


def test_joined_classes_count_as_one():
    data = make_data()
    found = calibration_of(data, 5, joined=((1,), (0, 2)))
    assert found.classes == ("b", "a and 1 more")
    assert found.labels.tolist() == [0, 1] * 5
    assert torch.equal(found.images[::2], calibration_of(data, 5).images[1::3])


def test_random_images_are_of_any_class():
    data = make_data()
    found = random_images(data, 20, seed=0)
    assert found.images.shape == (20, 3, 8, 8)
    assert found.labels.tolist() == [0] * 20
    assert found.classes == ("any",)
    assert len(found.images.flatten(1).unique(dim=0)) == 20
    assert not torch.equal(random_images(data, 20, seed=1).images, found.images)
    with pytest.raises(DataError, match=r"data.calib is 72 images, expected at least 73"):
        random_images(data, 73, seed=0)


def test_super_classes_join_what_the_classifier_weighs_alike():
    """Rows around four directions come out as the four sets, whatever their lengths."""
    torch.manual_seed(0)
    kinds = torch.randperm(24) % 4
    net = nn.Sequential(nn.Linear(3, 24), nn.Linear(24, 8), nn.Linear(8, 24))
    directions = torch.eye(8)[:4]
    with torch.no_grad():
        net[2].weight.copy_((directions[kinds] + 0.05 * torch.randn(24, 8)) * torch.rand(24, 1).add(0.1))
    found = super_classes(net, 24, 4)
    assert {tuple(sorted(s)) for s in found} == {
        tuple((kinds == kind).nonzero().flatten().tolist()) for kind in range(4)
    }
    sizes = [len(members) for members in super_classes(net, 24, 7)]
    assert sum(sizes) == 24
    assert max(sizes) - min(sizes) <= 1


def test_super_classes_need_a_classifier():
    with pytest.raises(ModelError, match=r"without a linear layer of 30 rows.*Set super_classes=30 to keep"):
        super_classes(nn.Linear(8, 24), 30, 5)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0, 0, 1, 1, 1], "class a of data.calib is 2 images, expected at least 3. Ask for at most 2 per"),
        ([1, 1, 1, 1], "class a of data.calib is 0 images, expected at least 3. Add images of this class"),
    ],
)
def test_says_which_class_is_short(labels, match):
    images = torch.zeros(len(labels), 3, 8, 8)
    data = replace(make_data(), calib=loader_of(images, torch.tensor(labels)), classes=("a", "b"))
    with pytest.raises(DataError, match=match):
        calibration_of(data, 3)


def test_refuses_images_that_are_not_finite():
    images = torch.full((4, 3, 8, 8), float("nan"))
    data = replace(make_data(), calib=loader_of(images, torch.tensor([0, 1, 0, 1])), classes=("a", "b"))
    with pytest.raises(DataError, match=r"images of data.calib is not finite"):
        calibration_of(data, 1)


def test_refuses_an_empty_split():
    data = replace(make_data(), calib=())
    with pytest.raises(DataError, match=r"data.calib is empty"):
        calibration_of(data, 1)


class Many(nn.Module):
    """A group that several kinds of layers read."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 4, 1)
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.back = nn.ConvTranspose2d(8, 4, 2)
        self.last = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.plain(x), self.grouped(x), self.back(x), self.last(x.flatten(1))


def test_a_readers_channels_are_those_that_a_unit_is_read_by():
    """Zeroing a unit's channels of a reader's input gives what zeroing its columns gives."""
    torch.manual_seed(0)
    net = Many().eval()
    (group,) = (g for g in ep.find_groups(net, torch.zeros(1, 3, 4, 4)) if g.name == "first")
    readers = {reader.layer: reader for reader in readers_of(net, group)}
    assert set(readers) == {"plain", "grouped", "back", "last"}
    assert group.frozen_because is None
    axis = {"back": 0}
    for name, reader in readers.items():
        layer = net.get_submodule(name)
        maps = torch.randn(2, 8 * 16) if name == "last" else torch.randn(2, 8, 4, 4)
        without = maps.clone()
        without[:, list(reader.channels[1])] = 0
        whole = layer(without)
        with torch.no_grad():
            layer.weight.index_fill_(axis.get(name, 1), torch.tensor(reader.columns[1]), 0)
        assert torch.allclose(layer(maps), whole, atol=1e-6)


def test_shows_every_image_in_order_and_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).train()
    net[1].eval()
    images = torch.randn(5, 3, 4, 4)
    seen = {"0": [], "3": []}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    observe(net, images, {name: lambda x, y, n=name: seen[n].append((x, y)) for name in seen}, batch=2)
    assert [len(x) for x, _ in seen["0"]] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _ in seen["0"]]), images)
    assert torch.cat([y for _, y in seen["0"]]).shape == (5, 4, 2, 2)
    assert torch.cat([x for x, _ in seen["3"]]).shape == (5, 16, 1)
    assert net.training
    assert not net[1].training
    assert not net[0]._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_tokens_of_an_image_are_the_places_of_a_linear_layer():
    net = nn.Sequential(nn.Linear(6, 3))
    seen = []
    observe(net, torch.randn(4, 5, 6), {"0": lambda x, y: seen.append((x.shape, y.shape))})
    assert seen == [((4, 6, 5), (4, 3, 5))]


def test_refuses_maps_that_are_not_finite():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    with torch.no_grad():
        net[0].weight[0] = float("inf")
    with pytest.raises(SchemeError, match="what 0 returns is not finite"):
        observe(net, torch.randn(2, 3, 4, 4), {"0": lambda *_: None})


def test_says_that_the_network_does_not_fit():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelError, match="the network on the calibration images is failing"):
        observe(net, torch.randn(2, 5, 4, 4), {"0": lambda *_: None})
