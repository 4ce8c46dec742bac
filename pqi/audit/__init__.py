"""The audit: what quantization did to a network's security, attacked, measured and answered.

case.py           what is audited: the float network, the integer model, data
subjects.py       the three forms a network is attacked in: float, straight-through, integers
statistics.py     every figure with its interval
attack.py         what every attack is: threat, budget, findings
attacks/          one file each
defences/         one file each, with the attack it answers and what it costs
"""
