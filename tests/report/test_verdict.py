"""The verdict on made-up runs: who wins, what is not decided, and what is missing."""

from pathlib import Path

import made_up_runs as made
import numpy as np
import pytest

from fincompress import comparison, runs, statistics, verdict

QUESTIONS = 883
N = np.arange(QUESTIONS)


def section(tmp_path, gptq, sapling, speed=True):
    """GPTQ and SAPLING checkpoints given as ``(verdicts, share of the base)``, ``{units left: ...}`` for SAPLING."""
    made.settings(tmp_path / "qlora_4bit", "train_qlora_4bit.py")
    made.settings(tmp_path / "gptq_4bit", "quantize_gptq.py", {"SOURCE_RUN": "qlora_4bit"})
    made.evaluation(tmp_path, "gptq_4bit", *gptq)
    for left, one in sapling.items():
        values = {"CRITERION": "calibration", "SCHEDULE": "successive"}
        made.settings(tmp_path / "sapling" / str(left), "sapling_train.py", values)
        made.evaluation(tmp_path, f"sapling/{left}", *one)
        if speed:
            made.throughput(tmp_path, f"sapling/{left}", 40.0, memory=0.3)
    if speed:
        made.throughput(tmp_path, "gptq_4bit", 20.0, prefill=100.0, memory=0.5)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    return found


def winners(part):
    return {measure.name: measure.winner for measure in part.measures}


def rows(found):
    gptq = next(row for row in found.rows if row.kind == "gptq")
    return gptq, [row for row in found.rows if row.kind == "sapling"]


@pytest.mark.parametrize(
    ("runs", "said"), [(("gptq",), ["SAPLING"]), (("sapling",), ["GPTQ"]), ((), ["GPTQ", "SAPLING"])]
)
def test_a_missing_run_is_named(tmp_path, runs, said):
    made.settings(tmp_path / "base", "evaluate.py")
    made.settings(tmp_path / "qlora_4bit", "train_qlora_4bit.py")
    made.evaluation(tmp_path, "base", N < 100)
    for run, script in (("gptq", "quantize_gptq.py"), ("sapling", "sapling_train.py")):
        if run in runs:
            values = {"CRITERION": "calibration", "SCHEDULE": "successive", "SOURCE_RUN": "qlora_4bit"}
            made.settings(tmp_path / run, script, values)
            made.evaluation(tmp_path, run, N < 200, 0.5)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    (one,) = verdict.judge(found)
    assert one.summary.startswith("**Not decided.** Missing: an evaluated run of ")
    for name in ("GPTQ", "SAPLING"):
        assert (f"run of {'4-bit ' * (name == 'GPTQ')}{name}" in one.summary) == (name in said)


def test_baseline_pruning_does_not_pass_for_sapling(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {})
    made.settings(tmp_path / "last", "sapling_train.py", {"CRITERION": "last", "SCHEDULE": "successive"})
    made.evaluation(tmp_path, "last", N < 300, 0.43)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    assert "run of SAPLING" in verdict.judge(found)[0].summary


def test_hypothesis_holds_when_sapling_is_better_in_everything(tmp_path):
    found = section(tmp_path, (N < 200, 0.50), {30: (N < 300, 0.50), 20: (N < 200, 0.40)})
    (one,) = verdict.judge(found)
    texts = [one.summary, *one.details]
    assert texts[0].startswith("**The hypothesis holds.**"), texts[0]
    assert "`sapling/30`, 0.135 GB or 50% of the base against 0.135 GB or 50% of the base" in texts[0]
    assert "34.0% against 22.7%, +11.3 points" in texts[0]
    assert "883 questions, 10,000 resamples, seed 0; 100 questions only SAPLING has right, 0 only GPTQ" in texts[1]
    assert "`sapling/20`, 22.7% against 22.7%, +0.0 points" in texts[0]


def test_one_loss_refutes(tmp_path):
    found = section(tmp_path, (N < 300, 0.50), {30: (N < 200, 0.50)})
    text = verdict.judge(found)[0].summary
    assert text.startswith("**The hypothesis does not hold.**")
    assert "accuracy GPTQ (22.7% against 34.0%, -11.3 points" in text and "decode throughput SAPLING" in text


def test_a_small_difference_is_not_decided(tmp_path):
    right = N < 200
    shifted = (N < 195) | (N >= QUESTIONS - 4)  # 5 against 4
    found = section(tmp_path, (right, 0.50), {30: (shifted, 0.50)})
    part = verdict.at_equal_size(*rows(found))
    assert winners(part)["accuracy"] == "not decided"


def test_a_single_checkpoint_does_not_refute_at_95_per_cent(tmp_path):
    """12 against 25 right alone, p = 0.047: neither at equal size nor at equal accuracy is that enough."""
    found = section(tmp_path, ((N < 188) | (N >= 858), 0.50), {30: (N < 200, 0.50)})
    text = verdict.judge(found)[0].summary
    assert text.startswith("**Not decided.**") and "size not decided" in text


def test_a_larger_checkpoint_wins_in_speed_but_not_in_accuracy(tmp_path):
    """A SAPLING checkpoint of 60 % is more accurate and faster than GPTQ of 43 %: only its speed counts."""
    found = section(tmp_path, (N < 200, 0.43), {40: (N < 300, 0.60), 60: (N < 310, 1.0)})
    part = verdict.at_equal_size(*rows(found))
    assert "`sapling/40`" in part.shown and "39% larger" in part.remark
    assert winners(part) == {"accuracy": "not decided", "decode throughput": "SAPLING",
                             "prefill throughput": "SAPLING", "inference memory": "SAPLING"}  # fmt: skip


def test_a_smaller_checkpoint_wins_in_accuracy_but_not_in_speed(tmp_path):
    found = section(tmp_path, (N < 200, 0.60), {20: (N < 300, 0.43)})
    assert winners(verdict.at_equal_size(*rows(found))) == {
        "accuracy": "SAPLING", "decode throughput": "not decided", "prefill throughput": "not decided",
        "inference memory": "not decided",
    }  # fmt: skip


def test_nearest_size_is_chosen_whatever_the_accuracy(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {50: (N < 290, 0.80), 22: (N < 10, 0.44), 20: (N < 300, 0.41)})
    assert "`sapling/22`" in verdict.at_equal_size(*rows(found)).shown


def test_equal_accuracy_takes_the_smallest_checkpoint_that_is_not_worse(tmp_path):
    """Of 90, 60 and 50 %, the smallest is significantly worse, the next differs by 9 questions of 883."""
    noise = (N >= 200) & (N < 205)
    found = section(tmp_path, (N < 200, 0.43), {50: (N < 210, 0.9), 40: ((N < 186) | noise, 0.6), 30: (N < 100, 0.5)})
    part = verdict.at_equal_accuracy(*rows(found), equal_within=0.03)
    assert "`sapling/40`" in part.shown and winners(part)["size"] == "GPTQ"
    # Significantly worse by a little: inside the margin, and still not equal.
    found = section(tmp_path / "b", (N < 200, 0.43), {40: (N < 186, 0.6)})
    part = verdict.at_equal_accuracy(*rows(found), equal_within=0.03)
    assert part.shown == "no checkpoint" and winners(part) == {"size": "GPTQ"}


def test_checkpoints_all_smaller_than_gptq_do_not_refute_equal_accuracy(tmp_path):
    """Significantly worse, but at 30 % of the bytes against 43: a checkpoint of GPTQ's size was not evaluated."""
    for share, winner in ((0.30, "not decided"), (0.43, "GPTQ"), (0.60, "GPTQ")):
        found = section(tmp_path / str(share), (N < 200, 0.43), {8: (N < 60, share)})
        part = verdict.at_equal_accuracy(*rows(found), equal_within=0.03)
        assert part.shown == "no checkpoint" and winners(part) == {"size": winner}


def test_few_questions_do_not_show_equality(tmp_path):
    """20 questions, 5 against 4 right: no significant difference, and nothing shown either."""
    few = np.arange(20)
    found = section(tmp_path, (few < 5, 0.43), {30: (few < 4, 0.5)})
    part = verdict.at_equal_accuracy(*rows(found), equal_within=0.03)
    assert part.shown == "no checkpoint" and winners(part) == {"size": "not decided"}
    assert "20 questions cannot show a difference to be below 3 points" in part.measures[0].numbers
    found = section(tmp_path / "same", (few < 5, 0.43), {30: (few < 5, 0.5)})  # a bootstrap without any width
    assert winners(verdict.at_equal_accuracy(*rows(found), equal_within=0.03)) == {"size": "not decided"}


def test_a_wide_interval_is_not_taken_for_equality(tmp_path):
    """883 questions on which 200 differ either way: not told apart, not shown to be within 3 points."""
    found = section(tmp_path, ((N < 200), 0.43), {30: ((N >= 100) & (N < 300), 0.5)})
    gptq, (row,) = rows(found)
    compared, _ = comparison.compare_rows(row, gptq)
    assert statistics.favours(compared) == 0 and compared["interval"][0] < -0.03
    part = verdict.at_equal_accuracy(gptq, [row], equal_within=0.03)
    assert part.shown == "no checkpoint" and winners(part) == {"size": "not decided"}
    assert "`sapling/30`" in verdict.at_equal_accuracy(gptq, [row], equal_within=0.05).shown


def test_intervals_are_widened_for_many_checkpoints(tmp_path):
    """One checkpoint 7 questions behind passes alone at 3 points; as one of forty it does not."""
    gptq = (N < 200, 0.43)
    worse = ((N < 172) | ((N >= 200) & (N < 221)), 0.5)
    alone = section(tmp_path, gptq, {30: worse})
    part = verdict.at_equal_accuracy(*rows(alone), equal_within=0.03)
    assert "`sapling/30`" in part.shown and "99.00% intervals" in part.remark
    many = section(tmp_path / "many", gptq, dict.fromkeys(range(30, 70), worse), speed=False)
    part = verdict.at_equal_accuracy(*rows(many), equal_within=0.03)
    assert part.shown == "no checkpoint" and "99.88% intervals, for 40 checkpoints" in part.remark


def test_throughput_without_common_rounds_or_device_is_not_decided(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False)
    part = verdict.at_equal_size(*rows(found))
    assert winners(part) == {
        "accuracy": "SAPLING", "throughput": "not decided", "inference memory": "not decided"
    }  # fmt: skip
    assert "`sapling/30` and `gptq_4bit` not measured" in str(part)
    made.throughput(tmp_path, "sapling/30", 40.0, base=23.0)
    made.throughput(tmp_path, "gptq_4bit", 20.0, base=24.0)  # another call
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    part = verdict.at_equal_size(*rows(found))
    assert winners(part)["decode throughput"] == "not decided" and "no rounds of one call" in str(part)


def test_a_difference_within_the_noise_of_throughput_is_not_decided(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False)
    made.throughput(tmp_path, "sapling/30", 20.2, prefill=800.0, memory=0.50, spread=0.1)
    made.throughput(tmp_path, "gptq_4bit", 20.0, prefill=790.0, memory=0.51, spread=0.1, seed=1)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    outcome = winners(verdict.at_equal_size(*rows(found)))
    assert [outcome[name] for name in ("decode throughput", "prefill throughput", "inference memory")] == [
        "not decided"
    ] * 3


def test_a_section_without_predictions_or_size_is_not_decided(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)})
    (tmp_path / "gptq_4bit" / "predictions_dev.jsonl").unlink()
    (one,) = verdict.judge(found)
    assert "predictions of gptq_4bit are not here" in one.summary and one.summary.startswith("**Not decided.**")
    gptq, _ = rows(found)
    gptq.size_gb = None
    (one,) = verdict.judge(found)
    assert one.summary.startswith("**Not decided.**") and "the size of GPTQ was not recorded" in one.summary


def test_each_section_has_a_verdict_of_its_own(tmp_path):
    section(tmp_path, (N < 300, 0.43), {30: (N < 200, 0.43)})
    made.evaluation(tmp_path, "gptq_4bit", N < 100, 0.43, split="test")
    found = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev", "test"])[0])
    text = verdict.markdown(found, [verdict.judge(one) for one in found])
    assert text.count("\n## ") == 3  # two sections and the rules
    parts = text.split("\n## ")
    assert "does not hold" in parts[1] and "FinQA, dev" in parts[1]
    assert "Missing: an evaluated run of SAPLING" in parts[2] and "FinQA, test" in parts[2]
    assert Path(tmp_path).name not in text


def test_only_4_bit_gptq_of_a_known_run_is_judged_and_every_pair_is(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)})
    for run, values in {
        "gptq_8bit": {"SOURCE_RUN": "qlora_4bit", "BITS": 8}, "second": {"SOURCE_RUN": "qlora_4bit", "BITS": 4},
        "orphan": {"SOURCE_RUN": "removed since", "BITS": 4},
    }.items():  # fmt: skip
        made.settings(tmp_path / run, "quantize_gptq.py", values)
        made.evaluation(tmp_path, run, N < 250, 0.43)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    summaries = [one.summary for one in verdict.judge(found)]
    assert len(summaries) == 2
    assert all(f"SAPLING (`sapling`) against GPTQ (`{run}`)" in " ".join(summaries) for run in ("gptq_4bit", "second"))


def test_a_model_measured_in_another_form_decides_no_speed_and_no_memory(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False)
    made.throughput(tmp_path, "gptq_4bit", 20.0, memory=0.9)
    made.throughput(tmp_path, "sapling/30", 40.0, memory=0.3, label="does not fit a 10 GB card: measured in 4 bits")
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    part = verdict.at_equal_size(*rows(found))
    assert winners(part) == {"accuracy": "SAPLING", "throughput": "not decided", "inference memory": "not decided"}
    assert "measured in 4 bits" in str(part)


def test_a_ratio_within_the_benchmarks_own_spread_decides_nothing(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False)
    for decode, winner in ((20.8, "not decided"), (21.6, "SAPLING")):
        made.throughput(tmp_path, "gptq_4bit", 20.0, spread=0.001)
        made.throughput(tmp_path, "sapling/30", decode, spread=0.001)
        (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
        assert winners(verdict.at_equal_size(*rows(found)))["decode throughput"] == winner


def test_the_model_before_any_drop_is_no_checkpoint_of_saplings(tmp_path):
    found = section(tmp_path, (N < 200, 0.43), {60: (N < 300, 1.0), 30: (N < 100, 0.5)})
    (one,) = verdict.judge(found)
    assert "`sapling/60`" not in one.summary and "`sapling/30`" in one.summary


def pruned(tmp_path, run, criterion, right, share, left=20):
    values = {"CRITERION": criterion, "SCHEDULE": "one_shot", "DROP_UNIT": "block"}
    made.settings(tmp_path / run / str(left), "sapling_train.py", values)
    made.evaluation(tmp_path, f"{run}/{left}", right, share)


def test_another_way_to_drop_layers_is_compared_at_its_last_depth(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.60), 20: (N < 250, 0.43)}, speed=False)
    pruned(tmp_path, "last", "last", N < 150, 0.60, left=15)
    pruned(tmp_path, "last", "last", N < 100, 0.43, left=10)
    pruned(tmp_path, "random", "random", N < 249, 0.43)
    pruned(tmp_path, "angular", "angular", N < 400, 0.43)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    said = {one.summary.partition("(`")[2].partition("**")[0]: one.summary for one in verdict.judge_pruning(found)}
    assert len(said) == 3
    heads = {
        name: next(text for text in said.values() if f"`{name}/" in text) for name in ("last", "random", "angular")
    }
    assert heads["last"].startswith("**This run of SAPLING is better.**") and "`last/10`" in heads["last"]
    assert "28.3% against 11.3%, +17.0 points" in heads["last"] and "`sapling/20`" in heads["last"]
    assert heads["random"].startswith("**Not decided.**")
    assert heads["angular"].startswith("**This run of SAPLING is worse.**")
    assert "in a 98.33% interval, of unrecorded training" in verdict.judge_pruning(found)[0].summary


def test_what_a_run_started_from_counts_among_its_tokens(tmp_path):
    section(tmp_path, (N < 200, 0.43), {20: (N < 250, 0.43)}, speed=False)
    pruned(tmp_path, "last", "last", N < 100, 0.43, left=10)
    made.settings(tmp_path / "lora", "train_qlora_4bit.py", {"LORA_RANK": 8})
    values = {"CRITERION": "calibration", "SCHEDULE": "successive", "START_FROM": "lora"}
    made.settings(tmp_path / "sapling/20", "sapling_train.py", values)
    for run, tokens in (("lora", 3e6), ("sapling/20", 1e6), ("last/10", 2e6)):
        runs.write_json(tmp_path / run / "train_metrics.json", {"tokens_seen": int(tokens)})
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    assert "trained on 4.00 and 2.00 million tokens" in verdict.judge_pruning(found)[0].summary


def test_the_model_before_any_drop_is_not_judged_against_other_pruning(tmp_path):
    section(tmp_path, (N < 200, 0.43), {60: (N < 300, 1.0)}, speed=False)
    pruned(tmp_path, "last", "last", N < 100, 0.43)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    assert verdict.judge_pruning(found) == []


def test_a_larger_checkpoint_is_not_called_better_than_other_pruning(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.60)}, speed=False)
    pruned(tmp_path, "last", "last", N < 100, 0.43)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    assert verdict.judge_pruning(found)[0].summary.startswith("**Not decided.**")


def test_gptq_does_not_win_while_a_smaller_checkpoint_is_undecided(tmp_path):
    """3 questions fewer, of 27 that differ, at GPTQ's bytes: not shown to be equal, and not worse."""
    undecided = (N < 235) | ((N >= 400) & (N < 412))
    found = section(tmp_path, (N < 250, 0.43), {50: (N < 249, 0.90), 16: (undecided, 0.43)})
    gptq, checkpoints = rows(found)
    part = verdict.at_equal_accuracy(gptq, checkpoints, 0.01)
    assert "`sapling/50`" in part.shown and winners(part)["size"] == "not decided"
    assert "`sapling/16`, smaller, is not shown to be worse, nor GPTQ to be better in size." in part.remark
    found = section(tmp_path, (N < 250, 0.43), {50: (N < 249, 0.90), 16: (undecided, 0.80)})
    part = verdict.at_equal_accuracy(*rows(found), 0.01)
    assert winners(part)["size"] == "GPTQ" and "not shown to be worse" not in part.remark


def test_a_margin_above_gptqs_own_accuracy_decides_nothing(tmp_path):
    found = section(tmp_path, (N < 20, 0.43), {50: (N < 12, 0.90)})
    part = verdict.at_equal_accuracy(*rows(found), 0.03)
    assert winners(part) == {"size": "not decided"}
    assert "GPTQ answers too little (2.3%) for a margin of 3 points" in str(part)


@pytest.mark.parametrize(
    ("device", "kernel", "bandwidth", "decode", "prefill"),
    [
        ("cuda", "MarlinLinear", 0.5, "SAPLING", "SAPLING"),
        ("cuda", "MarlinLinear", 0.2, "not decided", "SAPLING"),
        ("cuda", "TritonV2Linear", 0.5, "not decided", "not decided"),
        ("cpu", "TorchAtenLinear", 0.1, "SAPLING", "SAPLING"),
    ],
)
def test_speed_not_owed_to_the_model_on_a_gpu_decides_nothing(tmp_path, device, kernel, bandwidth, decode, prefill):
    section(tmp_path, (N < 200, 0.50), {30: (N < 300, 0.50)}, speed=False)
    hardware = {"gpu": "a card", "cpu": "x", "threads": 2}
    common = {"device": device, "hardware": hardware}
    made.throughput(tmp_path, "sapling/30", 40.0, memory=0.3, **common)
    made.throughput(tmp_path, "gptq_4bit", 20.0, prefill=100.0, kernel=kernel, bandwidth=bandwidth, **common)
    (found,) = comparison.make_sections(comparison.read_rows(str(tmp_path), ["dev"])[0])
    gptq, (checkpoint,) = rows(found)
    speed = {measure.name: measure.winner for measure in verdict.compare_speed(checkpoint, gptq)}
    assert (speed["decode throughput"], speed["prefill throughput"]) == (decode, prefill)
    assert speed["inference memory"] == "SAPLING"
