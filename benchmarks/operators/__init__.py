"""`make operators`: each operator that the converters take, by each of its element types, on values out of the usual:
what TensorFlow answers, and what its converted forms do.

catalogue   the operators, in a few variants each: elementwise, reductions, indexing, shaping, layers
values      classes of values, and the inputs that a variant gets of each
trial       one operator of one element type: saved, converted, run, compared
campaign    all of them, each line of results kept: it goes on where it stopped
table       what they show: converters/hazards.json, and the section of docs/acceleration.md
"""
