"""The peer: what a careful developer writes in an afternoon, with the model in the web process.

    MODEL_NAME=half_plus_two MODEL_FOLDER=DIR/half_plus_two/1 uvicorn benchmarks.fastapi_peer:app --workers 2

It is given its best form: orjson for both directions, no pydantic model of the tensor, the call on the event loop (a
thread pool costs more than the tiny model), uvloop and httptools, no access log. It has no batching, no versions, no
gRPC, and every worker holds a copy of the model.
"""

import os

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

from benchmarks.session import load_model

MODEL = load_model(os.environ["MODEL_FOLDER"])
((INPUT, DTYPE),) = MODEL.inputs.items()  # one input: a row of `instances` is its value

app = FastAPI()


@app.post(f"/v1/models/{os.environ['MODEL_NAME']}:predict")
async def predict(request: Request) -> Response:
    """`{"instances": [value, …]}` to `{"predictions": [value, …]}`, objects where the model has several outputs."""
    instances = np.asarray(orjson.loads(await request.body())["instances"], dtype=DTYPE)
    outputs = MODEL.call(instances)
    if len(outputs) == 1:
        predictions: object = outputs[0]
    else:
        rows = zip(*(output.tolist() for output in outputs), strict=True)
        predictions = [dict(zip(MODEL.outputs, row, strict=True)) for row in rows]
    body = orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


@app.get("/readyz")
async def readyz() -> Response:
    """The model is loaded when this module is."""
    return Response(b"ok")
