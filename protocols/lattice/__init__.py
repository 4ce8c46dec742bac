"""What the protocols on lattices share: ``bfv`` and ``ckks``, both through SEAL.

``context`` (parameters at 128-bit security, evaluation keys), ``secret`` (the client's key; no server loads it),
``wire`` (SEAL's objects as bytes of declared length), ``layout`` and ``diagonals`` (which value lies in which slot),
``engine`` (steps on ciphertexts that both take), ``residues`` (integers modulo the coefficient primes), ``batch``
(matrix products of these), ``weights`` (do they fit a plan).
"""
