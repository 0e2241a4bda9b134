"""memcalc measure."""
