"""``pairwise``: sums by masks that cancel in pairs, with recovery from dropouts; one server, no helper.

Reading order: ``graph`` (who masks with whom, and how unlikely failure is), ``wire`` (the four stages and their
messages), ``keys``, ``client``, ``server``, ``state`` (a client put away), ``protocol``. Beside the folder: ``field``
(Shamir's shares), ``masks`` (key streams added to a vector).
"""
