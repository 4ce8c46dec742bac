"""What privacy costs: one network under every protocol that serves it, beside the same network without privacy.

Reading order: ``spread`` (a figure that was measured several times), ``subject`` (what is measured: models, inputs, the
float network), ``facts`` (how large it is), ``networks`` and ``nets`` (definitions), ``folder`` (real data),
``problems`` (subjects by name), ``plain`` (without privacy), ``supply`` (the dealer, held while others are timed),
``layers`` (where time and bytes go), ``truth`` (whether answers are right), ``private`` (every role a process, over
TLS), ``points`` (bytes against accuracy), ``bench`` (all of it together), ``rows``, ``picture``, ``charts``, ``html``.
"""
