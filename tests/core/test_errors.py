"""The texts of errors."""

from __future__ import annotations

import os

from appliance.core.errors import as_utf8
from appliance.protocols import protos


def test_a_file_name_that_is_no_utf8_can_be_told_by_protobuf() -> None:
    told = as_utf8(f"{os.fsdecode(b'/models/x%cy' % 0xFF)} is empty: grüß dich")
    assert told == "/models/x?y is empty: grüß dich"
    status = protos.GetModelStatusResponse()
    status.model_version_status.add().status.error_message = told
    assert protos.GetModelStatusResponse.FromString(status.SerializeToString()) == status
