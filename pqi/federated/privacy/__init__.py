"""Differential privacy in integers: noise that every client adds to its codes, and what it costs.

``rotation`` makes values alike, ``mechanism`` says what noise is to the encoding, ``discrete_gaussian`` and
``skellam`` are the two kinds, ``inversion`` samples them exactly, ``calibration`` finds the scale, ``accounting``
keeps the books.
"""
