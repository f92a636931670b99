"""SavedModel → ONNX, → TF-Lite: converted, proven, measured and chosen by a job (`converters.job`), kept in a cache.

job         the process: reads a spec, looks in the cache, writes a report; work, what it does if the cache has none
converting  entry points, each in a process of its own; freezing, to_onnx (onnx_handlers), to_tflite, registry, plugin
repairs     operators that converters get wrong, spelled out (spelling); hazards, what is known to be wrong all the same
evidence    cases and hard_cases (edges, constants), and TensorFlow's answers on them
proving     a form, run on the cases, and searched for differences; proof compares, judging tells roundings from errors
measuring   TensorFlow and the forms, timed in turns (measure); load, what other processes take; choice decides
live        answers that a form gave in service, judged; verifying, the process; counterexamples, what it found
cache       forms and reports on disk; identity, what they were made from
processes   models in processes that may crash, hang or eat memory; child, runner
"""
