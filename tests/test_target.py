import hashlib
import tomllib
from pathlib import Path

import pytest

from edgeprune import target as target_module
from edgeprune.errors import TargetError
from edgeprune.metrics import METRICS
from edgeprune.target import PROVIDERS, Budget, Runtime, list_targets, load_target

SHIPPED = (
    "android-nnapi",
    "android-xnnpack",
    "ios-coreml",
    "local-cpu",
    "local-cpu-avx512",
    "local-cuda",
    "phone-browser",
    "raspberry-pi-5",
    "snapdragon-qnn",
)

CONTRACT = """
name = "Raspberry Pi 5, 4 threads"
channel_multiple = 8
[runtime]
runner = "ssh"                     # local | ssh | adb | browser
host = "pi@raspberrypi.local"
provider = "CPUExecutionProvider"
python = "python3"                 # interpreter that has this provider's onnxruntime
threads = 4
precision = "fp32"                 # fp32 | fp16 | int8
input = [1, 3, 32, 32]
[budgets]
max_latency_p95 = "12 ms"
max_size = "1.5 MB"
max_peak_memory = "80 MB"
max_accuracy_drop = "0.5 pp"       # against the dense network in the same run
max_latency_ratio = 0.6
max_instructions_ratio = 0.6
"""


@pytest.fixture
def write(tmp_path):
    def write_target(text: str | bytes) -> Path:
        path = tmp_path / "mine.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_target


def faults_of(path: Path) -> list[str]:
    with pytest.raises(TargetError, match="could not use the target file") as caught:
        load_target(path)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")[1:]


def test_reads_placement(write):
    target = load_target(write('name = "x"\n[runtime]\nstrict = true\n[budgets]\nmax_partitions = 1\n'))
    assert target.runtime.strict
    assert target.budgets == (Budget("max_partitions", "partitions", True, 1, "1"),)
    assert not load_target(write('name = "x"\n')).runtime.strict


def test_reads_the_contract(write):
    path = write(CONTRACT)
    target = load_target(path)
    assert (target.name, target.channel_multiple, target.path) == ("Raspberry Pi 5, 4 threads", 8, path)
    assert target.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert target.runtime == Runtime(
        runner="ssh", host="pi@raspberrypi.local", python="python3", threads=4, input=(1, 3, 32, 32)
    )
    assert target.budgets == (
        Budget("max_latency_p95", "latency_p95", True, 0.012, "12 ms"),
        Budget("max_size", "size", True, 1.5e6, "1.5 MB"),
        Budget("max_peak_memory", "peak_memory", True, 8e7, "80 MB"),
        Budget("max_accuracy_drop", "accuracy_drop", True, 0.005, "0.5 pp"),
        Budget("max_latency_ratio", "latency_ratio", True, 0.6, "0.6"),
        Budget("max_instructions_ratio", "instructions_ratio", True, 0.6, "0.6"),
    )


def test_only_a_name_is_needed(write):
    target = load_target(write('name = "x"'))
    assert (target.channel_multiple, target.runtime, target.budgets) == (8, Runtime(), ())


def test_every_metric_can_be_limited_on_both_sides(write):
    written = {"time": '"5 ms"', "rate": '"5 /s"', "size": '"5 MB"', "fraction": '"5 %"', "drop": '"5 pp"'}
    lines = [
        f"{end}_{m.name} = {written.get(m.quantity, 5)}" for m in METRICS.values() for end in ("min", "max")
    ]
    budgets = load_target(write('name = "x"\n[budgets]\n' + "\n".join(lines))).budgets
    assert len(budgets) == 2 * len(METRICS)
    assert {(b.metric, b.is_max) for b in budgets} == {
        (name, is_max) for name in METRICS for is_max in (True, False)
    }


def test_provider_options_reach_the_provider_as_text(write):
    text = 'name = "x"\n[runtime.provider_options]\nmode = "burst"\ndevice_id = 0'
    assert load_target(write(text)).runtime.provider_options == {"mode": "burst", "device_id": "0"}


def test_sizes_of_inputs_and_dimensions(write):
    text = 'name = "x"\n[runtime.inputs]\n"a b" = [1, 7]\n[runtime.dims]\nheight = 224'
    runtime = load_target(write(text)).runtime
    assert (runtime.inputs, runtime.dims) == ({"a b": (1, 7)}, {"height": 224})


FAULTS = [  # what stands in the file below its name, and what the one fault says
    ("channel_multiple = true", "channel_multiple = true: expected a whole number of at least 1"),
    ("channel_multiple = 0", "channel_multiple = 0: expected a whole number of at least 1"),
    ("channel_multiple = 8.0", "channel_multiple = 8.0: expected a whole number of at least 1"),
    (
        "threads = 4",
        "threads = 4: unknown key, expected one of name, channel_multiple, runtime, budgets. It bel",
    ),
    ("threads = 4", "It belongs under [runtime]."),
    (
        'nme = "x"',
        'nme = "x": unknown key, expected one of name, channel_multiple, runtime, budgets. Did you',
    ),
    ('nme = "x"', 'Did you mean "name"?'),
    (
        "[budget]\nmax_size = 3",
        'budget = {"max_size": 3}: unknown table, expected one of name, channel_multiple',
    ),
    ("[budget]\nmax_size = 3", 'Did you mean "budgets"?'),
    ("runtime = 3", "runtime = 3: expected a table, [runtime]"),
    ('[runtime]\nrunner = "shh"', 'runtime.runner = "shh": expected one of local, ssh, adb, browser'),
    ("[runtime]\nrunner = 3", "runtime.runner = 3: expected one of local, ssh, adb, browser"),
    ('[runtime]\nrunner = "ssh"', 'runtime.runner = "ssh": needs a host, e.g. host = "pi@raspberrypi.local"'),
    ('[runtime]\nhost = "a"', 'runtime.host = "a": the runner "local" has none'),
    (
        '[runtime]\nrunner = "ssh"\nhost = "pi"\nperf_test = "x"',
        'runtime.perf_test = "x": the runner "ssh" takes none, expected runner = "adb", or no perf_test',
    ),
    (
        '[runtime]\nrunner = "adb"\nperf_test = ""',
        'runtime.perf_test = "": expected a text that is not empty',
    ),
    (
        '[runtime]\nrunner = "adb"\npython = "x"',
        'runtime.python = "x": the runner "adb" has none, expected runner = "local" or "ssh", or no python',
    ),
    ('[runtime]\nweb = "a"', 'runtime.web = "a": is for the runner "browser" alone'),
    ('[runtime]\nrunner = "browser"\nweb = 1', "runtime.web = 1: expected a text that is not empty"),
    ('[runtime]\nhost = ""\nrunner = "ssh"', 'runtime.host = "": expected a text that is not empty'),
    ('[runtime]\npython = "a\\nb"', 'runtime.python = "a\\nb": expected a text that is not empty'),
    (
        '[runtime]\nprovider = "CudaExecutionProvider"',
        'runtime.provider = "CudaExecutionProvider": expected the',
    ),
    ('[runtime]\nprovider = "CudaExecutionProvider"', 'Did you mean "CUDAExecutionProvider"?'),
    ('[runtime]\nprovider = "quantum"', "Known: ACLExecutionProvider, ArmNNExecutionProvider"),
    ("[runtime]\nprovider = 1", "runtime.provider = 1: expected the name of an execution provider"),
    (
        "[runtime]\nprovider_options = 1",
        "runtime.provider_options = 1: expected a table, [runtime.provider_opt",
    ),
    (
        "[runtime.provider_options]\na = true",
        "runtime.provider_options.a = true: expected a text or a whole n",
    ),
    ("[runtime]\nthreads = 0", "runtime.threads = 0: expected a whole number of at least 1"),
    ("[runtime]\nthreads = true", "runtime.threads = true: expected a whole number of at least 1"),
    ('[runtime]\nthreads = "4"', 'runtime.threads = "4": expected a whole number of at least 1'),
    ("[runtime]\nstrict = 1", "runtime.strict = 1: expected true or false"),
    ('[runtime]\nprecision = "fp64"', 'runtime.precision = "fp64": expected one of fp32, fp16, int8'),
    ("[runtime]\ninput = []", "runtime.input = []: expected whole numbers of at least 1, e.g."),
    ("[runtime]\ninput = [1, 3, 32.0, 32]", "runtime.input = [1, 3, 32.0, 32]: expected whole numbers"),
    ("[runtime]\ninput = [-1, 3]", "runtime.input = [-1, 3]: expected whole numbers"),
    ("[runtime]\ninput = [true]", "runtime.input = [true]: expected whole numbers"),
    ("[runtime]\ninput = 32", "runtime.input = 32: expected whole numbers"),
    ("[runtime.inputs]\nmask = [0]", "runtime.inputs.mask = [0]: expected whole numbers of at least 1, e.g."),
    ("[runtime]\ninputs = [1]", "runtime.inputs = [1]: expected a table, [runtime.inputs]"),
    ("[runtime.dims]\nheight = 0", "runtime.dims.height = 0: expected a whole number of at least 1"),
    ('[runtime.dims]\nheight = "8"', 'runtime.dims.height = "8": expected a whole number of at least 1'),
    ("[runtime]\ndims = 8", "runtime.dims = 8: expected a table, [runtime.dims]"),
    (
        "[runtime]\nthread = 2",
        "runtime.thread = 2: unknown key, expected one of runner, provider, provider_opti",
    ),
    ("[runtime]\nthread = 2", 'Did you mean "threads"?'),
    ("[runtime]\nchannel_multiple = 8", "It belongs above the first table."),
    ("[runtime]\nmax_size_ratio = 1", "It belongs under [budgets]."),
    (
        '[budgets]\nmax_latancy_p95 = "12 ms"',
        'budgets.max_latancy_p95 = "12 ms": unknown key, expected max_ or',
    ),
    (
        '[budgets]\nmax_latancy_p95 = "12 ms"',
        "expected max_ or min_ and one of latency_p50, latency_p90, laten",
    ),
    ('[budgets]\nmax_latancy_p95 = "12 ms"', 'Did you mean "max_latency_p95"?'),
    ('[budgets]\nlatency_p95 = "12 ms"', 'Did you mean "max_latency_p95" or "min_latency_p95"?'),
    ("[budgets]\nmax_ = 1", "budgets.max_ = 1: unknown key"),
    ("[budgets]\nmax_size = 1.5", 'budgets.max_size = 1.5: expected a size with its unit, e.g. "1.5 MB"'),
    ('[budgets]\nmax_size = "1.5 mb"', 'budgets.max_size = "1.5 mb": expected a size in one of the units B,'),
    ('[budgets]\nmax_size = "1.5 ms"', 'budgets.max_size = "1.5 ms": expected a size in one of the units B,'),
    ("[budgets]\nmax_latency_ratio = 0", "budgets.max_latency_ratio = 0: expected a ratio, above 0"),
    ("[budgets]\nmax_latency_ratio = nan", "budgets.max_latency_ratio = NaN: expected a ratio"),
    ("[budgets]\nmax_latency_ratio = true", "budgets.max_latency_ratio = true: expected a ratio"),
    ("[budgets]\nmax_macs_ratio = 2020-01-01", 'budgets.max_macs_ratio = "2020-01-01": expected a ratio'),
    (
        "[budgets]\nmax_macs = 0x" + "f" * 5000,
        "budgets.max_macs = a number of thousands of digits: expected a",
    ),
    ("[budgets.max_size]\na = 1", 'budgets.max_size = {"a": 1}: expected a size'),
    (
        "[budgets]\nmax_macs = 2\nmin_macs = 3",
        "budgets.max_macs = 2: below min_macs = 3, so nothing can pass",
    ),
    ("budgets = 1", "budgets = 1: expected a table, [budgets]"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_each_fault_is_named_with_key_value_and_rule(write, text, fault):
    (line,) = faults_of(write(f'name = "x"\n{text}\n'))
    assert line.startswith("  1. ")
    assert fault in line


def test_a_name_is_missing_or_empty(write):
    assert faults_of(write(""))[0].startswith("  1. name: missing, expected the device in words")
    assert faults_of(write('name = " "'))[0] == '  1. name = " ": expected a text that is not empty.'


EVERYTHING_WRONG = """
name = 1
extra = "x"
[runtime]
threads = 0
thread = 1
precision = "fp8"
[budgets]
max_sise = 3
max_macs_ratio = -1
"""


def test_all_faults_are_reported_at_once(write):
    lines = faults_of(write(EVERYTHING_WRONG))
    assert [line.split(" = ")[0] for line in lines] == [
        "  1. name",
        "  2. runtime.threads",
        "  3. runtime.precision",
        "  4. runtime.thread",
        "  5. budgets.max_macs_ratio",
        "  6. budgets.max_sise",
        "  7. extra",
    ]


def test_one_bad_line_does_not_hide_behind_good_ones(write):
    """The control of the tests above: the contract's own file with one line made wrong."""
    for wrong in ('max_sizes = "1.5 MB"', 'max_size = "1.5 Mb"', "max_size = 1500000"):
        assert len(faults_of(write(CONTRACT.replace('max_size = "1.5 MB"', wrong)))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b'name = "x"\n[budgets\nmax_size = 3',
            r"mine\.toml is not TOML: .* \(at line 2, .*\)\n  line 2: `\[budgets`",
        ),
        (b'name = "x', r"is not TOML: .*\n  line 1: `name = \"x`"),
        (b"name = 1\nname = 2", r"is not TOML: Cannot overwrite a value .*\n  line 2: `name = 2`"),
        (b"a = " + b"[" * 100_000, r"is not TOML: nested too deeply"),
        (b"a = " + b"1" * 10_000, r"is not TOML: .*4300"),
        (b'name = "x"\nb = "\xff"', r"is not UTF-8 text \(line 2\), expected TOML, which is always UTF-8"),
    ],
)
def test_what_is_not_toml_is_shown_with_its_line(write, text, message):
    with pytest.raises(TargetError, match=message):
        load_target(write(text))


def test_a_byte_order_mark_is_no_fault(write):
    assert load_target(write(b'\xef\xbb\xbfname = "x"')).name == "x"


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(
        TargetError, match=r"none\.toml is not there.* ship with edgeprune: android-nnapi, android-x"
    ):
        load_target(tmp_path / "none.toml")
    with pytest.raises(TargetError, match=r"is a folder, expected a \.toml file"):
        load_target(tmp_path)
    with pytest.raises(TargetError, match=r"is unreadable \(Not a directory\)"):
        load_target(Path(__file__) / "x.toml")
    with pytest.raises(TargetError, match=r"is unreadable \(File name too long\)"):
        load_target(tmp_path / ("x" * 300 + ".toml"))

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(TargetError, match=r"is unreadable \(Permission denied\)"):
        load_target(tmp_path / "x.toml")


def test_a_name_is_looked_up_among_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local-cpu").write_text("not this one")
    assert load_target("local-cpu").path == list_targets()["local-cpu"]
    message = (
        r'--target is "local-cup", expected one of android-nnapi, .* or a path. Did you mean "local-cpu"'
    )
    with pytest.raises(TargetError, match=message):
        load_target("local-cup")
    (tmp_path / "mine.toml").write_text('name = "mine"')
    assert load_target("mine.toml").name == load_target("./mine.toml").name == "mine"
    with pytest.raises(TargetError, match=r'--target is "mine"'):
        load_target("mine")


def test_the_package_folder_comes_before_the_source_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site" / "edgeprune"
    for folder, name in ((package.parent / "targets", "beside"), (package / "targets", "inside")):
        monkeypatch.setattr(target_module, "__file__", str(package / "target.py"))
        folder.mkdir(parents=True)
        (folder / f"{name}.toml").write_text('name = "x"')
        assert list(list_targets()) == [name]


def test_without_any_shipped_file_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(target_module, "__file__", str(tmp_path / "edgeprune" / "target.py"))
    assert list_targets() == {}
    with pytest.raises(TargetError, match="expected one of none, or a path"):
        load_target("local-cpu")


def test_the_shipped_targets_are_these():
    assert tuple(list_targets()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_target_is_complete_and_commented(name):
    target = load_target(name)
    text = target.path.read_text()
    table = tomllib.loads(text)
    assert {"name", "channel_multiple", "runtime", "budgets"} == set(table)
    assert {"runner", "provider", "threads", "precision"} <= set(table["runtime"])
    assert target.channel_multiple in (8, 16, 32)
    assert {"latency_ratio", "size", "accuracy_drop"} - {b.metric for b in target.budgets} <= {"size"}
    assert {"size", "size_ratio"} & {b.metric for b in target.budgets}
    comments = [line for line in text.splitlines() if "#" in line]
    assert len(comments) > len(target.budgets) + 5
    assert "install" in text.lower() or "adb" in text  # what the device needs
    assert max(map(len, text.splitlines())) <= 110


def test_what_the_demo_gates_on():
    target = load_target("local-cpu")
    assert target.runtime == Runtime()
    assert {b.key: b.limit for b in target.budgets} == {
        "max_latency_ratio": 0.95,
        "max_size_ratio": 0.8,
        "max_size": 2e6,
        "max_macs_ratio": 0.65,
        "max_peak_memory_ratio": 1.0,
        "max_accuracy_drop": 0.01,
        "max_parity_error": 1e-4,
    }
    providers = {name: load_target(name).runtime.provider for name in SHIPPED}
    assert len(set(providers.values())) == 6  # the Raspberry Pi and this machine's two share the CPU


def test_every_provider_that_onnxruntime_knows_is_accepted():
    onnxruntime = pytest.importorskip("onnxruntime")
    assert set(onnxruntime.get_all_providers()) <= set(PROVIDERS)


def test_how_a_command_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_target("local-cpu").option == "local-cpu"
    (tmp_path / "local-cpu.toml").write_text('name = "mine"')
    monkeypatch.chdir(tmp_path)
    assert load_target("local-cpu.toml").option == "local-cpu.toml"
    (tmp_path / "a b.toml").write_text('name = "mine"')
    option = load_target(tmp_path / "a b.toml").option
    assert option == f"'{tmp_path}/a b.toml'"


def test_what_is_known_is_listed_once(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('name = "t"\n[budgets]\nmax_sizes = "1 MB"\nmax_mac = 3\n')
    with pytest.raises(TargetError) as caught:
        load_target(path)
    text = str(caught.value)
    assert text.count("expected max_ or min_ and one of latency_p50") == 1
    assert 'budgets.max_mac = 3: unknown key. Did you mean "max_macs"?' in text
