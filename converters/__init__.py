"""SavedModel → ONNX, → TF-Lite: converted, proven, measured and chosen by a job (`converters.job`), kept in a cache.

job         the process: looks in the cache, has what is missing made, keeps it, writes a report
working     the process that the job has do the work, without the key of the cache: work, step by step
converting  entry points, each in a process of its own; freezing, to_onnx (onnx_handlers), to_tflite, registry, plugin
repairs     operators that converters get wrong, spelled out (spelling); hazards, what is known to be wrong all the same
evidence    cases and hard_cases (edges, constants), and TensorFlow's answers on them
proving     a form, run on the cases, and searched for differences; proof compares, judging tells roundings from errors
measuring   TensorFlow and the forms, timed in turns (measure); load, what other processes take; choice decides
live        answers that a form gave in service, judged; verifying, the process; counterexamples, what it found
cache       forms and reports on disk: entry, sealing, files; identity, what they were made from
processes   models in processes that may crash, hang or eat memory; child, runner
"""
