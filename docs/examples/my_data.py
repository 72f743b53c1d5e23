"""A data set: what people say to their homes, `data.source` of a configuration.

airllm run quick --set "data.source=my_data:commands(count=4000)"
"""

import random

ROOMS = ("kitchen", "bedroom", "hall", "office", "garage", "bathroom")
COMMANDS = {
    "light": ("{} the lamp in the {}", "it is too dark in the {1}", "lights {0} in the {1}"),
    "heat": ("{} the radiator in the {}", "i am cold in the {1}", "make the {1} warmer"),
    "music": ("{} the radio in the {}", "play something slow in the {1}", "no songs in the {1}"),
    "door": ("open the door of the {1}", "is the {1} locked", "somebody rings at the {1}"),
}


def commands(seed, count=2000):
    """Pairs (text, label); a part of each label is held out for the devices."""
    draw = random.Random(seed)
    for _ in range(count):
        label = draw.choice(sorted(COMMANDS))
        text = draw.choice(COMMANDS[label])
        yield text.format(draw.choice(("turn on", "switch off")), draw.choice(ROOMS)), label
