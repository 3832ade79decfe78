"""What a model computes on the CPU provider, as files, to compare another runtime's outputs with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .common import CPU, Fault, Job, blaming
from .session import DTYPES, make_inputs, open_session, run_once, session_options


def reference(job: Job) -> Job:
    """Run a model once and write its inputs and outputs into ``folder``: bare numbers, little-endian."""
    model, folder = job["models"][0], Path(job["folder"])
    job = {**job, "provider": CPU, "provider_options": {}}
    with blaming(model):
        session = open_session(job, model, session_options(job))
        feed = make_inputs(job, session)
        outputs = run_once(job, session, feed)
        odd = [value for value in session.get_outputs() if value.type not in DTYPES]
        if odd:
            raise Fault("model", f"made for an output '{odd[0].name}' of type {odd[0].type}")
    arrays = [(value, feed[value.name], f"input{k}.bin") for k, value in enumerate(session.get_inputs())]
    results = [
        (value, array, f"output{k}.bin")
        for k, (value, array) in enumerate(zip(session.get_outputs(), outputs, strict=True))
    ]
    return {
        "inputs": [written(folder, *each) for each in arrays],
        "outputs": [written(folder, *each) for each in results],
    }


def written(folder: Path, value: Any, array: Any, file: str) -> Job:
    """Write a tensor; what it is."""
    array.astype(array.dtype.newbyteorder("<"), copy=False).tofile(folder / file)
    shape = list(array.shape)
    return {"name": value.name, "type": value.type, "dtype": DTYPES[value.type], "shape": shape, "file": file}
