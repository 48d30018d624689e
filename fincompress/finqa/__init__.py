"""FinQA: examples, programs and their scorer, evidence, prompts, synthetic pages. Needs no torch."""
