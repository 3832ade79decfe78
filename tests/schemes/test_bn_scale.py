from __future__ import annotations

import torch

from edgeprune.schemes import BNScale


def test_is_the_size_of_the_norm_weights_and_groups_without_norms_are_left_out(net, groups, data):
    model = net()
    with torch.no_grad():
        model[1].weight[1] = -2.5
        model[1].weight[4] = 0.0
    scores = BNScale().fit(model, groups, data)
    assert list(scores) == ["0", "3"]
    assert torch.equal(scores["0"], model[1].weight.detach().abs())
    assert torch.equal(scores["3"], model[4].weight.detach().abs())
    assert float(scores["0"][4]) == 0
