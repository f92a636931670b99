"""The protocol buffers of TensorFlow Serving and of the Open Inference Protocol: our own minimal definitions, in a pool
of our own.

The `.proto` files in this folder have upstream's package, message and field numbers. `dropserve.binpb` is
their compiled FileDescriptorSet, with the well-known types that they import; `make protos` writes it. The pool is
private because TensorFlow registers the same names in protobuf's default pool, and a process may have both.
"""

from __future__ import annotations

import os
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

__all__ = [
    "POOL",
    "AnyProto",
    "BatchingParameters",
    "ClassificationRequest",
    "ClassificationResponse",
    "DataType",
    "Example",
    "ExamplesRequest",
    "GetModelMetadataRequest",
    "GetModelMetadataResponse",
    "GetModelStatusRequest",
    "GetModelStatusResponse",
    "Int64Value",
    "ModelConfigRequest",
    "ModelConfigResponse",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataRequest",
    "ModelMetadataResponse",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ModelServerConfig",
    "ModelSpec",
    "ModelStreamInferResponse",
    "ModelType",
    "MonitoringConfig",
    "MultiInferenceRequest",
    "MultiInferenceResponse",
    "PredictRequest",
    "PredictResponse",
    "PredictionLog",
    "ProfileRequest",
    "ProfileResponse",
    "RegressionRequest",
    "RegressionResponse",
    "ReloadConfigRequest",
    "ReloadConfigResponse",
    "RepositoryIndexRequest",
    "RepositoryIndexResponse",
    "SSLConfig",
    "SerializedInput",
    "ServerLiveResponse",
    "ServerMetadataResponse",
    "ServerReadyResponse",
    "SignatureDefMap",
    "TasksRequest",
    "TensorProto",
    "TensorShapeProto",
    "TerminateRequest",
    "TerminateResponse",
]


def _pool() -> Any:
    with open(os.path.join(os.path.dirname(__file__), "dropserve.binpb"), "rb") as file:
        files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    pool = descriptor_pool.DescriptorPool()
    for file_descriptor in files.file:  # protoc lists a file after its imports
        pool.Add(file_descriptor)
    return pool


POOL: Any = _pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


AnyProto = _message("google.protobuf.Any")
Int64Value = _message("google.protobuf.Int64Value")

TensorProto = _message("tensorflow.TensorProto")
TensorShapeProto = _message("tensorflow.TensorShapeProto")
Example = _message("tensorflow.Example")
ProfileRequest = _message("tensorflow.ProfileRequest")
ProfileResponse = _message("tensorflow.ProfileResponse")
TerminateRequest = _message("tensorflow.TerminateRequest")
TerminateResponse = _message("tensorflow.TerminateResponse")
DataType = EnumTypeWrapper(POOL.FindEnumTypeByName("tensorflow.DataType"))

ModelSpec = _message("tensorflow.serving.ModelSpec")
PredictRequest = _message("tensorflow.serving.PredictRequest")
PredictResponse = _message("tensorflow.serving.PredictResponse")
ClassificationRequest = _message("tensorflow.serving.ClassificationRequest")
ClassificationResponse = _message("tensorflow.serving.ClassificationResponse")
RegressionRequest = _message("tensorflow.serving.RegressionRequest")
RegressionResponse = _message("tensorflow.serving.RegressionResponse")
MultiInferenceRequest = _message("tensorflow.serving.MultiInferenceRequest")
MultiInferenceResponse = _message("tensorflow.serving.MultiInferenceResponse")
SignatureDefMap = _message("tensorflow.serving.SignatureDefMap")
GetModelMetadataRequest = _message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = _message("tensorflow.serving.GetModelMetadataResponse")
GetModelStatusRequest = _message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = _message("tensorflow.serving.GetModelStatusResponse")
ReloadConfigRequest = _message("tensorflow.serving.ReloadConfigRequest")
ReloadConfigResponse = _message("tensorflow.serving.ReloadConfigResponse")
BatchingParameters = _message("tensorflow.serving.BatchingParameters")
ModelServerConfig = _message("tensorflow.serving.ModelServerConfig")
MonitoringConfig = _message("tensorflow.serving.MonitoringConfig")
SSLConfig = _message("tensorflow.serving.SSLConfig")
SerializedInput = _message("dropserve.SerializedInput")
ExamplesRequest = _message("dropserve.ExamplesRequest")
TasksRequest = _message("dropserve.TasksRequest")
PredictionLog = _message("dropserve.PredictionLog")

ServerLiveResponse = _message("inference.ServerLiveResponse")
ServerReadyResponse = _message("inference.ServerReadyResponse")
ModelReadyRequest = _message("inference.ModelReadyRequest")
ModelReadyResponse = _message("inference.ModelReadyResponse")
ServerMetadataResponse = _message("inference.ServerMetadataResponse")
ModelMetadataRequest = _message("inference.ModelMetadataRequest")
ModelMetadataResponse = _message("inference.ModelMetadataResponse")
ModelInferRequest = _message("inference.ModelInferRequest")
ModelInferResponse = _message("inference.ModelInferResponse")
ModelStreamInferResponse = _message("inference.ModelStreamInferResponse")
ModelConfigRequest = _message("inference.ModelConfigRequest")
ModelConfigResponse = _message("inference.ModelConfigResponse")
RepositoryIndexRequest = _message("inference.RepositoryIndexRequest")
RepositoryIndexResponse = _message("inference.RepositoryIndexResponse")
ModelType = EnumTypeWrapper(POOL.FindEnumTypeByName("tensorflow.serving.ModelType"))
