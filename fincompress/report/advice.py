"""Which of the models to use: the most accurate one, and the smallest and the fastest that are about as accurate."""

import pandas as pd


def advice(rows: pd.DataFrame, equal_within: float) -> list[str]:
    """Lines for the terminal and results.md; ``rows`` is a section, ``equal_within`` a difference in accuracy."""
    best = rows.loc[rows["execution_accuracy"].idxmax()]
    near = rows[rows["execution_accuracy"] >= best["execution_accuracy"] - equal_within]
    within = f"within {100 * equal_within:.0f} points"
    chosen = {"most accurate": best, f"smallest {within}": near.loc[near["size_gb"].idxmin()]}
    if near["decode_tokens_per_s"].notna().any():
        chosen[f"fastest {within}"] = near.loc[near["decode_tokens_per_s"].idxmax()]
    lines = [f"{need}: {row['method']} ({row['run']}), {accuracy(row)}{cost(row)}" for need, row in chosen.items()]
    half = (rows["execution_accuracy_high"] - rows["execution_accuracy_low"]).max() / 2
    return [*lines, f"chance: with other questions each accuracy could be {100 * half:.0f} points higher or lower"]


def accuracy(row: pd.Series) -> str:
    low, high = 100 * row["execution_accuracy_low"], 100 * row["execution_accuracy_high"]
    return f"{100 * row['execution_accuracy']:.1f} % (95 %: {low:.0f} to {high:.0f})"


def cost(row: pd.Series) -> str:
    """Size and, where it was measured, speed."""
    speed = row["decode_tokens_per_s"]
    return f", {1000 * row['size_gb']:.0f} MB" + ("" if pd.isna(speed) else f", {speed:.0f} tokens/s")
