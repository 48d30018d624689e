"""The task of lm-evaluation-harness: its prompts, its verdicts, and what is refused in one line."""

import runpy
from unittest import mock

import pytest
import torch
from scripts import REPOSITORY, run_in_process

from fincompress import generation, models

TASKS = REPOSITORY / "lm_eval_tasks"
TASK = runpy.run_path(str(TASKS / "finqa_program" / "utils.py"))


@pytest.fixture(scope="module")
def data(results_dir):
    """The folder of a data run for the tiny model."""
    arguments = ("--TRAIN_EXAMPLES=8", "--CALIBRATION_EXAMPLES=8", "--EVAL_EXAMPLES=4", "--EVIDENCE_TOKENS=40")
    environment = {"BASE_MODEL": "shape:tiny", "DATA_DIR": "synthetic", "RESULTS_DIR": str(results_dir)}
    done = run_in_process("preprocess_data.py", "--RUN=harness_data", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return results_dir / "harness_data"


@pytest.fixture(scope="module")
def questions(data):
    return TASK["load"](str(data), "dev", pretrained="a model", version=1.0)["questions"]


def prompt_ids(question):
    return question["input_ids"][: question["prompt_tokens"]]


def test_the_prompts_text_gives_the_tokens_that_evaluate_decodes_from(questions, tiny_base):
    tokenizer = models.load_tokenizer(tiny_base)
    assert len(questions) == 4
    for question in questions:
        assert tokenizer(question["prompt"]).input_ids == prompt_ids(question)


def test_the_gold_program_is_right_and_text_before_it_invalid(questions):
    gold = questions[0]["program"]
    right = {"execution_accuracy": 1.0, "program_accuracy": 1.0, "invalid": 0.0}
    assert TASK["score"](questions[0], [gold]) == right
    assert TASK["score"](questions[0], [f"\n {gold}\nand more"]) == right
    invalid = {"execution_accuracy": 0.0, "program_accuracy": 0.0, "invalid": 1.0}
    assert TASK["score"](questions[0], [f"The program is {gold}"]) == invalid


@pytest.mark.parametrize(("name", "split", "said"), [("nowhere", "dev", "does not exist"), (None, "tset", "'tset'")])
def test_data_that_is_not_there_is_one_line(data, capsys, name, split, said):
    with pytest.raises(SystemExit) as left:
        TASK["load"](str(data.with_name(name or data.name)), split)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.fixture
def harness():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")


def through_the_harness(harness, data, model):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(data), "split": "dev"})
    return harness.simple_evaluate(model, tasks=["finqa_program"], task_manager=manager, bootstrap_iters=0)


def test_a_model_decodes_through_the_harness_what_it_decodes_here(harness, data, questions, tiny_base):
    from lm_eval.models.huggingface import HFLM

    # In 16 bits the rounding of another batch could choose another token.
    model, tokenizer = models.load_run(tiny_base, str(data.parent), torch.device("cpu"), torch.float32)
    here = generation.generate(model, tokenizer, questions, 4, 96)
    tested = HFLM(pretrained=model, tokenizer=models.load_tokenizer(tiny_base), batch_size=4)
    with mock.patch.object(tested, "tok_batch_encode", wraps=tested.tok_batch_encode) as encode:
        samples = through_the_harness(harness, data, tested)["samples"]["finqa_program"]
    (texts,) = [call.args[0] for call in encode.call_args_list]
    ids, mask = tested.tok_batch_encode(texts)
    shown = sorted(row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True))
    assert shown == sorted(prompt_ids(question) for question in questions)
    assert [sample["resps"][0][0] for sample in samples] == [row["output"] for row in here]
