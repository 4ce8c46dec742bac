"""One server, one key: the roles of keyed protocols.

Reading order: ``words`` (what is said, in which order, and how long it is), ``asking`` (the client's end), ``server``
and ``serving`` (the server, one client session), ``workers`` (processes that compute, as the server sees them) and
``worker`` (one of them).

The client's keys are made in its process and stay there. Nothing that the server or a worker imports can make,
read or use one: the ends of a protocol live in different modules, and ``tests`` look at the running processes.
"""
