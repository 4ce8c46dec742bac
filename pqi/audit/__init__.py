"""The audit: what quantization did to a network's security, attacked, measured and answered.

case.py           what is audited: the float network, the integer model, data
subjects.py       the three forms a network is attacked in: float, straight-through, integers
statistics.py     every figure with its interval
attack.py         what every attack is: threat, budget, findings
attacks/          one file each
defences/         one file each, with the attack it answers and what it costs
plan.py           which attacks an audit makes, and how its minutes are shared out
run.py            the whole audit of a case: ``pqi.audit.run.audit``
rules.py          what calls for attention, rule by rule
verdicts.py       a verdict for each family from the rules
report/           an audit as JSON and as one HTML file
"""
