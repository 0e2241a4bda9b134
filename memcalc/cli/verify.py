"""memcalc verify."""
