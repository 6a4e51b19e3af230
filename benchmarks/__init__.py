"""Claims with error bars. Each is `python -m benchmarks.NAME [--smoke] [--out FILE.csv]`."""
