"""The shell scripts, copied away so that neither .venv nor results/ of the repository is touched."""

import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from scripts import REPOSITORY, run_in_process, script_globals

from fincompress.settings import ENVIRONMENT, constant_types, find_overrides

PLACES = ("*.sh", "recipes/*.sh", "benchmarks/*.sh", ".ci/*")
SCRIPTS = [path for place in PLACES for path in sorted(REPOSITORY.glob(place))]


@pytest.fixture
def copy(tmp_path):
    """A folder with the shell scripts and what they read, and nothing else."""
    for path in [*REPOSITORY.glob("*.sh"), *REPOSITORY.glob("requirements*.txt")]:
        shutil.copy(path, tmp_path)
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    return tmp_path


def shell(folder, *command, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in (*ENVIRONMENT, "PYTHON")}
    return subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def phases(copy):
    """Run reproduce.sh on a finished .venv whose python only notes down its arguments; returns them by phase."""
    (copy / ".venv" / "bin").mkdir(parents=True)
    python = copy / ".venv" / "bin" / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in -c*torch.cuda*) exit ${NO_GPU:-0} ;; esac\n'
        f'case "$1" in -c|-m) exec "{sys.executable}" "$@" ;; esac\n'
        'printf "%s\\n" "$# RESULTS_DIR=${RESULTS_DIR:-}" "$@" >> calls\n'
        'case "$1" in "${FAIL:-none}") exit 3 ;; esac\n'
        'run=sapling; for a in "$@"; do case "$a" in --RUN=*) run=${a#--RUN=} ;; esac; done\n'
        'case "$1 $run" in *" sapling"*) mkdir -p "$RESULTS_DIR/$run/9" "$RESULTS_DIR/$run/22" ;; esac\n'
    )
    python.chmod(0o755)
    stamp = "cat requirements.txt requirements-dev.txt | cksum > .venv/installed"
    subprocess.run(["sh", "-c", stamp], cwd=copy, check=True)

    def phases(*arguments, script="./reproduce.sh", **environment):
        done = shell(copy, script, *arguments, PYTHON=sys.executable, **environment)
        lines = (copy / "calls").read_text().splitlines()
        calls = []
        while lines:
            count, results = lines.pop(0).split()
            calls.append((lines[: int(count)], results))
            del lines[: int(count)]
        return done, calls

    return phases


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    done = shell(REPOSITORY, "bash", "-n", str(path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["reproduce.sh", "run_tests.sh", "recipes/push.sh", "recipes/gguf.sh"])
def test_scripts_can_be_executed(name):
    assert os.access(REPOSITORY / name, os.X_OK)


@pytest.mark.parametrize("arguments", [["nonsense"], ["a\nb"], [""], ["--quick", ""], ["--quick", "--quick"]])
def test_an_unknown_argument_and_a_second_one_are_refused(copy, arguments):
    before = sorted(copy.iterdir())
    done = shell(copy, "./reproduce.sh", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: ./reproduce.sh takes --quick or nothing\n"
    assert sorted(copy.iterdir()) == before


@pytest.mark.parametrize("python", ["/bin/false", "/bin/true", "/bin/echo", "/bin/cat", "/", "no-such-python"])
@pytest.mark.parametrize("script", ["./run_tests.sh", "./reproduce.sh"])
def test_a_wrong_python_is_refused_in_one_line(copy, script, python):
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").symlink_to(sys.executable)  # an environment made before: a slip must not remove it
    before = sorted(copy.iterdir())
    done = shell(copy, script, PYTHON=python)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {python} is not Python 3.10") and done.stderr.count("\n") == 1
    assert sorted(copy.iterdir()) == before


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock")
def test_a_second_main_job_beside_the_first_is_refused(copy, phases):
    (copy / "results").mkdir()
    (copy / "calls").touch()
    with open(copy / "results" / ".reproduce.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, calls = phases()
    assert done.returncode == 2 and "another reproduce.sh works in results/" in done.stderr and calls == []
    done, calls = phases()
    assert done.returncode == 0 and calls


@pytest.mark.parametrize(("arguments", "results"), [([], "results"), (["--quick"], "results-quick")])
def test_the_main_job_runs_each_phase_with_settings_it_takes(phases, arguments, results):
    done, calls = phases(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    made = [call for call, _ in calls if call[0] != "evaluate.py"]
    assert [call[0] for call in made] == [
        "preprocess_data.py", "train_qlora_4bit.py", "train_lora_8bit.py", "quantize_gptq.py", "sapling_train.py",
        "quantize_gptq.py", "benchmark_throughput.py", "plot_pareto.py",
    ]  # fmt: skip
    assert [call[1:] for call, _ in calls if call[0] == "evaluate.py"] == [
        ["--RUN=base", "--MAX_NEW_TOKENS=32"],
        *([f"--RUN={run}"] for run in ("qlora_4bit/merged", "lora_8bit", "gptq_4bit", "sapling", "sapling_gptq")),
    ]
    measured = overrides(made[6])["RUNS"]
    assert set(measured) == {"qlora_4bit/merged", "gptq_4bit", "sapling/22", "sapling_gptq/22"}
    assert {folder for _, folder in calls} == {f"RESULTS_DIR={results}"}
    names = {name for call, _ in calls for name in overrides(call)}
    # What is edited in a script takes effect.
    assert arguments or names == {"RUN", "SOURCE_RUN", "RUNS", "MAX_NEW_TOKENS"}


def overrides(call):
    """The constants that a command sets, by name; raises on an unknown or ill-typed one."""
    overridden = find_overrides(call[1:], constant_types(script_globals(call[0])), {})
    return {name: value for name, (value, origin) in overridden.items() if origin == "command line"}


def test_the_commands_of_the_record_take_the_settings_they_are_given(phases, copy, tmp_path):
    (copy / "results-finqa/finqa_data/dev").mkdir(parents=True)
    done, calls = phases(script="recipes/finqa_smollm2.sh", DATA_DIR="finqa", EXTRA_DATA_DIR="tatqa")
    assert (done.returncode, done.stderr) == (0, "")
    assert {folder for _, folder in calls} == {"RESULTS_DIR=results-finqa"}
    calls = [(call[0], overrides(call)) for call, _ in calls]
    mixed = next(constants for script, constants in calls if constants.get("RUN") == "mixed_data")
    assert mixed["EXTRA_DATA_DIR"] == "tatqa" and mixed["PAGE_QUESTIONS"] > 0
    assert {"seed_0_mixed", "seed_1_mixed", "seed_2_mixed", "seed_0_mixed_8bit"} <= {
        constants.get("START_FROM") for _, constants in calls
    }
    evaluated = [constants["RUN"] for script, constants in calls if script == "evaluate.py"]
    assert len(evaluated) == len(set(evaluated))
    trained = {constants["RUN"]: constants for script, constants in calls if script == "sapling_train.py"}
    assert trained["seed_0_paper"]["TEACHER"] is None and trained["seed_0_adapters_20"]["UPDATE"] == "qlora"

    def passes(run):
        start = trained.get(trained[run]["START_FROM"].partition("/")[0])
        return trained[run]["RECOVERY_EPOCHS"] + (passes(start["RUN"]) if start else 0)

    # Depths, and what is compared with them, learn from as many examples of FinQA, with new figures in most passes.
    learned = {run: passes(run) for run in trained if run != "seed_0_paper"}
    seeds = [f"seed_{seed}_{run}" for seed in range(3) for run in ("layers_30", "layers_20")]
    beside = {"seed_0_layers_25", "seed_0_no_teacher_30", "seed_0_adapters_20", "seed_0_taylor_20"}
    assert {run for run, count in learned.items() if count == 4} == {*seeds, *beside}
    rivals = ["seed_0_block_influence_15", "seed_0_taylor_15", "seed_0_taylor_15_again", "seed_0_taylor_11"]
    fewer = [f"seed_{seed}_layers_15" for seed in range(3)] + ["seed_0_layers_11", "seed_0_layers_8"]
    assert {run for run, count in learned.items() if count == 7} == {*fewer, *rivals}
    best = ["seed_0_both_20"]
    assert [run for run, count in learned.items() if count == 8] == best
    assert len(learned) == 10 + 9 + 1 and {constants["AUGMENT"] for constants in trained.values()} == {"figures"}
    for script, constants in calls:  # a seed is one from phase 1 on
        if script in ("sapling_train.py", "train_qlora_4bit.py") and constants["RUN"] in learned:
            again = constants["RUN"] == "seed_0_taylor_15_again"  # only its recovery is of another seed
            assert constants["RUN"].startswith(f"seed_{constants['SEED'] - again}_")
            others = {"seed_0_no_teacher_30": None} | dict.fromkeys(best, "seed_0_layers_30/30")
            assert constants["TEACHER"] == others.get(constants["RUN"], f"seed_{constants['SEED'] - again}_qlora")
            assert constants["START_FROM"].startswith(f"seed_{constants['SEED'] - again}_")
    assert {"base", *trained} <= set(evaluated)
    quantized = {
        constants["RUN"]: constants["SOURCE_RUN"] for script, constants in calls if script == "quantize_gptq.py"
    }
    once = [f"seed_0_layers_{left}" for left in (25, 15, 11, 8)] + ["seed_0_taylor_20", "seed_0_taylor_15"]
    sources = [*seeds, *best, *once]
    assert quantized == {f"seed_{seed}_gptq": f"seed_{seed}_qlora/merged" for seed in range(3)} | {
        f"{run}_gptq": f"{run}/{run.rpartition('_')[2]}" for run in sources
    }
    assert {*quantized} <= set(evaluated)
    (measured,) = [constants["RUNS"] for script, constants in calls if script == "benchmark_throughput.py"]
    assert {"seed_0_qlora/merged", "seed_0_gptq", "seed_0_layers_15/15", "seed_0_layers_15_gptq"} <= set(measured)
    assert calls[-1][0] == "plot_pareto.py"
    for run in [run for run in trained if run.startswith("seed_0_")]:  # no constant is refused beside the others
        given = [f"--{name}={value}" for name, value in trained[run].items()]
        done = run_in_process("sapling_train.py", *given, RESULTS_DIR=tmp_path, BASE_MODEL="shape:tiny")
        assert "'finqa_data' does not exist" in done.stderr, done.stderr


@pytest.mark.parametrize("shell_name", [name for name in ("bash", "zsh") if shutil.which(name)])
def test_the_commands_for_llama_take_the_settings_they_are_given(phases, shell_name):
    done, calls = phases("recipes/llama2_7b_10gb.sh", script=shell_name)
    assert (done.returncode, done.stderr) == (0, "")
    assert {folder for _, folder in calls} == {"RESULTS_DIR=results-llama"}
    assert [overrides(call).get("LORA_RANK") for call, _ in calls if "train" in call[0]] == [16] * 6
    # What was trained on without dropping saw as much as two depths, and is quantized as they are.
    commands = [(call[0], overrides(call)) for call, _ in calls]
    sapling, longer = (constants for script, constants in commands if script == "sapling_train.py")
    assert longer["RECOVERY_EPOCHS"] == 2 * sapling["RECOVERY_EPOCHS"]
    assert longer["DEPTHS"] == [1.0] and longer["AUGMENT"] == sapling["AUGMENT"]
    quantized = [constants.get("SOURCE_RUN") for script, constants in commands if script == "quantize_gptq.py"]
    assert quantized == [None, "sapling", "longer"]
    assert {"longer", "longer_gptq"} <= {constants["RUN"] for script, constants in commands if script == "evaluate.py"}
    assert [call[0] for call, _ in calls][-2:] == ["benchmark_throughput.py", "plot_pareto.py"]


def test_the_commands_for_llama_want_a_gpu_and_a_rehearsal_none(phases, copy):
    assert phases(script="recipes/llama2_7b_10gb.sh", REHEARSE="1", NO_GPU="1")[0].returncode == 0
    done, calls = phases(script="recipes/llama2_7b_10gb.sh", NO_GPU="1")
    assert done.returncode == 2 and done.stderr.startswith(
        f"error: torch finds no CUDA GPU (it is {torch.__version__} for"
    )
    assert len(calls) == len(phases(script="recipes/llama2_7b_10gb.sh", REHEARSE="1")[1]) / 2  # none was added


def test_a_rehearsal_for_llama_is_the_same_commands_on_a_sliver_of_the_data(phases):
    _, whole = phases(script="recipes/llama2_7b_10gb.sh")
    _, calls = phases(script="recipes/llama2_7b_10gb.sh", REHEARSE="1")
    small = [call for call, _ in calls[len(whole) :]]
    assert [script for script, _ in itertools.groupby(call[0] for call in small)] == [
        script for script, _ in itertools.groupby(call[0] for call, _ in whole)
    ]
    settings = [overrides(call) for call in small]
    assert [values["MAX_STEPS"] for values in settings if "EPOCHS" in values] == [2] * 4
    assert {values["CALIBRATION_EXAMPLES"] for values in settings if "SOURCE_RUN" in values} == {8}
    assert [values["RECOVERY_EPOCHS"] for values in settings if "RECOVERY_EPOCHS" in values] == [0.2, 0.2]


def test_the_commands_of_the_gpu_check_take_the_settings_they_are_given(phases, copy):
    (copy / "benchmarks").mkdir()
    shutil.copy(REPOSITORY / "benchmarks" / "gpu_check.sh", copy / "benchmarks")
    done, calls = phases(script="benchmarks/gpu_check.sh", BASE_MODEL="shape:tiny")
    assert (done.returncode, done.stderr) == (0, "")
    assert [overrides(call).get("LORA_RANK") for call, _ in calls if "train" in call[0]] == [16, 16, 16]


def test_the_commands_for_llama_stop_at_the_first_failure(phases):
    done, calls = phases(script="recipes/llama2_7b_10gb.sh", FAIL="train_qlora_4bit.py")
    assert (done.returncode, len(calls)) == (3, 3)


def test_a_model_that_does_not_fit_keeps_no_other_of_the_llama_models_from_being_measured(phases):
    done, calls = phases(script="recipes/llama2_7b_10gb.sh", FAIL="benchmark_throughput.py")
    measured = [overrides(call)["RUNS"] for call, _ in calls if call[0] == "benchmark_throughput.py"]
    assert ["gptq_4bit", "sapling_gptq/8"] in measured and ["gptq_4bit"] in measured  # alone too, should both not fit
    assert done.returncode == 0 and calls[-1][0] == ["plot_pareto.py"]
    assert done.stderr.splitlines() == [f"not measured: {str(names)[1:-1]}" for names in measured]


def test_a_quantized_model_that_nothing_runs_here_keeps_no_other_of_the_llama_models_from_being_scored(phases):
    done, calls = phases(script="recipes/llama2_7b_10gb.sh", FAIL="evaluate.py")
    packed = ["qlora_4bit", "lora_8bit", "gptq_4bit", "sapling_gptq", "longer_gptq"]
    assert done.stderr.splitlines() == [f"not evaluated: {run}" for run in packed]
    assert (done.returncode, overrides(calls[-1][0])["RUN"]) == (3, "base")  # which needs no kernel


def test_a_run_and_a_repository_are_pushed_and_nothing_less(phases, copy):
    done, calls = phases("sapling/40", "user/name", script="recipes/push.sh")
    assert (done.returncode, done.stderr) == (0, "")
    ((call, _),) = calls
    assert call[0] == "recipes/push.py" and overrides(call) == {"RUN": "sapling/40", "REPOSITORY": "user/name"}
    done = shell(copy, "recipes/push.sh", "sapling/40")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "takes a run and a repository" in done.stderr


def test_the_record_is_not_made_without_questions_to_answer(phases, copy):
    (copy / "results-finqa/finqa_data").mkdir(parents=True)
    data = {"EXTRA_DATA_DIR": "tatqa", "DATA_DIR": "own"}
    done, calls = phases(script="recipes/finqa_smollm2.sh", **data)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "has no dev.json, which every run answers: add it, and remove results-finqa/finqa_data/" in done.stderr
    assert [call[0][0] for call in calls] == ["preprocess_data.py"]


@pytest.mark.parametrize("missing", ["DATA_DIR", "EXTRA_DATA_DIR"])
def test_the_record_is_not_begun_without_its_data(phases, copy, missing):
    (copy / "calls").touch()
    data = {"DATA_DIR": "finqa", "EXTRA_DATA_DIR": "tatqa"}
    del data[missing]
    done, calls = phases(script="recipes/finqa_smollm2.sh", **data)
    assert (done.returncode, calls) == (2, []) and done.stderr.startswith(f"error: set {missing} to a folder with ")


@pytest.mark.parametrize("script", ["recipes/llama2_7b_10gb.sh", "recipes/finqa_smollm2.sh"])
def test_recipes_use_what_dotenv_says(phases, copy, script):
    (copy / ".env").write_text("DATA_DIR=finqa\nRESULTS_DIR=elsewhere\n")
    (copy / "elsewhere/finqa_data/dev").mkdir(parents=True)
    done, calls = phases(script=script, EXTRA_DATA_DIR="tatqa")
    assert (done.returncode, done.stderr) == (0, "")
    assert {folder for _, folder in calls} == {"RESULTS_DIR=elsewhere"}


def test_a_file_of_constraints_is_installed_into_an_environment_that_is_there(phases, copy):
    (copy / "constraints.txt").write_text("numpy==2.2.6\n")
    done, _ = phases(FAIL="preprocess_data.py")
    assert "installing" not in done.stdout
    installs_nothing = f'#!/bin/sh\ncase "$*" in *" install "*) exit 7 ;; esac\nexec "{sys.executable}" "$@"\n'
    (copy / ".venv/bin/python").write_text(installs_nothing)
    done = shell(copy, "./reproduce.sh", PYTHON=sys.executable, PIP_CONSTRAINT="constraints.txt")
    assert done.returncode == 7 and "installing into .venv" in done.stdout


def test_a_quick_run_is_smaller_and_says_what_it_is(phases):
    done, quick = phases("--quick")
    assert overrides(quick[0][0])["TRAIN_EXAMPLES"] < 100
    assert "[14 of 14] table, chart, advice took 0m" in done.stdout
    assert "QUICK RUN" in done.stdout


def test_what_was_measured_is_not_measured_again_unless_it_was_made_again(phases, copy):
    _, calls = phases()
    measured = overrides(calls[-2][0])["RUNS"]
    for run in ["base", *measured]:
        folder = copy / "results" / run
        folder.mkdir(parents=True, exist_ok=True)
        for age, name in ((20, "settings.json"), (10, "throughput_cpu.json")):
            (folder / name).touch()
            os.utime(folder / name, (time.time() - age,) * 2)
    os.utime(copy / "results/base/settings.json")  # as its evaluation, which is skipped, does
    done, calls = phases()
    assert "measured already, skipped (remove throughput_*.json" in done.stdout
    assert [call[0][0] for call in calls].count("benchmark_throughput.py") == 1  # of the first time
    os.utime(copy / "results/gptq_4bit/settings.json")
    _, calls = phases()
    assert [call[0][0] for call in calls].count("benchmark_throughput.py") == 2


def test_a_folder_for_results_set_in_the_environment_is_used(phases):
    _, calls = phases(RESULTS_DIR="elsewhere")
    assert {folder for _, folder in calls} == {"RESULTS_DIR=elsewhere"}


@pytest.mark.parametrize(("arguments", "results"), [([], "elsewhere"), (["--quick"], "elsewhere-quick")])
def test_a_folder_for_results_set_in_dotenv_is_used(phases, copy, arguments, results):
    (copy / ".env").write_text("DATA_DIR=finqa  # the real one\nexport RESULTS_DIR='elsewhere/'\n")
    done, calls = phases(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert {folder for _, folder in calls} == {f"RESULTS_DIR={results}"}


def test_a_folder_for_results_under_home_is_the_one_that_the_scripts_use(phases, copy):
    (copy / ".env").write_text("RESULTS_DIR=~/elsewhere\n")
    done, calls = phases(HOME=str(copy / "home"))
    assert (done.returncode, done.stderr) == (0, "") and not (copy / "~").exists()
    assert {folder for _, folder in calls} == {f"RESULTS_DIR={copy / 'home' / 'elsewhere'}"}


def test_sourced_in_another_folder_the_environment_there_is_left_alone(copy, tmp_path):
    other = tmp_path / "other" / ".venv"
    other.mkdir(parents=True)
    done = shell(other.parent, "bash", "-c", "source ../setup_env.sh")
    assert done.returncode == 2 and done.stderr == "error: source setup_env.sh in the folder that it lies in\n"
    assert list(other.iterdir()) == []


def test_a_phase_that_fails_ends_the_main_job(phases):
    done, calls = phases(FAIL="preprocess_data.py")
    assert (done.returncode, len(calls)) == (3, 1)
    assert "finished" not in done.stdout


@pytest.mark.parametrize(
    ("run", "made"),
    [("qlora_4bit/merged", "qlora_4bit_{}"), ("sapling", "sapling_{}"), ("sapling/40", "sapling_{}/40")],
)
def test_gguf_makes_a_run_of_each_type_whose_tool_is_there(phases, copy, run, made):
    (copy / "cpp" / "build" / "bin").mkdir(parents=True)
    done, first = phases(run, "cpp", script="recipes/gguf.sh", RESULTS_DIR="results")
    assert "Q8_0 alone" in done.stdout
    (copy / "cpp" / "build" / "bin" / "llama-quantize").touch(mode=0o755)
    done, calls = phases(run, script="recipes/gguf.sh", RESULTS_DIR="results", LLAMA_CPP=str(copy / "cpp"))
    assert (done.returncode, done.stderr, calls[:1]) == (0, "", first)
    types = (("q8_0", 8), ("q4_k_m", 4), ("q4_0", 4))
    wanted = [{"METHOD": name, "BITS": bits, "SOURCE_RUN": run, "RUN": made.format(name)} for name, bits in types]
    assert [overrides(call) for call, _ in calls[1:]] == wanted


@pytest.mark.parametrize("arguments", [[], ["sapling"], ["sapling", "cpp", "more"]])
def test_gguf_without_a_run_or_a_folder_of_llama_cpp_is_refused(copy, arguments):
    done = shell(copy, "recipes/gguf.sh", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
