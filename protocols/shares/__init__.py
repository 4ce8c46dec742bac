"""Sums by additive shares: the server and one or more aggregators that do not collude with it.

Client i sends the server ``x_i - sum_h m_ih mod 2^bits`` and each aggregator h the seed of ``m_ih``, 16 bytes, sealed
to it; an aggregator returns the sum of its masks. Both parts are uniform; the server adds them up. So a client sends
little more than its vector, whatever the number of aggregators (the seed in place of a share: Corrigan-Gibbs and Boneh,
*Prio*, NSDI 2017, appendix I).

Contents, in reading order: ``sealing`` (a seed for one aggregator's eyes), ``parties`` (client and aggregator),
``protocol`` (the server, declared bytes, statement). What expands seeds is :mod:`protocols.masks`, what orders the
stages :mod:`protocols.uploads`.
"""
