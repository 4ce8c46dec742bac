"""Observers: what calibration saw of a value, in constant memory, and the ranges that can be chosen from it.

observation.py   Observation: ends, moving average, histogram; ``range`` by the name of an observer
histogram.py     the histogram: power-of-two reach, so that it is the same however the data were cut into batches
percentile.py    leave a share of the values outside
mse.py           least mean squared error
entropy.py       least Kullback-Leibler divergence
"""

from pqi.quant.observers.observation import OBSERVERS, Observation

__all__ = ["OBSERVERS", "Observation"]
