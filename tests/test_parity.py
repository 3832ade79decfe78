import math

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeprune import parity
from edgeprune.data import Data, Normalization, TensorLoader
from edgeprune.errors import ExportError
from edgeprune.parity import OnnxNetwork, accuracy_facts, compare, difference, random_inputs, real_images


def scaled(factor: float, batch: int | None, width: int = 3) -> bytes:
    """An ONNX file written by hand: output = factor * input, for inputs (batch, width)."""
    shape = [batch if batch is not None else "batch", width]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["input", "factor"], ["output"])],
        "graph",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(np.float32(factor), "factor")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def loader(images: Tensor, labels: Tensor, batch_size: int = 4) -> TensorLoader:
    return TensorLoader(images, labels, batch_size=batch_size, normalization=Normalization((0.0,), (1.0,)))


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_runs_at_any_number_of_images(batch: int | None, count: int) -> None:
    x = torch.randn(count, 3)
    (output,) = OnnxNetwork(scaled(2.0, batch), batch)((x,))
    np.testing.assert_array_equal(output, 2 * x.numpy())


def test_random_inputs_are_the_same_every_time_and_leave_the_global_generator_alone() -> None:
    example = (torch.zeros(2, 3, 4, 4), torch.tensor([5, 6]))
    state = torch.get_rng_state()
    once, again = list(random_inputs(example)), list(random_inputs(example))
    assert torch.equal(state, torch.get_rng_state())
    assert [len(images) for _, (images, _) in once] == list(parity.BATCH_SIZES)
    for (_, (images, integers)), (_, (images_again, _)) in zip(once, again, strict=True):
        assert torch.equal(images, images_again)
        assert images.std() > 0.5
        assert set(integers.tolist()) <= {5, 6}
        assert len(integers) == len(images)


def test_real_images_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "REAL_IMAGES", 6)
    images = torch.rand(10, 1, 2, 2)
    batches = real_images(loader(images, torch.arange(10)))
    assert torch.equal(torch.cat(batches), images[:6])


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [([4.0, -2.0], 0.0), ([4.0, -1.0], 0.25), ([math.nan, -2.0], math.inf), ([math.inf, -2.0], math.inf)],
)
def test_difference_is_relative_to_the_largest_output(theirs: list[float], expected: float) -> None:
    assert difference([torch.tensor([[4.0, -2.0]])], [np.array([theirs], np.float32)]) == expected


def test_difference_takes_the_worst_output() -> None:
    ours = [torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 0)]
    right = [tensor.numpy() for tensor in ours]
    assert difference(ours, right) == 0
    assert difference(ours, [right[0], right[1] + 0.5, right[2]]) == 0.5


@pytest.mark.parametrize("theirs", [[], [np.ones((2, 2), np.float32)], [np.ones((1, 2), np.float32)] * 2])
def test_outputs_of_other_shapes_differ_infinitely(theirs: list[np.ndarray]) -> None:
    assert difference([torch.ones(1, 2)], theirs) == math.inf


def test_compare_finds_the_input_on_which_it_is_worst() -> None:
    class WrongWhereNegative(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x < 0, 2.5 * x, 2 * x)

    file = OnnxNetwork(scaled(2.0, 1), 1)
    checks = [("good", (torch.ones(1, 3),)), ("bad", (-torch.ones(2, 3),))]
    assert compare(Scale(2.0), file, checks, []) == parity.Parity(0.0, "good", 0, None)
    found = compare(WrongWhereNegative(), file, checks, [torch.ones(2, 3)])
    assert (found.error, found.worst, found.real_images) == (0.2, "bad", 2)


def test_compare_counts_on_how_many_real_images_the_classes_agree() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:1].flip(1), x[1:]])

    images = [torch.eye(3), torch.eye(3)[1:2]]  # of the flipped images only the second keeps its class
    file = OnnxNetwork(scaled(1.0, None), None)
    assert compare(Scale(1.0), file, [], images).argmax_agreement == 1.0
    assert compare(Turned(), file, [], images).argmax_agreement == 3 / 4


def test_compare_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    compare(Scale(1.0), OnnxNetwork(scaled(1.0, 1), 1), [("x", (torch.ones(1, 3),))], [])
    assert torch.get_num_threads() == before


def test_compare_refuses_a_reference_that_is_not_finite() -> None:
    file = OnnxNetwork(scaled(math.nan, 1), 1)
    with pytest.raises(ExportError, match="torch's own output on x is not finite, expected numbers"):
        compare(Scale(math.nan), file, [("x", (torch.ones(1, 3),))], [])


def test_a_file_that_cannot_be_run() -> None:
    with pytest.raises(ExportError, match=r"onnxruntime cannot load the ONNX file \(\w+: "):
        OnnxNetwork(b"nonsense", 1)
    with pytest.raises(ExportError, match=r"onnxruntime cannot run the ONNX file \(\w+: "):
        OnnxNetwork(scaled(1.0, 1), 1)((torch.ones(1, 4),))


def test_a_network_that_cannot_be_run() -> None:
    with pytest.raises(ExportError, match=r"torch cannot run the network on x \(RuntimeError: "):
        compare(nn.Linear(2, 2), OnnxNetwork(scaled(1.0, 1), 1), [("x", (torch.ones(1, 3),))], [])


def test_accuracies_count_every_image_once() -> None:
    scores = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 0])  # one of seven is wrong
    data = Data(
        name="toy",
        train=loader(scores, labels),
        val=loader(scores, labels),
        test=loader(scores[:2], labels[:2]),
        calib=loader(scores, labels),
        example=scores[:1],
        classes=("a", "b", "c"),
        normalization=Normalization((0.0,), (1.0,)),
        identity="0",
    )

    class Plain:  # (images, labels) as they are: the rows are scores, not pixels
        def __init__(self, images: Tensor, labels: Tensor) -> None:
            self.images, self.labels = images, labels

        def __iter__(self):
            yield from zip(self.images.split(3), self.labels.split(3), strict=True)

    object.__setattr__(data, "val", Plain(scores, labels))
    object.__setattr__(data, "test", Plain(scores[:2], labels[:2]))
    file = OnnxNetwork(scaled(1.0, 1), 1)
    assert accuracy_facts(file, data) == {
        "accuracy": {"val": 6 / 7, "test": 1.0},
        "accuracy_top5": {},  # of three classes it would say nothing
        "accuracy_by_class": {"val": {"a": 3 / 4, "b": 1.0, "c": 1.0}, "test": {"a": 1.0, "b": 1.0}},
    }
    object.__setattr__(data, "classes", ("a", "b", "a"))
    assert accuracy_facts(file, data)["accuracy_by_class"]["val"] == {"a (0)": 3 / 4, "b": 1.0, "a (2)": 1.0}
    assert accuracy_facts(file, None) == {"accuracy": {}, "accuracy_top5": {}, "accuracy_by_class": {}}


def test_top_five_of_equal_scores_takes_the_first_as_argmax_does() -> None:
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [0.0] * 6, [0.0] * 6, [1.0, 2, 3, 4, 5, 6]])
    labels = torch.tensor([4, 5, 4, 0])
    plain = [(scores, labels)]
    data = Data(
        name="toy", train=plain, val=plain, test=plain, calib=plain, example=scores[:1],
        classes=tuple("abcdef"), normalization=Normalization((0.0,), (1.0,)), identity="0",
    )  # type: ignore[arg-type]  # fmt: skip
    facts = accuracy_facts(OnnxNetwork(scaled(1.0, 1, width=6), 1), data)
    assert facts["accuracy_top5"] == {"val": 0.5, "test": 0.5}
    assert facts["accuracy"]["test"] == 0.0
    assert facts["accuracy_by_class"]["test"] == {"a": 0.0, "e": 0.0, "f": 0.0}
