"""Times of the models of a job, in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from .common import WARM_UP, Job, blaming, ort
from .disturbance import Disturbance
from .session import DTYPES, make_inputs, open_session, run_once, session_options, warm_library

BLOCK = 5  # timed runs between two switches of models


def latency(job: Job) -> Job:
    """Time the models in turns, ABBA, so that what disturbs the machine meets all of them alike.

    Each turn throws one run away, since the other model evicted the caches, and times ``BLOCK`` runs. Sample
    k of one model and sample k of the other make a pair. Stops after ``runs`` samples of each model, or after
    ``seconds`` once there are ``min_runs``, always after a whole ABBA.
    """
    warm_library()
    opened = [open_timed(job, model) for model in job["models"]]
    for run, _ in opened:
        for _ in range(WARM_UP):
            run()
    samples: list[list[int]] = [[] for _ in opened]
    turns = [*range(len(opened)), *reversed(range(len(opened)))]
    clock = time.perf_counter_ns
    gc.collect()
    gc.disable()
    disturbance = Disturbance()
    deadline = clock() + int(job["seconds"] * 1e9)
    while len(samples[0]) < job["runs"] and (len(samples[0]) < job["min_runs"] or clock() < deadline):
        for index in turns:
            run, record = opened[index][0], samples[index].append
            run()
            for _ in range(BLOCK):
                start = clock()
                run()
                record(clock() - start)
    models = [{**o[1], "samples_ns": taken} for o, taken in zip(opened, samples, strict=True)]
    return {"models": models, "machine": disturbance.so_far()}


def open_timed(job: Job, model: str) -> tuple[Callable[[], None], dict[str, int]]:
    """Load a model: a function that runs it on buffers made before; times of loading and the first run."""
    clock = time.perf_counter_ns
    with blaming(model):
        start = clock()
        session = open_session(job, model, session_options(job))
        load_ns = clock() - start
        feed = make_inputs(job, session)
        start = clock()
        outputs = run_once(job, session, feed)
        first_ns = clock() - start
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output, array in zip(session.get_outputs(), outputs, strict=True):
        if output.type in DTYPES:
            value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype)
            binding.bind_ortvalue_output(output.name, value)
        else:  # strings and sequences cannot be allocated before
            binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding), {"load_ns": load_ns, "first_ns": first_ns}
