"""SavedModel → ONNX, → TF-Lite: converted, proven, measured and chosen by a job (`converters.job`), kept in a cache.

job         the process: reads a spec, writes a report
converting  entry points, each in a process of its own; freezing, to_onnx (onnx_handlers), to_tflite, registry, plugin
repairs     operators that converters get wrong, spelled out; hazards, what is known to be wrong all the same
proving     cases and hard_cases (edges, constants), run by TensorFlow and by a converted form; proof compares
measure     calls in turns; load, what others take meanwhile; choice decides
cache       forms and reports on disk, by what they were made from; identity, of the code
child       processes that may crash, hang or eat memory; frames, runner, processes
"""
