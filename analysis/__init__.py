"""How close each pass comes to the speed of memory, and how twopass compares to its peers.

`measure` and `peers` return samples, `roofline` is arithmetic on samples, `show` turns the results
into text, `cli` is the command ``twopass-roofline``.
"""
