"""SAPLING: a run that shrinks a model (``run``), and how what a drop costs is learned back (the other modules)."""

from fincompress.sapling.run import Run, apply_recovery, needs_teacher, open_run

__all__ = ["Run", "apply_recovery", "needs_teacher", "open_run"]
