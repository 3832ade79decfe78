"""What runs on the device: one self-contained folder, on numpy and onnxruntime (>= 1.21), Python >= 3.10.

Providers live in environments that exclude each other, so the interpreter that the target names runs this
folder by its path, and nothing else of edgeprune is imported here. It reads one job as JSON from stdin and
prints one JSON object as the last line of stdout.

    {"job": "environment"}
    {"job": "placement" | "instructions", "models": [path], ...}
    {"job": "memory", "models": [path], "arena": false, ...}
    {"job": "reference", "models": [path], "folder": where its inputs and outputs go, ...}
    {"job": "latency", "models": [path, ...], "runs": 70, "min_runs": 13, "seconds": 4.0, ...}

    with ... = "provider": name, "provider_options": {}, "threads": 1, "input": shape of the first or null,
    "inputs": {name: shape}, "dims": {name of a dimension: size}

A failure answers {"error": {"kind", "message", "hint", "model"}} and exits with 2 or 3. Kinds: "model" (the
file), "provider" (absent, or took no part), "environment" (numpy or onnxruntime), "worker" (a bug here).
"""
