"""Two compute parties and an offline dealer: additive sharing mod 2^k, exact shifts, tables, comparisons.

Contents, in reading order:

==========  ========================================================================================================
kernel      what a step looks like from inside; a party; the dealer's pen
material    one-time material: kinds, layout, keys, the law that nothing is read twice
linear      opening a value, linear maps with shared weights: one ring product per party online
shift       shift by s bits: exact (table or digits) or stochastic
table       one-time truth tables, alone and fused with an exact shift
gf2         products of masked bits as the parity of one dealt word
compare     a public number against a dealt secret, digit by digit
clamp       exact shift + ReLU + clamp, and sign, by digits
select      sign-and-select, maxima
dealing     the dealer and the parties of a whole list of steps
==========  ========================================================================================================
"""

from protocols.additive2.dealing import KERNELS, Dealer, Ready, layout, prepare_party, run_step
from protocols.additive2.linear import prepare_operands, share_operands
from protocols.additive2.material import PartyKeys
from protocols.api import SecurityStatement

SECURITY = SecurityStatement(
    adversary="semi-honest, static, corrupts one of {server A, server B, dealer}",
    learns={
        "server A": "layer shapes, rings and shifts; nothing about weights, inputs or answers",
        "server B": "layer shapes, rings and shifts; nothing about weights, inputs or answers",
        "dealer": "layer shapes, rings, shifts and activation tables; sees no traffic, no input, no weight",
        "client": "its answer; the shape of input and output",
    },
)

__all__ = [
    "KERNELS",
    "SECURITY",
    "Dealer",
    "PartyKeys",
    "Ready",
    "layout",
    "prepare_operands",
    "prepare_party",
    "run_step",
    "share_operands",
]
