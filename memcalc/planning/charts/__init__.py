"""The JSON object of every kind of chart: what its picture, text and tables are made from."""
