"""Learning rates that are computed: linear decay, schedules refined from a run's gradient norms or from its spectrum,
rules for batch sizes.

A schedule is a function of the step's number, from 0, that gives a factor of the learning rate. Its scheduler, of
``torch.optim.lr_scheduler``'s protocol, is that function and a counter: it resumes at any step.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import curvature, gradients, numpy, optim, reference  # noqa: F401  (before their parts: threads may meet there)
from ferrostep.schedules.batch import scale_lr_for_batch
from ferrostep.schedules.linear import LinearDecay, LinearDecayLR
from ferrostep.schedules.recorder import GradNormRecorder
from ferrostep.schedules.refined import RefinedLR, RefinedSchedule, refine_schedule
from ferrostep.schedules.regime import RegimeAdaptation
from ferrostep.schedules.schedule import Schedule, ScheduleLR
from ferrostep.schedules.spectral import BatchSpectrum, HeavyBall, SpectralLR, batch_spectrum, heavy_ball

__all__ = [
    "BatchSpectrum",
    "GradNormRecorder",
    "HeavyBall",
    "LinearDecay",
    "LinearDecayLR",
    "RefinedLR",
    "RefinedSchedule",
    "RegimeAdaptation",
    "Schedule",
    "ScheduleLR",
    "SpectralLR",
    "batch_spectrum",
    "heavy_ball",
    "refine_schedule",
    "scale_lr_for_batch",
]
