"""CKKS on one server: the circuit's values approximately, within a computed bound (Cheon, Kim, Kim and Song, 2017).

Reading order: ``centred`` (polynomials without their second coefficient), ``schedule`` (primes and gains, stage by
stage), ``bound`` (how far an answer can be from the exact one), ``plan``, ``client``, ``engine`` and ``weights`` (the
server's steps and plaintexts), ``server``, ``protocol``.

Do not hand decrypted values back to the server: an approximate answer tells its error, and errors tell the key (Li and
Micciancio, EUROCRYPT 2021). The client's end sends nothing but fresh encryptions of inputs.
"""
