"""The Open Inference Protocol v2, from bytes to values and back, pure: JSON, binary tensors, and gRPC's messages.

Source: https://github.com/kserve/open-inference-protocol, and the extensions that Triton's documentation describes.
"""
