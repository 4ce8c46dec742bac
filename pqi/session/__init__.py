"""Roles: model owner, client, compute servers, dealer; each holds only what it may know.

Reading order: ``roles``, ``bundle`` and ``owner`` (who holds what), ``journal`` and ``material`` (nothing is used
twice), ``server`` and ``serving`` (a compute server, one client session), ``supply`` and ``dealer`` (offline
material), ``conversation``, ``sharing`` and ``client`` (who asks), ``ledger``, and ``local`` (every role on this
machine). ``keyed`` has the roles of protocols with one server and a client's key.
"""
