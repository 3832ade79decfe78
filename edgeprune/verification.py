"""Does an exported file still compute and classify what its sidecar says? Host side: torch rebuilds it."""

from __future__ import annotations

from typing import Any

import torch

from edgeprune.artifact import ACCURACIES, Artifact, normalization_of
from edgeprune.data import Data
from edgeprune.errors import ArtifactError, EdgepruneError
from edgeprune.integrity import Check, weights_of
from edgeprune.parity import Inputs, OnnxNetwork, accuracy_facts, compare, random_inputs, real_images
from edgeprune.pipeline.host import load_network
from edgeprune.precision import note_of
from edgeprune.surgery import load_slim
from edgeprune.units import show_value

NEEDS = ("file", "metadata", "weights")
"""Checks that must not have failed: otherwise it is another file that would be run."""


def check_parity(artifact: Artifact, checks: list[Check], data: Data | None = None) -> Check:
    """Run the file beside the network that its weights, plan and source rebuild.

    Args:
        artifact: As the sidecar describes it.
        checks: What was found out about the files: a file that is not the described one is not run.
        data: Adds real images to the random ones.
    """
    name, path = "parity", weights_of(artifact)
    reason = _why_not(checks) or _why_no_parity(artifact, data)
    if reason is None and not path.is_file():
        reason = f"{path.name} does not lie beside the file"
    if reason:
        return Check(name, "not checked", reason)
    assert artifact.input_shape is not None
    limit = artifact.provenance.get("parity", {}).get("tolerance")
    try:
        rebuild = load_network if artifact.provenance.get("role") == "dense" else load_slim
        network = rebuild(path).cpu().float().eval()
        file = _opened(artifact)
        example: Inputs = (torch.zeros(max(artifact.input_shape[0], 1), *artifact.input_shape[1:]),)
        is_int8 = note_of(artifact).get("name") == "int8"
        found = compare(
            network,
            file,
            [] if is_int8 else random_inputs(example),  # of another kind than what calibrated the ranges
            real_images(data.val) if data is not None else [],
        )
    except EdgepruneError as reason_:
        return Check(name, "failed", str(reason_))
    against = f"{found.error:.1e} of the largest output between the file and {path.name}"
    if not isinstance(limit, int | float):
        return Check(name, "not checked", f"{against}; the sidecar tells no tolerance")
    # A variant was held against the float32 file, which is off by a little itself.
    limit += note_of(artifact).get("source", {}).get("parity_error") or 0.0
    if not found.error <= limit:
        return Check(name, "failed", f"{against}, expected at most {limit:g}")
    return Check(name, "passed", f"{against}, at most {limit:g}")


def check_accuracy(artifact: Artifact, checks: list[Check], data: Data) -> Check:
    """Classify the validation and the test split anew.

    Args:
        artifact: As the sidecar describes it.
        checks: What was found out about the files.
        data: The data that the sidecar names.
    """
    name = "accuracy"
    reason = _why_not(checks)
    if reason is None and not artifact.accuracy:
        reason = "the sidecar tells none"
    if reason:
        return Check(name, "not checked", reason)
    told = artifact.provenance.get("data")
    identity = told.get("identity") if isinstance(told, dict) else None
    if identity is not None and identity != data.identity:
        text = (
            f"the data are others than the sidecar's (identity {data.identity[:12]}…, not {identity[:12]}…)"
        )
        return Check(name, "failed", text)
    try:
        found = accuracy_facts(_opened(artifact), data)
    except EdgepruneError as reason_:
        return Check(name, "failed", str(reason_))
    wrong = [key for key in ACCURACIES if found[key] != getattr(artifact, key)]
    shares = ", ".join(f"{split} {share * 100:.2f} %" for split, share in found["accuracy"].items())
    if not wrong:
        return Check(name, "passed", f"{shares}, all as in the sidecar")
    says = ", ".join(f"{split} {share * 100:.2f} %" for split, share in artifact.accuracy.items())
    others = ", ".join(key.replace("_", " ") for key in wrong)
    return Check(name, "failed", f"{shares}; the sidecar says {says}; different: {others}")


def _opened(artifact: Artifact) -> OnnxNetwork:
    batch = artifact.input_shape[0] if artifact.input_shape else 1
    return OnnxNetwork(artifact.path.read_bytes(), batch if batch > 0 else None)


def _why_not(checks: list[Check]) -> str | None:
    failed = [check.name for check in checks if check.name in NEEDS and check.state == "failed"]
    return f"the check of {' and '.join(failed)} failed" if failed else None


def _why_no_parity(artifact: Artifact, data: Data | None) -> str | None:
    if artifact.input_shape is None or "weights_sha256" not in artifact.provenance:
        return "the sidecar does not tell what the file was exported from"
    if note_of(artifact).get("name") == "int8" and data is None:
        return "int8 is compared on real images: give --data"
    return None


def data_of(artifact: Artifact, spec: str, **options: Any) -> Data:
    """The data set of a spec, normalised and split as the sidecar says.

    Args:
        artifact: As the sidecar describes it.
        spec: See ``edgeprune.load_data``.
        **options: Of ``load_data``.

    Raises:
        ArtifactError: The sidecar's normalization is none.
    """
    from edgeprune.data import Normalization, load_data

    facts = artifact.provenance
    told = normalization_of(facts)
    if told is None and facts.get("normalization") is not None:
        raise ArtifactError(
            "could not normalise the images",
            where=f"normalization in {artifact.sidecar}",
            value=show_value(facts["normalization"]),
            expected="mean and std, a number above 0 in std for each channel",
            hint="Export the network again.",
        )
    wanted = None if told is None else Normalization(*told)
    seed = facts.get("seed", 0)
    return load_data(spec, normalization=wanted, seed=seed if isinstance(seed, int) else 0, **options)
