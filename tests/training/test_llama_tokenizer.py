"""Llama-2's kind of tokenizer, SentencePiece's BPE: BOS in front, ``▁`` for spaces, bytes for what no piece has.

Trained here on the synthetic set; its files have the form of those on Llama-2's Hub page.
"""

import itertools
import json
import shutil

import pytest
from scripts import run_in_process
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import AutoModelForCausalLM

from fincompress import generation, models, runs
from fincompress.finqa import synthetic
from fincompress.finqa.program import tokenize
from fincompress.finqa.prompts import encode

SPECIAL = ["<unk>", "<s>", "</s>"]
CONFIG = {
    "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
    "pad_token": None, "unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2],
    "clean_up_tokenization_spaces": False,
}  # fmt: skip


def write_tokenizer(folder, texts, size):
    """Train on ``texts`` and write tokenizer.json and tokenizer_config.json: digits alone, spaces inside of pieces."""
    made = Tokenizer(kinds.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)  # while it is trained
    known = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=known, max_token_length=16, show_progress=False),
    )
    description = json.loads(made.to_str()) | {"pre_tokenizer": None}
    description["added_tokens"] = description["added_tokens"][: len(SPECIAL)]  # a byte is a piece like any other
    made = Tokenizer.from_str(json.dumps(description))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    runs.write_json(folder / "tokenizer_config.json", CONFIG)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny random model with such a tokenizer, and the programs that it was trained on."""
    folder = tmp_path_factory.mktemp("llama")
    records = synthetic.generate("train", 60)
    programs = [record["qa"]["program"] for record in records]
    questions = [record["qa"]["question"] for record in records]
    config = models.shape_config("shape:tiny")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, [*programs, *questions], 900)
    return folder, programs


def test_a_target_decodes_to_its_program_and_follows_one_bos(base):
    folder, programs = base
    tokenizer = models.load_tokenizer(str(folder))
    assert tokenizer.pad_token == "<unk>" and tokenizer.padding_side == "left"
    for program in [*programs, "table_average(net sales — é, none)"]:
        row = encode("net sales|5829\nQuestion: what’s new?\nProgram:\n", program, tokenizer)
        ids, start = row["input_ids"], row["prompt_tokens"]
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        generated = generation._cut(ids[start:], tokenizer.eos_token_id, tokenizer)
        assert generated["ended"] and tokenize(generated["output"]) == tokenize(program)
        assert generated["output"] == program  # without the space that ▁ puts in front


def test_a_saved_tokenizer_reads_as_the_one_that_was_loaded(base, tmp_path):
    folder, programs = base
    tokenizer = models.load_tokenizer(str(folder))
    models.save_tokenizer(tokenizer, tmp_path)
    again = models.load_tokenizer(str(tmp_path))
    prompts = [f"{program}\nProgram:\n" for program in programs]
    assert again(prompts).input_ids == tokenizer(prompts).input_ids
    assert again.batch_decode(again(prompts).input_ids) == tokenizer.batch_decode(tokenizer(prompts).input_ids)
    assert runs.read_json(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "LlamaTokenizer"
    assert not (tmp_path / "tokenizer.model").exists()


def test_the_file_of_pieces_and_scores_goes_from_checkpoint_to_checkpoint(base, tmp_path):
    folders = [shutil.copytree(base[0], tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged"]
    (folders[0] / "tokenizer.model").write_bytes(b"pieces")
    for before, after in itertools.pairwise(folders):
        models.save_tokenizer(models.load_tokenizer(str(before)), after)
        assert (after / "tokenizer.model").read_bytes() == b"pieces"
    text = base[1][0]
    assert models.load_tokenizer(str(folders[2]))(text).input_ids == models.load_tokenizer(str(base[0]))(text).input_ids


def test_a_data_run_keeps_prompts_within_their_limit_and_programs_whole(base, tmp_path):
    folder, _ = base
    done = run_in_process(
        "preprocess_data.py", "--TRAIN_EXAMPLES=12", "--CALIBRATION_EXAMPLES=4", "--EVAL_EXAMPLES=4",
        "--EVIDENCE_TOKENS=None", "--MAX_PROMPT_TOKENS=160",
        BASE_MODEL=str(folder), DATA_DIR="synthetic", RESULTS_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tokenizer = models.load_tokenizer(str(folder))
    rows, _ = runs.load_processed(str(tmp_path), "data", "train")
    for row in rows:
        prompt, target = row["input_ids"][: row["prompt_tokens"]], row["input_ids"][row["prompt_tokens"] :]
        assert prompt[0] == tokenizer.bos_token_id and len(prompt) <= 160
        assert tokenizer.decode(prompt, skip_special_tokens=True) == row["prompt"]
        assert tokenizer.decode(target, skip_special_tokens=True) == row["program"]
