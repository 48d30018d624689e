"""recipes/push.py against a stub of the Hub's client: what is uploaded, what the card says, what is refused."""

import shutil
from fnmatch import fnmatch

import huggingface_hub
import made_up_runs as made
import pytest
import yaml
from scripts import run_in_process

from fincompress import lineage, runs


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the Hub: the names and contents of the files that were uploaded, by repository."""
    uploaded = {}

    class Stub:
        refuses = None

        def create_repo(self, repo_id, private, exist_ok):
            assert private and exist_ok
            if self.refuses:
                raise self.refuses
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            paths = {path.relative_to(folder_path).as_posix(): path for path in folder_path.rglob("*.*")}
            uploaded[repo_id] = {
                name: path.read_bytes()
                for name, path in paths.items()
                if any(fnmatch(name, pattern) for pattern in allow_patterns)
            }

    monkeypatch.setattr(huggingface_hub, "HfApi", Stub)
    return uploaded, Stub


@pytest.fixture
def pushed(tmp_path, tiny_base):
    """A results directory with phase 1, a depth of SAPLING and a quantized run, the last two evaluated."""
    made.settings(tmp_path / "data", "preprocess_data.py", {"EVIDENCE_TOKENS": 160})
    made.settings(tmp_path / "mixed_data", "preprocess_data.py")
    mixed = tmp_path / "mixed_data" / "settings.json"
    runs.write_json(mixed, runs.read_json(mixed) | {"extra": {"source": "TAT-QA", "fingerprint": "f1"}})
    source = None
    for run, step, data_run, precision in (
        ("qlora", "QLoRA fine-tuned", "mixed_data", "nf4"),
        ("sapling/2", "SAPLING, 2 of 4 layers", "data", "auto"),
        ("gptq", "GPTQ 4-bit", "data", "auto"),
    ):
        made.settings(tmp_path / run, "made_up.py", {"DATA_RUN": data_run}, precision=precision)
        record = tmp_path / run / "settings.json"
        runs.write_json(record, runs.read_json(record) | lineage.facts(step, str(tmp_path), source))
        runs.write_json(tmp_path / run / f"{'quantize' if run == 'gptq' else 'train'}_metrics.json", {})
        shutil.copytree(tiny_base, tmp_path / run / "merged" if run == "qlora" else tmp_path / run, dirs_exist_ok=True)
        source = run
    shutil.copy(tmp_path / "qlora" / "settings.json", tmp_path / "qlora" / "merged" / "settings.json")
    runs.write_json(tmp_path / "qlora" / "merged" / "train_metrics.json", {"adapter": "a"})
    made.evaluation(tmp_path, "sapling/2", [True, False, False, False])
    made.evaluation(tmp_path, "gptq", [True, False], split="test")
    return tmp_path


def push(results, run, repository="user/name"):
    return run_in_process("recipes/push.py", f"--RUN={run}", f"--REPOSITORY={repository}", RESULTS_DIR=results)


def test_the_checkpoint_and_its_card_are_uploaded_and_no_record_or_prediction(pushed, hub):
    done = push(pushed, "sapling/2")
    assert done.returncode == 0 and "uploaded" in done.stdout and "https://hub/user/name" in done.stdout, done.stderr
    files = hub[0]["user/name"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
    assert not {name for name in files if name.startswith(("settings", "eval", "predictions", "train"))}
    assert str(pushed).encode() not in files["README.md"]


def test_the_card_says_base_data_method_numbers_licence_and_how_to_load(pushed, hub):
    assert push(pushed, "sapling/2").returncode == 0
    _, metadata, text = hub[0]["user/name"]["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
        "tags": ["finqa", "finance", "sapling"],
    }
    for line in (
        "| method | QLoRA fine-tuned + SAPLING, 2 of 4 layers |",
        "| evidence in a prompt | the 160 tokens that are ranked best |",
        "| trained on | FinQA, TAT-QA |",
        "| licence | apache-2.0 |",
        "| FinQA | dev | 4 | 25.0 [4.6, 69.9] | 25.0 [4.6, 69.9] |",
        'from_pretrained("user/name"',
    ):
        assert line in text, line
    assert "gptqmodel" not in text


def test_the_card_of_a_quantized_run_names_what_loads_it_and_its_whole_method(pushed, hub):
    assert push(pushed, "gptq").returncode == 0
    text = hub[0]["user/name"]["README.md"].decode()
    assert (
        "| method | QLoRA fine-tuned + SAPLING, 2 of 4 layers + GPTQ 4-bit |" in text
        and "pip install gptqmodel optimum" in text
    )
    assert "| FinQA | test | 2 | 50.0" in text


def test_a_base_model_of_ones_own_is_named_without_its_path_and_without_a_licence(pushed, hub):
    record = pushed / "qlora" / "merged" / "settings.json"
    runs.write_json(record, runs.read_json(record) | {"base_model": str(pushed / "own_model")})
    assert push(pushed, "qlora/merged").returncode == 0
    text = hub[0]["user/name"]["README.md"].decode()
    assert "| base model | own_model |" in text and "license: other" in text and "base_model:" not in text
    assert str(pushed) not in text and "Not evaluated." in text


@pytest.mark.parametrize(
    ("run", "says"),
    [("qlora", "no checkpoint of its own; below it: qlora/merged"), ("nothing", "'nothing' does not exist")],
)
def test_a_run_without_a_checkpoint_is_one_line(pushed, hub, run, says):
    done = push(pushed, run)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert hub[0] == {}


@pytest.mark.parametrize("error", [ValueError("no valid name\nmore"), OSError("no token"), ConnectionError("offline")])
def test_what_the_hub_refuses_is_one_line(pushed, hub, error):
    hub[1].refuses = error
    done = push(pushed, "sapling/2")
    reason = str(error).partition("\n")[0]
    assert done.returncode == 2 and f"user/name was not uploaded: {reason};" in done.stderr
    assert done.stderr.count("\n") == 1 and hub[0] == {}
