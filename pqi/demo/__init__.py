"""The demonstration: a real network on real digits, trained, quantized, split, asked privately and compared.

Reading order: ``measure`` (clocks, memory, machine), ``digits`` (data and network), ``outcome`` (what is shown and
written), ``story`` (what happens, in order). Nothing here draws on a screen.
"""
