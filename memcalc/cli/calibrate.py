"""memcalc calibrate."""
