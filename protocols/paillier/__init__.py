"""Paillier's cryptosystem: one key at the client, one server, affine circuits, exact.

A ciphertext is ``c = (1 + n)^m r^n mod n^2``: a product of ciphertexts adds plaintexts, a power multiplies by a plain
integer. Several samples lie side by side in one plaintext (P. Paillier, *Public-Key Cryptosystems Based on Composite
Degree Residuosity Classes*, EUROCRYPT 1999).

Contents, in reading order:

========  ==========================================================================================================
numbers   arithmetic on integers of thousands of bits, by GMP where it is installed
packing   small signed integers side by side in one plaintext; also what sums of many parties' vectors need
public    the public key: ciphertexts, their sums, fresh encryptions of zero, their form on the wire
pool      encryptions of zero made ahead, each used once
product   an encrypted vector times a matrix of plain integers, in a time that says nothing about the integers
plan      key size, slots, groups of samples, declared bytes
server    the model owner's end; knows no secret key and imports nothing that could make one
private   the secret key
client    the key holder's end
protocol  the security statement; how plans and ends are made
========  ==========================================================================================================
"""
