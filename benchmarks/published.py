"""What others published and we stand beside; never measured here, so never a row of results."""

COLD_START_GAINS = {5: 0.066, 10: 0.037, 100: 0.024}
"""Gain over LinkedIn's production ranker for members with at most so many events, on a metric of
its own and without error bars. Source: 360Brew (arXiv 2501.16450) figure 6, read off by eye."""
