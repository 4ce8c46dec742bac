"""Two compute parties and an offline dealer: additive sharing mod 2^k, exact shifts, tables, comparisons.

Contents, in reading order:

==========  ========================================================================================================
kernel      what a step looks like from inside; a party; the dealer's pen
material    one-time material: kinds, layout, keys, the law that nothing is read twice
linear      opening a value, linear maps of shared, owned and public weights: at most one ring product per party online
shift       shift by s bits: exact (table or digits) or stochastic
table       one-time truth tables, alone and fused with an exact shift
gf2         products of masked bits as the parity of one dealt word
compare     a public number against a dealt secret, digit by digit
clamp       exact shift + ReLU + clamp, and sign, by digits
chain       the comparison whose masked results open together with the digits' bits
quick       exact shift with ReLU and clamp by it, in one exchange less
lift        from a small ring into a wide one, for values that leave half of it empty
select      sign-and-select, maxima
noise       noise that the dealer alone knows, added to a value
dealing     the dealer and the parties of a whole list of steps
statement   who learns what, by the visibility of the weights
protocol    its roles; how inputs are shared and answers put together
==========  ========================================================================================================
"""
