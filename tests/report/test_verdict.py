"""The verdict on made-up runs: who wins, what is not decided, and what is missing."""

import made_up_runs as made
import numpy as np
import pytest

from fincompress import runs
from fincompress.report import rows as report_rows
from fincompress.report import statistics, verdict

QUESTIONS = 883
N = np.arange(QUESTIONS)
OPEN = "not decided"
SAPLING = {"CRITERION": "calibration", "SCHEDULE": "successive"}


def section(tmp_path, gptq, sapling, speed=True):
    """GPTQ and SAPLING checkpoints given as ``(verdicts, share of the base)``, ``{units left: ...}`` for SAPLING."""
    made.settings(tmp_path / "qlora_4bit", "train_qlora_4bit.py")
    made.settings(tmp_path / "gptq_4bit", "quantize_gptq.py", {"SOURCE_RUN": "qlora_4bit"})
    made.evaluation(tmp_path, "gptq_4bit", *gptq)
    made.data_report(tmp_path)
    for left, checkpoint in sapling.items():
        made.settings(tmp_path / "sapling" / str(left), "sapling_train.py", SAPLING)
        made.evaluation(tmp_path, f"sapling/{left}", *checkpoint)
        if speed:
            made.throughput(tmp_path, f"sapling/{left}", 40.0, memory=0.3)
    if speed:
        made.throughput(tmp_path, "gptq_4bit", 20.0, prefill=100.0, memory=0.5)
    return read(tmp_path)


def read(tmp_path):
    (section,) = report_rows.make_sections(report_rows.read_rows(str(tmp_path), ["dev"])[0])
    return section


def rows(section):
    gptq = next(row for row in section.means if row.kind == "quantized")
    return gptq, sorted((row for row in section.means if row.kind == "sapling"), key=lambda row: row.size_gb)


def equal_size(section):
    return verdict.at_equal_size(*rows(section))


def equal_accuracy(section, equal_within=0.03):
    return verdict.at_equal_accuracy(*rows(section), equal_within)


def notes(comparison):
    return "; ".join(comparison.notes)


# --- the whole verdict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [("gptq",), ("sapling",), ()])
def test_without_both_methods_nothing_is_decided(tmp_path, runs):
    made.settings(tmp_path / "base", "evaluate.py")
    made.settings(tmp_path / "qlora_4bit", "train_qlora_4bit.py")
    made.evaluation(tmp_path, "base", N < 100)
    for run, script in (("gptq", "quantize_gptq.py"), ("sapling", "sapling_train.py")):
        if run in runs:
            made.settings(tmp_path / run, script, SAPLING | {"SOURCE_RUN": "qlora_4bit"})
            made.evaluation(tmp_path, run, N < 200, 0.5)
    pairs = verdict.judge(read(tmp_path))
    assert pairs == [] and verdict.sentence(pairs).startswith(
        "Not decided: it takes evaluated runs of SAPLING and of 4"
    )


def test_baseline_pruning_does_not_pass_for_sapling(tmp_path):
    section(tmp_path, (N < 200, 0.43), {})
    made.settings(tmp_path / "last", "sapling_train.py", {"CRITERION": "last", "SCHEDULE": "successive"})
    made.evaluation(tmp_path, "last", N < 300, 0.43)
    assert verdict.judge(read(tmp_path)) == []


def test_sapling_beats_gptq_where_it_is_better_in_everything(tmp_path):
    results = section(tmp_path, (N < 200, 0.50), {30: (N < 300, 0.50), 20: (N < 200, 0.40)})
    (pair,) = verdict.judge(results)
    size, equal = pair
    assert verdict.decision(pair) == "yes"
    assert (size.sapling.run, equal.sapling.run) == ("sapling/30", "sapling/20")
    assert size.winners == dict.fromkeys(("accuracy", "decode", "prefill", "memory"), "SAPLING")
    assert equal.winners == dict.fromkeys(("decode", "prefill", "memory", "bytes"), "SAPLING")
    assert size.ratios["accuracy"].startswith("+11.3 [") and size.ratios["memory"] == "0.60"
    assert verdict.sentence([pair]) == "SAPLING beats GPTQ 4-bit in 1 of 1 comparisons."


def test_one_loss_refutes(tmp_path):
    results = section(tmp_path, (N < 300, 0.50), {30: (N < 200, 0.50)})
    (pair,) = verdict.judge(results)
    winners = pair[0].winners
    assert (winners["accuracy"], winners["decode"]) == ("the other", "SAPLING")
    assert verdict.decision(pair) == "no"
    assert verdict.sentence([pair]) == "SAPLING beats GPTQ 4-bit in 0 of 1 comparisons (1 lost; 1 of them in accuracy)."


def test_only_4_bit_quantization_of_a_known_run_is_judged_and_every_pair_is(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)})
    for run, values in {
        "gptq_8bit": {"SOURCE_RUN": "qlora_4bit", "BITS": 8}, "second": {"SOURCE_RUN": "qlora_4bit", "BITS": 4},
        "orphan": {"SOURCE_RUN": "removed since", "BITS": 4}, "awq": {"SOURCE_RUN": "qlora_4bit", "METHOD": "awq"},
    }.items():  # fmt: skip
        made.settings(tmp_path / run, "quantize_gptq.py", values)
        made.evaluation(tmp_path, run, N < 250, 0.43)
    pairs = verdict.judge(read(tmp_path))
    assert {pair[0].other.run for pair in pairs} == {"gptq_4bit", "second", "awq"}
    assert {verdict.rival_name(pair[0].other) for pair in pairs} == {"GPTQ 4-bit", "AWQ 4-bit"}


def test_the_model_before_any_drop_is_no_checkpoint_of_saplings(tmp_path):
    results = section(tmp_path, (N < 200, 0.43), {60: (N < 300, 1.0), 30: (N < 100, 0.5)})
    (pair,) = verdict.judge(results)
    assert {comparison.sapling.run for comparison in pair} == {"sapling/30"}


def test_the_table_has_a_line_a_comparison_and_says_why_something_is_open(tmp_path):
    results = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False)
    table = verdict.table(verdict.judge(results))
    assert len(table.lines) == 2 and all(len(line) == len(verdict.COLUMNS) for line in table.lines)
    assert table.lines[0][:2] == ["sapling/30", "gptq_4bit"] and table.lines[0][-1] == OPEN
    assert "sapling/30: speed and memory were not measured" in " ".join(table.notes)


def test_answers_are_three_sentences(tmp_path):
    results = section(tmp_path, (N < 300, 0.50), {30: (N < 200, 0.50), 50: (N < 300, 0.9)})
    _, size, accuracy, time = verdict.answers(verdict.judge(results))
    assert size.startswith(
        "**At equal size** (50.0 % of the bytes against 50.0 %) SAPLING answers 22.7 % and GPTQ 4-bit (gptq_4bit) 34.0"
    )
    assert accuracy.startswith(
        "**At equal accuracy** (+0.0 [+0.0, +0.0] points) SAPLING (sapling/50) takes 1.80 times the bytes"
    )
    assert accuracy.endswith("of GPTQ 4-bit. A depth is shown to be as accurate in 1 of 1 comparisons.")
    assert (
        time.startswith("**Time per question** (186 tokens in, 18 out): SAPLING takes 0.") and "GPTQ 4-bit 2." in time
    )


def test_saplings_depths_that_were_quantized_are_set_against_quantization_alone(tmp_path):
    section(tmp_path, (N < 300, 0.43), {50: (N < 300, 0.9)})
    made.settings(tmp_path / "sapling_gptq" / "50", "quantize_gptq.py", {"SOURCE_RUN": "sapling/50"})
    made.evaluation(tmp_path, "sapling_gptq/50", N < 300, 0.38)
    made.throughput(tmp_path, "sapling_gptq/50", 30.0, prefill=200.0, memory=0.4)
    alone, quantized = pairs = verdict.judge(read(tmp_path))
    assert [pair[0].sapling.run for pair in pairs] == ["sapling/50", "sapling_gptq/50"]
    assert quantized[1].equal == "accuracy" and verdict.decision(quantized) != "no" == verdict.decision(alone)
    assert verdict.sentence(pairs) == (
        "SAPLING beats GPTQ 4-bit in 0 of 1 comparisons (1 lost; sizes over 5 % apart in 1, which SAPLING cannot win). "
        "SAPLING + GPTQ 4-bit beats GPTQ 4-bit in 0 of 1 comparisons (1 not decided; as accurate and ahead in every "
        "cost in 1; sizes over 5 % apart in 1, which SAPLING cannot win)."
    )
    assert verdict.answers(pairs) == [f"**{verdict.sentence(pairs)}**", *verdict.answer([alone])]
    size, accuracy, _ = verdict.answer([quantized])
    assert size.startswith("**Nearest in size** (38.0 % of the bytes against 43.0 %) SAPLING + ")
    assert size.endswith("It is shown to be less accurate in 0 of 1 comparisons.")  # as accurate
    assert (
        "SAPLING + GPTQ 4-bit (sapling_gptq/50) takes 0.88 times the bytes and 0.80 times the memory of GPTQ 4-bit"
        in accuracy
    )
    made.evaluation(tmp_path, "sapling_gptq/50", N < 100, 0.38)
    size, *_ = verdict.answer(verdict.judge(read(tmp_path))[1:])
    assert size.endswith("points. SAPLING + GPTQ 4-bit is smaller, so this decides nothing.")
    assert "(1 not decided; less accurate in 1; sizes over 5 % apart" in verdict.sentence(verdict.judge(read(tmp_path)))


def test_seeds_are_judged_by_their_mean_and_depths_made_of_one_another_together(tmp_path):
    section(tmp_path, (N < 280, 0.43), {})
    for seed in range(3):
        start = None
        for left, count, share in ((40, 300, 0.8), (20, 100 + seed, 0.43)):
            run = f"s{seed}_{left}/{left}"
            made.settings(tmp_path / run, "sapling_train.py", SAPLING | {"SEED": seed, "START_FROM": start})
            made.evaluation(tmp_path, run, count > N, share)
            runs.write_json(tmp_path / run / "train_metrics.json", {"dropped": ["block.3"], "units_left": left})
            start = run
    (pair,) = verdict.judge(read(tmp_path))
    size, equal = pair
    assert (size.sapling.title, equal.sapling.title) == ("s0_20/20, 3 seeds", "s0_40/40, 3 seeds")
    assert size.difference["difference"] == pytest.approx((101 - 280) / QUESTIONS)
    assert verdict.table([pair]).lines[0][0] == "s0_20/20, 3 seeds"


def test_a_win_over_other_pruning_is_counted_once(tmp_path):
    section(tmp_path, (N < 300, 0.43), {30: (N < 300, 0.6)})
    made.settings(tmp_path / "last" / "30", "sapling_train.py", {"CRITERION": "last", "SCHEDULE": "one_shot"})
    made.evaluation(tmp_path, "last/30", N < 100, 0.6)
    sentence = verdict.sentence(verdict.judge(read(tmp_path)))
    assert sentence.endswith("and other pruning in 1 of 1 comparisons.")


def test_answers_say_what_was_not_shown_and_nothing_of_a_time_that_was_not_measured(tmp_path):
    results = section(tmp_path, (N < 300, 0.50), {30: (N < 200, 0.50)}, speed=False)
    *_, accuracy = verdict.answers(verdict.judge(results))
    costs = "to gptq_4bit no costs are compared: no depth is shown to answer at most 3 points less."
    shown = "A depth is shown to be as accurate in 0 of 1 comparisons."
    assert accuracy.endswith(f"{costs} The most accurate is sapling/30. {shown}")


@pytest.mark.parametrize(("share", "said"), [
    (0.50, "**Nearest in size, of those that have a speed** (90.0 % of the bytes"),
    (0.43, "**At equal size** (43.0 % of the bytes against 43.0 %) SAPLING answers 11.3 %"),
])  # fmt: skip
def test_what_is_of_one_size_speaks_and_else_what_has_a_speed(tmp_path, share, said):
    section(tmp_path, (N < 300, 0.43), {50: (N < 290, 0.9)})
    made.settings(tmp_path / "near" / "20", "sapling_train.py", SAPLING)
    made.evaluation(tmp_path, "near/20", N < 100, share)
    size = verdict.answers(verdict.judge(read(tmp_path)))[1]
    assert size.startswith(said)


def beside_a_longer_one(tmp_path, sapling, share):
    """The sentence about size, of GPTQ and of GPTQ of a phase 1 trained longer, which is the more accurate."""
    section(tmp_path, (N < 300, 0.43), sapling)
    made.settings(tmp_path / "longer_gptq", "quantize_gptq.py", {"SOURCE_RUN": "qlora_4bit"})
    made.evaluation(tmp_path, "longer_gptq", N < 320, share)
    made.throughput(tmp_path, "longer_gptq", 20.0, prefill=100.0, memory=0.5)
    return verdict.answers(verdict.judge(read(tmp_path)))[1]


def test_of_rivals_of_one_size_the_most_accurate_is_named(tmp_path):
    size = beside_a_longer_one(tmp_path, {50: (N < 290, 0.9)}, 0.43)
    assert "SAPLING answers 32.8 % and GPTQ 4-bit (longer_gptq) 36.2 %" in size


def quantized_seeds(tmp_path, name, count, correct):
    """GPTQ of so many seeds of phase 1, which has as many passes as ``name`` has letters."""
    for seed in range(count):
        values = {"SEED": seed, "EPOCHS": len(name)}
        made.settings(tmp_path / f"{name}{seed}", "train_qlora_4bit.py", values, precision="nf4")
        made.settings(tmp_path / f"{name}{seed}_gptq", "quantize_gptq.py", {"SOURCE_RUN": f"{name}{seed}"})
        made.evaluation(tmp_path, f"{name}{seed}_gptq", correct + 2 * seed > N, 0.43)
        made.throughput(tmp_path, f"{name}{seed}_gptq", 20.0, prefill=100.0, memory=0.5)


def test_of_rivals_of_one_size_the_most_accurate_of_several_seeds_is_named(tmp_path):
    beside_a_longer_one(tmp_path, {50: (N < 290, 0.9)}, 0.43)
    quantized_seeds(tmp_path, "q", 3, 240)
    quantized_seeds(tmp_path, "qq", 2, 249)
    assert "GPTQ 4-bit (qq0_gptq, 2 seeds) 28.3 %" in verdict.answers(verdict.judge(read(tmp_path)))[1]


def test_a_comparison_by_fewer_seeds_than_a_run_has_says_which(tmp_path):
    quantized_seeds(tmp_path, "q", 3, 300)
    values = SAPLING | {"SEED": 2, "START_FROM": "q2"}
    made.settings(tmp_path / "s/20", "sapling_train.py", values)
    runs.write_json(tmp_path / "s/20" / "train_metrics.json", {"dropped": ["block.3"], "units_left": 20})
    made.evaluation(tmp_path, "s/20", N < 101, 0.43)
    pairs = verdict.judge(read(tmp_path))
    assert pairs[0][0].difference["difference"] == pytest.approx((101 - 304) / QUESTIONS)
    assert f"GPTQ 4-bit (q0_gptq, 3 seeds) {100 * 304 / QUESTIONS:.1f} % of seed 2: -" in verdict.answers(pairs)[1]
    assert "points of seed 2, which both have" in notes(pairs[0][0])
    made.settings(tmp_path / "s/20", "sapling_train.py", values | {"START_FROM": None})
    assert "which both have" in notes(verdict.judge(read(tmp_path))[0][0])  # seed 2 of its own


def test_a_pair_is_one_of_those_with_a_speed_only_where_a_nearer_one_has_none(tmp_path):
    size = beside_a_longer_one(tmp_path, {20: (N < 290, 0.433)}, 0.4285)
    assert size.startswith("**At equal size** (43.3 % of the bytes against 42.9 %)"), size


def test_an_accuracy_of_0_is_answered_as_0(tmp_path):
    results = section(tmp_path, (N < 300, 0.50), {30: (N < 0, 0.50)})
    assert "SAPLING answers 0.0 % and" in verdict.answers(verdict.judge(results))[1]


# --- at equal size --------------------------------------------------------------------------------------------------


def test_a_small_difference_is_not_decided(tmp_path):
    right = N < 200
    shifted = (N < 195) | (N >= QUESTIONS - 4)  # 5 against 4
    assert equal_size(section(tmp_path, (right, 0.50), {30: (shifted, 0.50)})).winners["accuracy"] == OPEN


def test_a_single_checkpoint_does_not_refute_at_95_per_cent(tmp_path):
    """12 against 25 right alone, p = 0.047: neither at equal size nor at equal accuracy is that enough."""
    results = section(tmp_path, ((N < 188) | (N >= 858), 0.50), {30: (N < 200, 0.50)})
    assert verdict.decision(verdict.judge(results)[0]) == OPEN


def test_a_larger_checkpoint_wins_in_speed_but_not_in_accuracy(tmp_path):
    """A SAPLING checkpoint of 60 % is more accurate and faster than GPTQ of 43 %: only its speed counts."""
    comparison = equal_size(section(tmp_path, (N < 200, 0.43), {40: (N < 300, 0.60), 60: (N < 310, 1.0)}))
    assert comparison.sapling.run == "sapling/40" and "SAPLING, larger, cannot win in accuracy" in notes(comparison)
    assert comparison.winners == {"accuracy": OPEN, "decode": "SAPLING", "prefill": "SAPLING", "memory": "SAPLING"}


def test_a_smaller_checkpoint_wins_in_accuracy_but_not_in_cost(tmp_path):
    comparison = equal_size(section(tmp_path, (N < 200, 0.60), {20: (N < 300, 0.43)}))
    assert comparison.winners == {"accuracy": "SAPLING", "decode": OPEN, "prefill": OPEN, "memory": OPEN}


def test_the_nearest_size_is_chosen_whatever_the_accuracy(tmp_path):
    results = section(tmp_path, (N < 200, 0.43), {50: (N < 290, 0.80), 22: (N < 10, 0.44), 20: (N < 300, 0.41)})
    assert equal_size(results).sapling.run == "sapling/22"


def test_of_one_depth_the_longer_trained_is_taken(tmp_path):
    made.settings(tmp_path / "gptq_4bit", "quantize_gptq.py", {"SOURCE_RUN": "qlora_4bit"})
    made.settings(tmp_path / "qlora_4bit", "train_qlora_4bit.py")
    made.evaluation(tmp_path, "gptq_4bit", N < 200, 0.43)
    for run, start, dropped in (("s/20", "qlora_4bit", ["block.3"]), ("more/20", "s/20", [])):
        made.settings(tmp_path / run, "sapling_train.py", SAPLING | {"START_FROM": start})
        made.evaluation(tmp_path, run, N < 190, 0.43)
        runs.write_json(tmp_path / run / "train_metrics.json", {"dropped": dropped, "tokens_seen": 9})
    runs.write_json(tmp_path / "qlora_4bit" / "train_metrics.json", {"tokens_seen": 9})
    (pair,) = verdict.judge(read(tmp_path))
    assert [comparison.sapling.run for comparison in pair] == ["more/20", "more/20"]


def test_depths_of_two_quantizers_are_compared_apart(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 190, 0.6), 20: (N < 180, 0.5)}, speed=False)
    for run, method, left in (("a", "gptq", 30), ("b", "rtn", 20)):
        made.settings(tmp_path / run, "quantize_gptq.py", {"SOURCE_RUN": f"sapling/{left}", "METHOD": method})
        made.evaluation(tmp_path, run, N < 190, 0.3)
        metrics = {"dropped": ["block.3"], "units_left": left}
        runs.write_json(tmp_path / "sapling" / str(left) / "train_metrics.json", metrics)
    pairs = verdict.judge(read(tmp_path))
    assert [{comparison.sapling.run for comparison in pair} for pair in pairs][-2:] == [{"a"}, {"b"}]


# --- at equal accuracy ----------------------------------------------------------------------------------------------


def test_equal_accuracy_takes_the_smallest_checkpoint_that_is_not_worse(tmp_path):
    """Of 90, 60 and 50 %, the smallest is significantly worse, the next differs by 9 questions of 883."""
    noise = (N >= 200) & (N < 205)
    depths = {50: (N < 210, 0.9), 40: ((N < 186) | noise, 0.6), 30: (N < 100, 0.5)}
    comparison = equal_accuracy(section(tmp_path, (N < 200, 0.43), depths))
    assert (
        comparison.equal == verdict.ACCURACY
        and comparison.sapling.run == "sapling/40"
        and comparison.winners["bytes"] == "the other"
    )
    # Significantly worse by a little: inside the margin, and still not equal.
    comparison = equal_accuracy(section(tmp_path / "b", (N < 200, 0.43), {40: (N < 186, 0.6)}))
    assert comparison.equal == verdict.UNSHOWN and comparison.winners == {"accuracy": "the other"}


def test_an_interval_wholly_below_zero_is_no_equality_though_mcnemar_s_test_does_not_agree(tmp_path):
    comparison = equal_accuracy(section(tmp_path, (N < 200, 0.43), {30: (N < 193, 0.5)}))  # 7 questions, p = 0.016
    assert comparison.equal == verdict.UNSHOWN and comparison.winners == {"accuracy": OPEN}


@pytest.mark.parametrize(("share", "winner"), [(0.30, OPEN), (0.43, "the other"), (0.60, "the other")])
def test_checkpoints_all_smaller_than_gptq_do_not_refute_equal_accuracy(tmp_path, share, winner):
    """Significantly worse, but at 30 % of the bytes against 43: a checkpoint of GPTQ's size was not evaluated."""
    comparison = equal_accuracy(section(tmp_path, (N < 200, 0.43), {8: (N < 60, share)}))
    assert comparison.equal == verdict.UNSHOWN and comparison.winners == {"accuracy": winner}


def test_few_questions_do_not_show_equality(tmp_path):
    """20 questions, 5 against 4 right: no significant difference, and nothing shown either."""
    few = np.arange(20)
    comparison = equal_accuracy(section(tmp_path, (few < 5, 0.43), {30: (few < 4, 0.5)}))
    assert comparison.equal == verdict.UNSHOWN and comparison.winners == {"accuracy": OPEN}
    assert "20 questions cannot show a difference to be below 3 points" in notes(comparison)
    results = section(tmp_path / "same", (few < 5, 0.43), {30: (few < 5, 0.5)})  # a bootstrap without any width
    assert equal_accuracy(results).winners == {"accuracy": OPEN}


def test_a_wide_interval_does_not_show_equality(tmp_path):
    """883 questions on which 200 differ either way: not told apart, not shown to be within 3 points."""
    results = section(tmp_path, ((N < 200), 0.43), {30: ((N >= 100) & (N < 300), 0.5)})
    gptq, (row,) = rows(results)
    compared = report_rows.compare_rows(row, gptq)
    assert statistics.favours(compared) == 0 and compared["interval"][0] < -0.03
    assert equal_accuracy(results).equal == verdict.UNSHOWN
    assert equal_accuracy(results, 0.05).equal == verdict.ACCURACY


def test_intervals_are_widened_for_many_checkpoints(tmp_path):
    """One checkpoint 7 questions behind passes alone at 3 points; as one of forty it does not."""
    gptq = (N < 200, 0.43)
    worse = ((N < 172) | ((N >= 200) & (N < 221)), 0.5)
    alone = equal_accuracy(section(tmp_path, gptq, {30: worse}))
    assert alone.equal == verdict.ACCURACY and alone.difference["confidence"] == 0.99
    many = equal_accuracy(section(tmp_path / "many", gptq, dict.fromkeys(range(30, 70), worse), speed=False))
    assert many.equal == verdict.UNSHOWN and many.difference["confidence"] == pytest.approx(1 - 0.05 / 40)


def test_gptq_does_not_win_while_a_smaller_checkpoint_is_undecided(tmp_path):
    """3 questions fewer, of 27 that differ, at GPTQ's bytes: not shown to be equal, and not worse."""
    undecided = (N < 235) | ((N >= 400) & (N < 412))
    comparison = equal_accuracy(section(tmp_path, (N < 250, 0.43), {50: (N < 249, 0.90), 16: (undecided, 0.43)}), 0.01)
    assert comparison.sapling.run == "sapling/50" and comparison.winners["bytes"] == OPEN
    comparison = equal_accuracy(section(tmp_path, (N < 250, 0.43), {50: (N < 249, 0.90), 16: (undecided, 0.80)}), 0.01)
    assert comparison.winners["bytes"] == "the other"


def test_a_margin_above_gptqs_own_accuracy_decides_nothing(tmp_path):
    comparison = equal_accuracy(section(tmp_path, (N < 20, 0.43), {50: (N < 12, 0.90)}))
    assert comparison.winners == {"accuracy": OPEN}
    assert "the other answers too little for a margin of 3 points" in notes(comparison)


# --- speed and memory -----------------------------------------------------------------------------------------------


def test_throughput_without_common_rounds_or_device_is_not_decided(tmp_path):
    comparison = equal_size(section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False))
    assert comparison.winners == {"accuracy": "SAPLING", "decode": OPEN, "prefill": OPEN, "memory": OPEN}
    assert "gptq_4bit: speed and memory were not measured" in notes(comparison)
    made.throughput(tmp_path, "sapling/30", 40.0, base=23.0)
    made.throughput(tmp_path, "gptq_4bit", 20.0, base=24.0)  # another call
    comparison = equal_size(read(tmp_path))
    assert comparison.winners["decode"] == OPEN and "decode: not two rounds of one benchmark call" in notes(comparison)


def test_a_difference_within_the_noise_of_throughput_is_not_decided(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False)
    made.throughput(tmp_path, "sapling/30", 20.2, prefill=800.0, memory=0.50, spread=0.1)
    made.throughput(tmp_path, "gptq_4bit", 20.0, prefill=790.0, memory=0.51, spread=0.1, seed=1)
    comparison = equal_size(read(tmp_path))
    assert [comparison.winners[name] for name in ("decode", "prefill", "memory")] == [OPEN] * 3
    assert comparison.ratios["decode"] == "1.02 [0.87, 1.20]"  # at the level of all comparisons; at 95 % [0.93, 1.13]


@pytest.mark.parametrize(("decode", "winner"), [(20.8, OPEN), (21.6, "SAPLING")])
def test_a_ratio_within_the_benchmarks_own_spread_decides_nothing(tmp_path, decode, winner):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)}, speed=False)
    made.throughput(tmp_path, "gptq_4bit", 20.0, spread=0.001)
    made.throughput(tmp_path, "sapling/30", decode, spread=0.001)
    assert equal_size(read(tmp_path)).winners["decode"] == winner


@pytest.mark.parametrize(
    ("device", "kernel", "bandwidth", "decode", "prefill"),
    [
        ("cuda", "MarlinLinear", 0.5, "SAPLING", "SAPLING"),
        ("cuda", "MarlinLinear", 0.2, OPEN, "SAPLING"),
        ("cuda", "TritonV2Linear", 0.5, OPEN, OPEN),
        ("cpu", "TorchAtenLinear", 0.1, "SAPLING", "SAPLING"),
    ],
)
def test_speed_not_owed_to_the_model_on_a_gpu_decides_nothing(tmp_path, device, kernel, bandwidth, decode, prefill):
    section(tmp_path, (N < 200, 0.50), {30: (N < 300, 0.50)}, speed=False)
    common = {"device": device, "hardware": {"gpu": "a card", "cpu": "x", "threads": 2}}
    made.throughput(tmp_path, "sapling/30", 40.0, memory=0.3, **common)
    made.throughput(tmp_path, "gptq_4bit", 20.0, prefill=100.0, kernel=kernel, bandwidth=bandwidth, **common)
    winners = equal_size(read(tmp_path)).winners
    assert (winners["decode"], winners["prefill"], winners["memory"]) == (decode, prefill, "SAPLING")


@pytest.mark.parametrize("runtimes", [("TorchAtenLinear", "llama.cpp Q4_0"), ("llama.cpp bf16", None)])
def test_the_speed_of_two_runtimes_decides_nothing(tmp_path, runtimes):
    section(tmp_path, (N < 200, 0.50), {30: (N < 300, 0.50)}, speed=False)
    for run, speed, kernel in zip(("sapling/30", "gptq_4bit"), (10.0, 50.0), runtimes, strict=True):
        made.throughput(tmp_path, run, speed, prefill=speed, kernel=kernel)
    comparison = equal_size(read(tmp_path))
    assert (comparison.winners["decode"], comparison.winners["prefill"]) == (OPEN, OPEN)
    assert "decode decides nothing: llama.cpp ran one" in notes(comparison)


def test_a_slow_kernel_of_a_quantized_sapling_decides_nothing_either(tmp_path):
    section(tmp_path, (N < 200, 0.50), {30: (N < 300, 0.50)}, speed=False)
    made.settings(tmp_path / "small", "quantize_gptq.py", {"SOURCE_RUN": "sapling/30", "BITS": 4})
    made.evaluation(tmp_path, "small", N < 300, 0.50)
    common = {"device": "cuda", "hardware": {"gpu": "a card", "cpu": "x", "threads": 2}, "prefill": 100.0}
    made.throughput(tmp_path, "small", 10.0, kernel="TritonV2Linear", **common)
    made.throughput(tmp_path, "gptq_4bit", 20.0, kernel="MarlinLinear", **common)
    winners = [
        comparison.winners
        for pair in verdict.judge(read(tmp_path))
        for comparison in pair
        if comparison.sapling.run == "small"
    ]
    assert winners and {(won["decode"], won["prefill"]) for won in winners} == {(OPEN, OPEN)}


def test_without_predictions_nothing_is_decided_and_without_a_size_a_run_is_missing(tmp_path):
    results = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43)})
    (tmp_path / "gptq_4bit" / "predictions_dev.jsonl").unlink()
    (pair,) = verdict.judge(results)
    assert verdict.decision(pair) == OPEN and "no predictions of both on the same questions" in notes(pair[0])
    rows(results)[0].size_gb = None
    assert verdict.judge(results) == []


def test_without_predictions_of_one_depth_equal_accuracy_is_not_decided(tmp_path):
    results = section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.43), 20: (N < 200, 0.3)})
    (tmp_path / "sapling" / "20" / "predictions_dev.jsonl").unlink()
    comparison = equal_accuracy(results)
    assert comparison.winners == {"accuracy": OPEN} and notes(comparison) == verdict.UNPAIRED


# --- other ways to drop layers --------------------------------------------------------------------------------------


def drop_layers(tmp_path, run, criterion, right, share, left=20):
    values = {"CRITERION": criterion, "SCHEDULE": "one_shot", "DROP_UNIT": "block"}
    made.settings(tmp_path / run / str(left), "sapling_train.py", values)
    made.evaluation(tmp_path, f"{run}/{left}", right, share)


def against(tmp_path):
    """``{other run: the only comparison}`` of the pairs with other pruning."""
    pairs = verdict.judge(read(tmp_path))
    return {pair[0].other.run: (verdict.decision(pair), pair[0]) for pair in pairs if len(pair) == 1}


def test_another_way_to_drop_layers_is_compared_at_each_depth_also_where_only_a_larger_one_is_ahead(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.60), 20: (N < 250, 0.43)}, speed=False)
    drop_layers(tmp_path, "last", "last", N < 400, 0.60, left=15)
    drop_layers(tmp_path, "last", "last", N < 100, 0.43, left=10)
    drop_layers(tmp_path, "random", "random", N < 249, 0.43)
    drop_layers(tmp_path, "angular", "angular", N < 400, 0.43)
    by_run = against(tmp_path)
    assert {run: decision for run, (decision, _) in by_run.items()} == {
        "last/15": "no", "last/10": "yes", "random/20": OPEN, "angular/20": "no"
    }  # fmt: skip
    comparison = by_run["last/10"][1]
    assert comparison.sapling.run == "sapling/20" and comparison.ratios["accuracy"].startswith("+17.0 [")
    assert comparison.difference["confidence"] == 0.99
    for run in ("taylor", "norm", "other"):
        drop_layers(tmp_path, run, "last", N < 150, 0.43)
    assert against(tmp_path)["last/10"][1].difference["confidence"] == pytest.approx(1 - 0.05 / 7)


def test_a_depth_that_was_not_healed_does_not_speak_where_one_was(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 100, 0.60), 20: (N < 250, 0.43)}, speed=False)
    drop_layers(tmp_path, "last", "last", N < 150, 0.60, left=15)
    assert against(tmp_path)["last/15"][1].sapling.run == "sapling/30"
    for left in (30, 20):
        runs.write_json(tmp_path / f"sapling/{left}/train_metrics.json", {"healed": False, "final": left == 20})
    decision, comparison = against(tmp_path)["last/15"]
    assert (decision, comparison.sapling.run) == ("yes", "sapling/20") and len(comparison.notes) == 1


def test_the_model_before_any_drop_is_not_judged_against_other_pruning(tmp_path):
    section(tmp_path, (N < 200, 0.43), {60: (N < 300, 1.0)}, speed=False)
    drop_layers(tmp_path, "last", "last", N < 100, 0.43)
    assert against(tmp_path) == {}


def test_a_larger_checkpoint_does_not_beat_other_pruning(tmp_path):
    section(tmp_path, (N < 200, 0.43), {30: (N < 300, 0.60)}, speed=False)
    drop_layers(tmp_path, "last", "last", N < 100, 0.43)
    assert against(tmp_path)["last/20"][0] == OPEN
