"""What a training takes and what is advised, before it: arithmetic alone, from the numbers of a config.json.

    shapes.py     the matrices of a model, by their kind
    lora.py       how many weights an adapter trains
    rate.py       rank, alpha and rate together

Reads no weights and imports no torch, so that it answers at once.
"""
