"""What private federated learning costs and what it protects, measured on real data.

Reading order: ``split`` (who has which images), ``training`` (federated averaging in one process, with any way to
average), ``averaging`` (the ways: in floats, and encoded through any protocol for sums), ``inversion`` and
``membership`` (what a server does with what it sees), ``attacks`` (both against one client's update, a sum, and a sum
with noise), ``page`` (the measured differences with pictures).

A simulation of all parties by one person who holds all data. Its seeds are numpy generators, which make runs
repeatable; nothing secret comes from them. Masks and noise come from where the deployed code takes them.
"""
