"""From what the user typed, a folder or a Hub id, to a local folder. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vllm_quant_plugin.errors import CheckpointError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
CONFIG_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


def resolve_model(model: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of ``model``.

    Args:
        model: an existing folder, or ``org/name`` on the Hub.
        revision: hub branch, tag or commit.
        weights: False downloads configuration and tokenizer files only.

    Raises:
        CheckpointError: no such folder, no such Hub id, or the Hub is out of reach.
    """
    path = Path(model).expanduser()
    text = str(model)
    if path.exists():
        return path
    if not _HUB_ID.match(text) or text.startswith(("./", "/", "~")):
        raise CheckpointError(f"{model}: no such folder", "give a model folder, or a Hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*CONFIG_FILES, "*.safetensors"] if weights else list(CONFIG_FILES)
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except (LocalEntryNotFoundError, OSError) as err:
        if isinstance(err, HfHubHTTPError) and err.response is not None and err.response.status_code in (401, 403, 404):
            raise CheckpointError(
                f"{model}: not found on the Hub, or private", "check the id and `hf auth login`"
            ) from None
        where = "HF_HUB_OFFLINE is set" if offline else "the Hub is out of reach"
        raise CheckpointError(
            f"{model}: no such folder, and not in the local cache while {where}",
            "give a local folder, or download it first with `hf download`",
        ) from None
    except (HfHubHTTPError, HFValidationError) as err:
        raise CheckpointError(f"{model}: {str(err).splitlines()[0]}", "check the Hub id") from None
