"""SAPLING: a run that shrinks a model (``run``), and how what a drop costs is learned back (the other modules)."""

from fincompress.sapling.healing import heal
from fincompress.sapling.run import Run
from fincompress.sapling.start import apply_recovery, open_run
from fincompress.sapling.teacher import needs_teacher

__all__ = ["Run", "apply_recovery", "heal", "needs_teacher", "open_run"]
