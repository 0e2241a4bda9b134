"""Fitting default calibrations to tables of measured kernels: python -m benchmarks.kernel_fit."""
