/* A library with an operator that TensorFlow has not: MyAdd, which is what AddV2 is for float32 where the second input
   is a scalar. It is registered by TensorFlow's C interface: that compiles in a second, and C++ would take half a
   minute. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* ops.h names these as C++ would. */
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_DimensionHandle TF_DimensionHandle;

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_datatype.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

static void infer_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* handle = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, handle, status);
  if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSetOutput(context, 0, handle, status);
  TF_DeleteShapeHandle(handle);
}

static void compute(void* kernel, TF_OpKernelContext* context) {
  TF_Status* status = TF_NewStatus();
  TF_Tensor *x = NULL, *y = NULL, *z = NULL;
  TF_GetInput(context, 0, &x, status);
  if (TF_GetCode(status) == TF_OK) TF_GetInput(context, 1, &y, status);
  if (TF_GetCode(status) == TF_OK && TF_TensorElementCount(y) != 1)
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "MyAdd adds a scalar");
  if (TF_GetCode(status) == TF_OK) {
    int64_t dims[254];
    int rank = TF_NumDims(x);
    for (int i = 0; i < rank; ++i) dims[i] = TF_Dim(x, i);
    z = TF_AllocateOutput(context, 0, TF_FLOAT, dims, rank, TF_TensorByteSize(x), status);
  }
  if (TF_GetCode(status) == TF_OK) {
    const float* from = TF_TensorData(x);
    const float addend = *(const float*)TF_TensorData(y);
    float* to = TF_TensorData(z);
    for (int64_t i = 0; i < TF_TensorElementCount(x); ++i) to[i] = from[i] + addend;
  } else {
    TF_OpKernelContext_Failure(context, status);
  }
  if (x != NULL) TF_DeleteTensor(x);
  if (y != NULL) TF_DeleteTensor(y);
  if (z != NULL) TF_DeleteTensor(z);
  TF_DeleteStatus(status);
}

static void need(TF_Status* status) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "MyAdd: %s\n", TF_Message(status));
  abort();
}

__attribute__((constructor)) static void register_op(void) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder("MyAdd");
  TF_OpDefinitionBuilderAddAttr(op, "T: {float}");
  TF_OpDefinitionBuilderAddInput(op, "x: T");
  TF_OpDefinitionBuilderAddInput(op, "y: T");
  TF_OpDefinitionBuilderAddOutput(op, "z: T");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, infer_shape);
  TF_RegisterOpDefinition(op, status);
  need(status);
  TF_RegisterKernelBuilder("MyAdd", TF_NewKernelBuilder("MyAdd", "CPU", NULL, compute, NULL), status);
  need(status);
  TF_DeleteStatus(status);
}
