"""Tuning: the cheapest program within an accuracy budget, and what every other compromise would cost.

cost.py       what is to be made small: bytes, exchanges, seconds on a network profile
levers.py     candidates, and the moves that lead from one to the next
judge.py      what a candidate costs and how often it is right, both exactly
search.py     the search itself; it knows neither networks nor protocols
curve.py      everything that was tried: table, JSON, the trade-off front
picture.py    the same as a picture
api.py        ``pqi.tune``: the parts in a row
"""
