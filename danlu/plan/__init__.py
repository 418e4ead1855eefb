"""What a training takes and what is advised, before it: arithmetic alone, from the numbers of a config.json.

    shapes.py     the matrices of a model, by their kind
    kinds.py      kinds of models: what each has beyond its numbers
    configs.py    the numbers of a config.json -> a shape
    presets.py    published configurations
    models.py     a model's name -> its shape
    lora.py       how many weights an adapter trains
    rate.py       rank, alpha and rate together
    programs.py   what a training program keeps beside the weights
    cache.py      keys and values of an engine that answers
    memory.py     memory, part by part
    cards.py      how much memory a card has
    fit.py        what fits
    quantization.py  the notes' rule on bits, and published figures
    whole.py      a whole recipe, each value with its reason

Reads no weights and imports no torch, so that it answers at once.
"""
