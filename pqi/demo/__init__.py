"""The demonstration: a real network on real digits, trained, quantized, split, asked privately and compared.

Reading order: ``measure`` (clocks, memory, machine), ``digits`` (data and network), ``outcome`` (what is shown and
written), ``story`` (what happens, in order); then ``cancer``, ``keyed_outcome`` and ``keyed_story``, the same under a
client's key. Nothing here draws on a screen.
"""
