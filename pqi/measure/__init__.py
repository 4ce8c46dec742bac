"""What privacy costs: one network under every protocol that serves it, beside the same network without privacy.

Reading order: ``spread`` (a figure that was measured several times), ``subject`` (what is measured: models, inputs, the
float network), ``networks`` (subjects by name), ``plain`` (without privacy), ``private`` (every role a process, over
TLS), ``bench`` (all of it together), ``picture`` and ``html``.
"""
