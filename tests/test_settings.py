"""Constants, overrides, --help and the environment, on small scripts in a temporary folder and on the real scripts."""

import ast
import os
import re
import runpy
import subprocess
import sys

import pytest
from scripts import REPOSITORY, run_in_process, script_globals

from fincompress import settings
from fincompress.errors import UserError
from fincompress.settings import ENVIRONMENT, RANGES, TOKENS, check_choice, constant_types

CALL = re.compile(r"^(?:\w+ = )?configure\(", re.MULTILINE)
SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*.py") if CALL.search(path.read_text()))
WITH_BENCHMARKS = [
    *SCRIPTS,
    *(f"benchmarks/{p.name}" for p in REPOSITORY.glob("benchmarks/*.py") if CALL.search(p.read_text())),
]
THREADS = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_DEVICE_ORDER", "PYTORCH_ALLOC_CONF")
SECRET = "hf_doNotShowThis"

SOURCE = '''"""A small script."""

from fincompress.settings import configure

# a heading, which belongs to no constant
DATA_DIR = "data"  # where it lies
LEARNING_RATE: float = 1e-3  # peak; "#" is no comment inside of text
RANK: int | None = None  # None: all
TEXT = "a # b"
NOTES: str | None = None  # free text
MODE = (
    "retrieved"  # the line that a formatter wrapped
)
LAYERS = [
    1,
    2,
]  # a list over several lines
QUICK = False  # a sliver
CHECKPOINTING: bool | None = None  # None: on a GPU
SHARE: float | None = 0.5  # between 0 and 1
SEED = 0  # of everything
lower = 1  # no constant
# -----------------------------------------------------------------------------
SETTINGS = configure(globals())

import os
import sys

AFTER = 1  # below the call, so not to be overridden
'''


@pytest.fixture(autouse=True)
def _clean_environment():
    """Settings change os.environ for good, and the machine's own .env variables must not decide a test."""
    before = dict(os.environ)
    for name in (*ENVIRONMENT, *TOKENS, *THREADS):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "ROOT", tmp_path)  # where .env is read
    path = tmp_path / "small.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def run(script, monkeypatch):
    """Run the small script as a command would, in this process; returns its globals."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        return runpy.run_path(str(script), run_name="__main__")

    return run


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def edit(script, line, new):
    source = script.read_text()
    assert source.count(line) == 1
    script.write_text(source.replace(line, new))


# --- reading constants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "default", "types"),
    [
        ("DATA_DIR", "data", (str,)),
        ("LEARNING_RATE", 1e-3, (float,)),
        ("RANK", None, (int, type(None))),
        ("TEXT", "a # b", (str,)),
        ("NOTES", None, (str, type(None))),
        ("MODE", "retrieved", (str,)),
        ("LAYERS", [1, 2], (list,)),
        ("QUICK", False, (bool,)),
        ("CHECKPOINTING", None, (bool, type(None))),
        ("SHARE", 0.5, (float, type(None))),
    ],
)
def test_a_constant_is_read_with_its_types(run, name, default, types):
    constants = run()
    assert (constants[name], constant_types(constants)[name]) == (default, types)


def test_every_constant_above_the_call_can_be_overridden_and_nothing_else(run):
    assert list(run()["SETTINGS"]) == [
        "DATA_DIR", "LEARNING_RATE", "RANK", "TEXT", "NOTES", "MODE", "LAYERS", "QUICK", "CHECKPOINTING", "SHARE",
        "SEED",
    ]  # fmt: skip


# --- overrides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dotenv", "environment", "arguments", "value", "origin"),
    [
        (None, None, [], "data", None),
        ("d", None, [], "d", ".env"),
        ("d", "e", [], "e", "environment"),
        ("d", "e", ["--DATA_DIR=c"], "c", "command line"),
        (None, "e", ["--DATA_DIR=c"], "c", "command line"),
        ("d", "", [], "d", ".env"),
        ("", None, [], "data", None),
        (None, None, ["--DATA_DIR=c", "--DATA_DIR=last"], "last", "command line"),
        (None, None, ["--DATA_DIR=~/c"], os.path.expanduser("~/c"), "command line"),
        ("~/d", None, [], os.path.expanduser("~/d"), ".env"),
    ],
)
def test_overrides_rank_command_environment_dotenv(run, script, capsys, dotenv, environment, arguments, value, origin):
    if dotenv is not None:
        (script.parent / ".env").write_text(f"DATA_DIR={dotenv}\n")
    if environment is not None:
        os.environ["DATA_DIR"] = environment
    constants = run(*arguments)
    assert constants["DATA_DIR"] == constants["SETTINGS"]["DATA_DIR"] == value
    assert capsys.readouterr().out == (f"DATA_DIR = {value!r}  ({origin})\n" if origin else "")


def test_only_a_command_sets_what_no_machine_decides_and_dotenv_says_so(run, script, capsys):
    os.environ["SEED"] = "7"
    (script.parent / ".env").write_text("SEED=7\nRANK=7\nHF_TOKEN=secret\nhf_pasted\n")
    constants = run()
    assert (constants["SEED"], constants["RANK"]) == (0, None)
    assert [line.split(";")[0] for line in capsys.readouterr().out.splitlines()] == [
        ".env: a line without = is not read", ".env: RANK is not read", ".env: SEED is not read",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "edited", "value"),
    [
        ("LEARNING_RATE: float = 1e-3", "LEARNING_RATE: float = 7e-4 / 2", 3.5e-4),
        ("LEARNING_RATE: float = 1e-3", "LEARNING_RATE: float = 1", 1.0),
        ("SHARE: float | None = 0.5", "SHARE: float | None = 1", 1.0),
        ("SEED = 0", "SEED = 2**5", 32),
        ("SEED = 0", "SEED = len(TEXT)", 5),
    ],
)
def test_an_edited_constant_may_be_an_expression_and_an_int_a_float(run, script, line, edited, value):
    edit(script, line + "  #", edited + "  #")
    name = line.partition(":")[0].partition(" ")[0]
    constants = run()
    assert (constants[name], type(constants[name])) == (value, type(value))
    assert constants["SETTINGS"][name] == value


def test_an_int_edited_into_a_float_constant_leaves_it_a_float_on_the_command_line(run, script):
    edit(script, "LEARNING_RATE: float = 1e-3", "LEARNING_RATE: float = 3")
    assert run("--LEARNING_RATE=0.7")["LEARNING_RATE"] == 0.7


@pytest.mark.parametrize("edited", ['"high"', "None", "[1e-3]", "True", "1e999", 'float("nan")', "10**5000"])
def test_an_edited_constant_of_another_type_is_one_line(run, script, capsys, edited):
    edit(script, "LEARNING_RATE: float = 1e-3", f"LEARNING_RATE: float = {edited}")
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: LEARNING_RATE takes float, not ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "name", "edited", "said"),
    [
        ("train_qlora_4bit.py", "LEARNING_RATE", "1e999", "LEARNING_RATE takes float, not inf"),
        ("train_qlora_4bit.py", "LORA_RANK", "4.0", "LORA_RANK takes int, not 4.0"),
        (
            "train_qlora_4bit.py",
            "GRADIENT_CHECKPOINTING",
            '"no"',
            "GRADIENT_CHECKPOINTING takes bool or None, not 'no'",
        ),
        ("train_qlora_4bit.py", "LORA_RANK", "0", "LORA_RANK = 0: must be above 0"),
        ("train_qlora_4bit.py", "SEED", "1" + 30 * "0", "SEED is too large: it must be below 2^32"),
        ("train_qlora_4bit.py", "RUN", r'"a\nb"', r"RUN = 'a\nb': holds a character that cannot be printed"),
        ("sapling_train.py", "DROPS_PER_CYCLE", '"no"', "DROPS_PER_CYCLE takes int or None, not 'no'"),
        ("sapling_train.py", "DEPTHS", "[40, 0]", "DEPTHS = 0: must be above 0"),
        ("sapling_train.py", "DEPTHS", "[1e999]", "DEPTHS takes list[float], not [inf]"),
        ("benchmark_throughput.py", "RUNS", "[1]", "RUNS takes list[str] or None, not [1]"),
        ("train_qlora_4bit.py", "MERGE", '"no"', "MERGE takes bool, not 'no'"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line_edited_or_overridden(
    tmp_path, monkeypatch, capsys, script, name, edited, said
):
    source, count = re.subn(
        rf"^({name}: [^=]*= )[^#]+",
        lambda match: f"{match[1]}{edited}  ",
        (REPOSITORY / script).read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1
    (tmp_path / script).write_text(source)
    monkeypatch.setattr(sys, "argv", [script])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(tmp_path / script), run_name="__main__")
    assert (left.value.code, *capsys.readouterr()) == (2, "", f"error: {said}\n")
    typed = ast.literal_eval(edited) if edited[0] == '"' else edited
    done = run_in_process(script, f"--{name}={typed}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("name", WITH_BENCHMARKS)
def test_every_constant_says_its_type_and_every_number_has_one_range(name):
    above = CALL.split((REPOSITORY / name).read_text())[0]
    untyped = re.findall(r"^([A-Z][A-Z0-9_]*) = ", above.split("# ---", 1)[1], flags=re.MULTILINE)
    assert untyped == []
    ranged = " ".join(names for _, names in RANGES.values()).split()
    assert [constant for constant in constant_types(script_globals(name)) if ranged.count(constant) > 1] == []


def test_a_range_is_of_a_constant_that_there_is():
    constants = {constant for name in WITH_BENCHMARKS for constant in constant_types(script_globals(name))}
    assert {name for _, names in RANGES.values() for name in names.split()} <= constants


@pytest.mark.parametrize("name", WITH_BENCHMARKS)
def test_every_default_is_one_that_may_be_set(name):
    constants = script_globals(name)
    for constant, types in constant_types(constants).items():
        settings.check_value(constant, types, constants[constant])


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/proc/here", "/proc/here"),
        ("{root}/circle", "{root}/circle"),
        ("{root}/file/x", "{root}/file/x"),
        ("x" * 300, "x" * 300),
        ("a\tb", "RESULTS_DIR = 'a\\tb': holds a character that cannot be printed"),
    ],
)
def test_a_folder_that_cannot_be_one_is_one_line(tmp_path, place, said):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").touch()
    place, said = (text.replace("{root}", str(tmp_path)) for text in (place, said))
    for script in ("evaluate.py", "plot_pareto.py", "preprocess_data.py"):
        done = run_in_process(script, f"--RESULTS_DIR={place}")
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--LEARNING_RATE=1", 1.0),
        ("--LEARNING_RATE=2e-4", 2e-4),
        ("--SHARE=1", 1.0),
        ("--SHARE=None", None),
        ("--SEED=3", 3),
        ("--RANK=8", 8),
        ("--RANK=None", None),
        ("--TEXT=a=b=--c", "a=b=--c"),
        ("--TEXT=None", "None"),
        ("--TEXT=1", "1"),
        ("--NOTES=None", None),
        ("--NOTES=x", "x"),
        ("--LAYERS=[3, 4]", [3, 4]),
        ("--QUICK=True", True),
        ("--QUICK=true", True),
        ("--QUICK=false", False),
        ("--CHECKPOINTING=true", True),
        ("--CHECKPOINTING=none", None),
    ],
)
def test_an_override_gets_its_value_in_the_type_of_its_constant(run, argument, value):
    name = argument[2:].partition("=")[0]
    constants = run(argument)
    assert (constants[name], type(constants[name])) == (value, type(value))
    assert constants["SETTINGS"][name] == value


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--SEED=1.0", "SEED takes int, not 1.0"),
        ("--SEED=True", "SEED takes int"),
        ("--SEED=None", "SEED takes int"),
        ("--SEED=", "--SEED= has no value"),
        ("--RANK= ", "--RANK=  has no value; None is one"),
        ("--SEED=__import__('os')", "SEED takes int"),
        ("--SEED={[1]: 2}", "SEED takes int"),
        ("--LEARNING_RATE=fast", "LEARNING_RATE takes float, not 'fast'"),
        ("--LEARNING_RATE=None", "LEARNING_RATE takes float"),
        ("--LEARNING_RATE=True", "LEARNING_RATE takes float"),
        ("--LEARNING_RATE=1e999", "LEARNING_RATE takes float"),
        ("--LEARNING_RATE=" + "9" * 400, "LEARNING_RATE takes float"),
        ("--QUICK=1", "QUICK takes bool"),
        ("--QUICK=None", "QUICK takes bool"),
        ("--LAYERS=3", "LAYERS takes list"),
        ("--RANK=many", "RANK takes int or None, not 'many'"),
        ("--LERNING_RATE=1", "no constant LERNING_RATE; did you mean LEARNING_RATE?"),
        ("--learning-rate=1", "did you mean LEARNING_RATE?"),
        ("--AFTER=2", "no constant AFTER"),
        ("--lower=2", "no constant lower"),
        ("--SEED", "'--SEED' is not of the form --NAME=value"),
        ("SEED=1", "'SEED' is not of the form --NAME=value"),
        ("-SEED=1", "'-SEED' is not of the form --NAME=value"),
    ],
)
def test_a_wrong_override_is_refused_and_explained(run, capsys, argument, said):
    with pytest.raises(SystemExit) as left:
        run(argument)
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{re.escape(said)}.*\n", err)


def test_a_choice_that_is_none_is_refused_and_the_nearest_named():
    check_choice("SPLIT", "dev", ("train", "dev"))
    with pytest.raises(UserError, match="SPLIT is one of 'train', 'dev', not 'deev'; did you mean 'dev'"):
        check_choice("SPLIT", "deev", ("train", "dev"))


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("EPOCHS", [0.1, 2**32 - 1], [0.0, -0.5, 2.0**32]),
        ("SEED", [0, 2**32 - 1], [-1, 2**32]),
        ("GROUP_SIZE", [-1, 128], [0, -2]),
        ("TRAIN_SHARE", [0.1, 1.0], [0.0, 1.1, -0.1]),
    ],
)
def test_a_range_has_the_ends_that_it_says(name, inside, outside):
    for number in inside:
        settings.check_range(name, number)
    for number in outside:
        with pytest.raises(UserError, match=f"^{name} (=|is too large)"):
            settings.check_range(name, number)


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_a_script_has_every_constant_and_does_not_import_torch(name):
    # Run as a command is, with one thing more: which slow libraries were imported by then.
    done = python(
        "-c",
        f"import runpy, sys; sys.argv = [{name!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('slow:', [x for x in ('torch', 'transformers', 'datasets', 'pandas') if x in sys.modules])",
        cwd=REPOSITORY,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nslow: []\n")
    above = CALL.split((REPOSITORY / name).read_text())[0]
    names = re.findall(r"^([A-Z][A-Z0-9_]*)(?:: [^=\n]+)? = ", above, flags=re.MULTILINE)
    assert re.findall(r"^  --([A-Z0-9_]+)=", done.stdout, flags=re.MULTILINE) == names and names
    uncommented = [x for x in names if not re.search(rf"^  --{x}=\S.* {{2}}\S", done.stdout, flags=re.MULTILINE)]
    assert uncommented == []


def test_help_has_the_docstring_and_each_default_and_comment(run, capsys):
    with pytest.raises(SystemExit) as left:
        run("--SEED=1", "--help")
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert out.startswith("A small script.\n")
    for line in (
        "--DATA_DIR=data where it lies",
        "--RANK=None None: all",
        "--MODE=retrieved the line that a formatter wrapped",
        "--LAYERS=[1, 2] a list over several lines",
        "--SEED=0 of everything",
    ):
        assert f"\n  {line}\n" in re.sub(r"(?<=\S) +", " ", out)


# --- token, import, threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "dotenv", "token"),
    [
        ({"HF_TOKEN": "a"}, "", "a"),
        ({"HUGGING_FACE_HUB_TOKEN": "b"}, "", "b"),
        ({"HF_TOKEN": "a", "HUGGING_FACE_HUB_TOKEN": "b"}, "", "a"),
        ({}, "HF_TOKEN=c", "c"),
        ({}, "HUGGING_FACE_HUB_TOKEN=d", "d"),
        ({}, "HUGGING_FACE_HUB_TOKEN=d\nHF_TOKEN=c", "c"),
        ({"HUGGING_FACE_HUB_TOKEN": "b"}, "HF_TOKEN=c", "b"),
        ({"HF_TOKEN": ""}, "HF_TOKEN=c", "c"),
        ({}, "HF_TOKEN=", None),
    ],
)
def test_the_hub_token_is_known_under_both_names(run, script, environment, dotenv, token):
    (script.parent / ".env").write_text(dotenv)
    os.environ.update(environment)
    run()
    assert {os.environ.get(name) for name in TOKENS} == {token}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00B", "BASE_MODEL=x".encode("utf-16")], ids=["binary", "utf-16"])
def test_an_environment_file_that_is_no_text_is_one_line(run, script, capsys, content):
    (script.parent / ".env").write_bytes(content)
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert ".env is no text in UTF-8: write it as .env.example" in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--SEED=1"], [f"--HF_TOKEN={SECRET}"], [f"HF_TOKEN={SECRET}"]])
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_the_hub_token_is_never_shown_and_is_no_constant(run, script, capsys, place, arguments):
    if place == "environment":
        os.environ["HF_TOKEN"] = SECRET
    else:
        (script.parent / ".env").write_text(f"HF_TOKEN={SECRET}\n")
    try:
        constants = run(*arguments)
    except SystemExit:
        constants = {}
    assert SECRET not in "".join(capsys.readouterr())
    assert SECRET not in repr(constants.get("SETTINGS"))


def test_importing_a_script_overrides_no_constant_and_does_no_work(tmp_path):
    os.environ |= {"DATA_DIR": "elsewhere", "RESULTS_DIR": str(tmp_path / "results")}
    done = python(
        "-c",
        "import sys; sys.argv += ['--SPLIT=test', '--nonsense']; sys.path.insert(0, sys.argv[1])\n"
        "import evaluate\n"
        "print(evaluate.SPLIT, evaluate.DATA_DIR, 'torch' in sys.modules)",
        REPOSITORY,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "dev data False\n", "")
    assert list(tmp_path.iterdir()) == []


def test_one_thread_a_core_unless_the_caller_wants_others(run):
    os.environ.pop("OMP_NUM_THREADS", None)
    run()
    assert int(os.environ["OMP_NUM_THREADS"]) == len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = "3"
    run()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_gpus_are_numbered_and_their_memory_is_allocated_as_in_a_process_that_imports_gptqmodel(run):
    for name, value in (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("PYTORCH_ALLOC_CONF", "expandable_segments:True")):
        os.environ.pop(name, None)
        run()
        assert os.environ[name] == value
    os.environ["PYTORCH_ALLOC_CONF"] = "backend:native"
    run()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "backend:native"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_only_settings_before_the_threads_are_set(name):
    above = CALL.split((REPOSITORY / name).read_text())[0]
    imports = re.findall(r"^(?:from|import) (\S+)", above, flags=re.MULTILINE)
    assert imports == ["fincompress.settings"]


def test_the_8_bit_script_differs_from_the_4_bit_one_in_precision_name_and_passes_alone():
    constants, bodies = [], []
    for script in ("train_qlora_4bit.py", "train_lora_8bit.py"):
        constants.append({name: value for name, value in script_globals(script).items() if name.isupper()})
        bodies.append((REPOSITORY / script).read_text().partition("SETTINGS = configure")[2])
    assert {name for name in constants[0] | constants[1] if constants[0].get(name) != constants[1].get(name)} == {
        "RUN",
        "EPOCHS",
    }
    assert bodies[1] == bodies[0].replace('"nf4"', '"int8"').replace("train_qlora_4bit.py", "train_lora_8bit.py")
