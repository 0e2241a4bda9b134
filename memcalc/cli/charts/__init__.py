"""From the command line to the JSON object of each kind of chart."""
