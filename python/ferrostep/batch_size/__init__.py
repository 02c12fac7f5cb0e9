"""Batch sizes that follow from the noise in the gradients: tests of it, and what changes the size while training.

A test compares how much per-sample gradients vary with the size of their mean, and asks for the batch at which the
noise is the given share of it. Statistics come from the micro-batches of gradient accumulation, at one more pass over
the gradients, or from the gradients of single samples.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import curvature, gradients, numpy, reference  # noqa: F401  (before their parts: threads may meet there)
from ferrostep.batch_size.adaptive import AdaptiveBatchSize
from ferrostep.batch_size.decisions import BatchSizeDecision, augmented_test, inner_product_test, norm_test
from ferrostep.batch_size.sampler import ResizableBatchSampler
from ferrostep.batch_size.statistics import GradStatistics, noise_scale, sample_statistics, two_batch_statistics
from ferrostep.batch_size.variance import GradVarianceAccumulator

__all__ = [
    "AdaptiveBatchSize",
    "BatchSizeDecision",
    "GradStatistics",
    "GradVarianceAccumulator",
    "ResizableBatchSampler",
    "augmented_test",
    "inner_product_test",
    "noise_scale",
    "norm_test",
    "sample_statistics",
    "two_batch_statistics",
]
