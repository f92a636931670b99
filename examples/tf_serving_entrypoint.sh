#!/bin/sh
# What TensorFlow Serving's container runs, for dropserve: serves ${MODEL_BASE_PATH}/${MODEL_NAME} over gRPC on 8500 and
# REST on 8501. Further arguments go to tensorflow_model_server; of a flag that is given twice the last counts.
MODEL_NAME="${MODEL_NAME:-model}"
MODEL_BASE_PATH="${MODEL_BASE_PATH:-/models}"
exec tensorflow_model_server --port=8500 --rest_api_port=8501 \
    --model_name="${MODEL_NAME}" --model_base_path="${MODEL_BASE_PATH}/${MODEL_NAME}" \
    "$@"
