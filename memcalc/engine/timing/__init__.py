"""Time of a step: kernels, exchanges, schedules and what of them shows."""
