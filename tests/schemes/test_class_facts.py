"""What the class-wise schemes keep of the classes is what the report reads."""

import json

import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.report import class_structure
from edgeprune.schemes import make_scheme


@pytest.mark.parametrize(("name", "kind"), [("sglp-ib", "graph"), ("stlp-ib", "tree")])
def test_the_report_reads_the_facts(name, kind):
    torch.manual_seed(0)
    layers = [layer for width in (3, 6, 6, 6, 6) for layer in (nn.Conv2d(width, 6, 3, padding=1), nn.ReLU())]
    pool = nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(6, 10)).eval()
    data = ep.load_data("digits", batch_size=64)
    groups = ep.find_groups(model, data.example)
    scores = make_scheme(name, images=20, lambdas=3, path_ratio=0.3).fit(model, groups, data)
    facts = json.loads(json.dumps(scores.facts))
    # In the network's order: by name, "12" would stand before "2".
    assert list(facts["layers"]) == ["2", "4", "6", "8", "12"]
    structure = class_structure(facts)
    assert (structure.kind, structure.layer, list(structure.before)) == (kind, "12", ["2", "4", "6", "8"])
    assert structure.classes == tuple(data.classes)
    assert len(structure.links) == 9
    assert bool(structure.edges) == (kind == "graph")
