"""Shared parts of the phase scripts: settings, runs, FinQA, models, training, generation."""
