"""What an estimate means for a whole run: its duration, cost and utilisation.

Reads results of the engine; knows nothing of text, files or devices.
"""
