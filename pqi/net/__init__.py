"""The only sockets: framing, TLS channels, and the driver that counts bytes and exchanges in one place.

Reading order: ``errors`` (what can go wrong), ``frames`` (bytes on the wire), ``tls`` and ``authority`` (who is at the
other end), ``stream`` (TLS in few system calls), ``channel`` (one connection; many at once in one thread), ``waiting``
(how a thread waits for them), ``hello`` (same program, same deployment, or nothing), ``listener`` (a port that survives
its visitors), ``driver`` (a party's rounds over channels, counted), ``link`` (an emulated network, for measurements).
"""
