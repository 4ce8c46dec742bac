"""BFV on one server: the circuit's integers exactly, under the client's key (Brakerski 2012; Fan & Vercauteren 2012).

Reading order: ``noise`` (how it grows), ``schedule`` (where in the modulus chain each stage runs), ``choose``
(parameters), ``plan``, ``client``, ``weights`` (the server's, prepared once), ``engine`` (SEAL under one client's
keys), ``server``, ``protocol``.
"""
